"""The limit on a simulated engine: exponential arrivals and service times, no real clock."""

import heapq
import random
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.gradient import GradientLimit, GradientOptions


@dataclass
class Run:
    """What a simulation saw after its warm-up."""

    arrived: int = 0
    refused: int = 0
    latencies: list = field(default_factory=list)
    limits: list = field(default_factory=list)

    def percentile(self, share):
        return sorted(self.latencies)[int(share * (len(self.latencies) - 1))]


def _simulate(load, *, slots=4, service=0.05, ceiling=200, seconds=60.0, warm_up=30.0, seed=1,
              slow_from=float("inf"), limited=True, patience=0.0):  # fmt: skip
    """Run ``slots`` servers behind the limit; ``load(time)`` is in multiples of their capacity."""
    chance = random.Random(seed)
    now = 0.0
    options = GradientOptions(patience_seconds=patience)
    limit = GradientLimit(2 * slots, ceiling, lambda: now, options)
    numbers = count()
    waiting, run, running = [], Run(), 0
    events = [(0.0, next(numbers), None)]
    while events:
        now, _, arrived_at = heapq.heappop(events)
        if now > seconds:
            break
        if arrived_at is None:
            gap = chance.expovariate(load(now) * slots / service)
            heapq.heappush(events, (now + gap, next(numbers), None))
            run.arrived += now > warm_up
            if (limited and len(waiting) + running >= limit.limit) or len(waiting) >= 5000:
                run.refused += now > warm_up
            else:
                waiting.append(now)
        else:
            born, begun = arrived_at
            running -= 1
            if now > warm_up:
                run.latencies.append(now - born)
            limit.observe(now - begun, max(0, len(waiting) - 1), running)
            run.limits.append(limit.limit)
        while waiting and running < slots:
            running += 1
            slower = 3.0 if now >= slow_from else 1.0
            done = now + slower * chance.expovariate(1 / service)
            heapq.heappush(events, (done, next(numbers), (waiting.pop(0), now)))
    return run


def _throughput(run, seconds=30.0):
    return len(run.latencies) / seconds


@pytest.mark.parametrize("slots", [1, 2, 8, 32])
def test_three_times_the_load_costs_no_throughput_and_little_latency(slots):
    peak = slots / 0.05
    run = _simulate(lambda _: 3.0, slots=slots, ceiling=100 * slots)
    assert _throughput(run) >= 0.95 * peak
    # (tolerance * slots + queue) in the building and served at the peak rate.
    assert run.percentile(0.5) <= 1.5 * (2.0 * slots + 4.0) / peak
    assert run.percentile(0.99) <= 4.0 * (2.0 * slots + 4.0) / peak
    unlimited = _simulate(lambda _: 3.0, slots=slots, ceiling=100 * slots, limited=False)
    assert unlimited.percentile(0.5) > 5 * run.percentile(0.5)


@pytest.mark.parametrize("slots", [2, 8, 32])
@pytest.mark.parametrize("load", [0.5, 0.8, 0.9])
def test_below_capacity_nobody_is_refused(slots, load):
    runs = [_simulate(lambda _: load, slots=slots, seed=seed) for seed in range(3)]
    assert sum(run.refused for run in runs) <= 0.005 * sum(run.arrived for run in runs)


@pytest.mark.parametrize("slots", [2, 8])
def test_after_an_overload_nobody_is_refused_for_long(slots):
    after = _simulate(lambda now: 3.0 if now < 20.0 else 0.8, slots=slots, seconds=100.0)
    assert min(after.limits) <= 6 * slots + 4
    assert after.refused <= 0.01 * after.arrived


def test_an_engine_that_becomes_slow_is_an_overload_too():
    run = _simulate(lambda _: 0.8, slots=4, slow_from=20.0, warm_up=70.0, seconds=100.0)
    assert _throughput(run) >= 0.95 * 4 / 0.15
    # Three times the service time for what may be in the building.
    assert run.percentile(0.99) <= 4.0 * 3 * 0.05 * (2.0 * 4 + 4.0) / 4


def test_a_lasting_overload_does_not_become_the_normal_state():
    early = _simulate(lambda _: 3.0, slots=2, seconds=60.0, warm_up=30.0)
    late = _simulate(lambda _: 3.0, slots=2, seconds=600.0, warm_up=570.0)
    assert late.limits[-1] <= early.limits[-1] + 3


@pytest.mark.parametrize("slots", [2, 8, 32])
def test_patience_is_what_a_lasting_overload_costs_and_no_throughput(slots):
    run = _simulate(lambda _: 3.0, slots=slots, ceiling=100 * slots, patience=0.5)
    assert _throughput(run) >= 0.95 * slots / 0.05
    assert 0.3 <= run.percentile(0.5) <= 1.0


def test_it_does_not_move_while_less_than_half_is_used():
    now = [0.0]
    limit = GradientLimit(4, 100, lambda: now[0])
    for _ in range(1000):
        now[0] += 0.1
        limit.observe(1.0, waiting=20, running=2)
    assert limit.limit == 100


def test_new_bounds_hold_at_once_and_the_ceiling_is_kept():
    limit = GradientLimit(4, 100, lambda: 0.0)
    limit.set_bounds(4, 10)
    assert limit.limit == 10
    limit.set_bounds(4, 50)
    assert limit.limit == 50
    limit.set_bounds(8, 2)
    assert limit.limit == 2


@given(
    st.integers(1, 64),
    st.integers(1, 1000),
    st.lists(
        st.tuples(st.floats(0, 100), st.integers(0, 2000), st.integers(0, 64), st.floats(0, 5)),
        max_size=200,
    ),
)
def test_it_never_leaves_its_bounds(floor, ceiling, observations):
    now = [0.0]
    options = GradientOptions(window_samples=2)
    limit = GradientLimit(floor, ceiling, lambda: now[0], options)
    for service, waiting, running, seconds in observations:
        now[0] += seconds
        limit.observe(service, waiting, running)
        assert min(floor, ceiling) <= limit.limit <= ceiling
        assert 0.5 <= limit.gradient <= 1.0
