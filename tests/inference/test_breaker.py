import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.breaker import BreakerOptions, BreakerState, CircuitBreaker, Outcome, Permit

OPTIONS = BreakerOptions(window_seconds=10.0, least_requests=4, failure_share=0.5, open_seconds=2.0)
CLOSED, OPEN, HALF_OPEN = BreakerState
SUCCESS, FAILURE, UNKNOWN = Outcome


class Bench:
    def __init__(self):
        self.now = 0.0
        self.changes = []
        self.breaker = CircuitBreaker(
            OPTIONS, lambda: self.now, lambda *change: self.changes.append(change)
        )

    def feed(self, *outcomes):
        for outcome in outcomes:
            self.breaker.record(Permit.PASS, outcome)

    def opened(self):
        self.feed(*[FAILURE] * 4)
        assert self.breaker.state is OPEN
        return self


def test_few_failures_are_no_evidence():
    bench = Bench()
    bench.feed(FAILURE, FAILURE, FAILURE)
    assert bench.breaker.ask() is Permit.PASS
    bench.feed(FAILURE)
    assert bench.breaker.ask() is Permit.REFUSED
    assert bench.breaker.retry_after_seconds == 2.0
    assert "4 of 4" in bench.changes[0][2]


def test_it_is_the_share_that_counts_not_the_number_in_a_row():
    bench = Bench()
    bench.feed(*[SUCCESS] * 9, *[FAILURE] * 8)
    assert bench.breaker.state is CLOSED
    bench.feed(FAILURE)
    assert bench.breaker.state is OPEN


def test_failures_leave_the_window():
    bench = Bench()
    bench.feed(*[FAILURE] * 3)
    bench.now = 10.0
    bench.feed(FAILURE)
    assert bench.breaker.state is CLOSED
    assert bench.breaker.counts() == (0, 1)


def test_what_never_reached_the_engine_says_nothing_about_it():
    bench = Bench()
    bench.feed(*[UNKNOWN] * 100)
    assert bench.breaker.counts() == (0, 0)


def test_one_probe_decides():
    bench = Bench().opened()
    bench.now = 2.0
    assert bench.breaker.state is HALF_OPEN
    assert bench.breaker.ask() is Permit.PROBE
    assert [bench.breaker.ask() for _ in range(3)] == [Permit.REFUSED] * 3
    bench.breaker.record(Permit.PROBE, SUCCESS)
    assert bench.breaker.state is CLOSED
    assert bench.breaker.counts() == (0, 0)


def test_a_probe_that_fails_doubles_the_time_up_to_a_limit():
    bench = Bench().opened()
    lengths = []
    for _ in range(6):
        lengths.append(bench.breaker.retry_after_seconds)
        bench.now += lengths[-1]
        assert bench.breaker.ask() is Permit.PROBE
        bench.breaker.record(Permit.PROBE, FAILURE)
    assert lengths == [2.0, 4.0, 8.0, 16.0, 16.0, 16.0]


def test_a_probe_that_learned_nothing_leaves_its_place_to_the_next():
    bench = Bench().opened()
    bench.now = 2.0
    assert bench.breaker.ask() is Permit.PROBE
    bench.breaker.record(Permit.PROBE, UNKNOWN)
    assert bench.breaker.ask() is Permit.PROBE


def test_late_outcomes_from_before_change_nothing():
    bench = Bench().opened()
    bench.feed(SUCCESS, SUCCESS)
    assert bench.breaker.state is OPEN
    bench.now = 2.0
    bench.feed(SUCCESS)
    assert bench.breaker.state is HALF_OPEN
    bench.feed(FAILURE)
    assert bench.breaker.state is HALF_OPEN


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "record", "record_probe", "wait"]),
        st.sampled_from(Outcome),
        st.floats(0, 6),
    ),
    max_size=80,
)


@given(STEPS)
def test_the_machine_only_takes_its_four_edges_and_has_one_probe_at_most(steps):
    bench = Bench()
    probes = 0
    for action, outcome, seconds in steps:
        if action == "ask":
            state = bench.breaker.state
            permit = bench.breaker.ask()
            assert permit is not Permit.PASS or state is CLOSED
            assert permit is not Permit.PROBE or (state is HALF_OPEN and probes == 0)
            if state is OPEN:
                assert permit is Permit.REFUSED
                assert 0.0 < bench.breaker.retry_after_seconds <= 16.0
            probes += permit is Permit.PROBE
        elif action == "record":
            bench.breaker.record(Permit.PASS, outcome)
        elif action == "record_probe" and probes:
            probes = 0
            bench.breaker.record(Permit.PROBE, outcome)
        elif action == "wait":
            bench.now += seconds
    edges = {(before, after) for before, after, _ in bench.changes}
    assert edges <= {(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED), (HALF_OPEN, OPEN)}


@given(STEPS)
def test_it_always_recovers_once_the_engine_answers(steps):
    bench = Bench()
    for action, outcome, seconds in steps:
        if action == "ask":
            permit = bench.breaker.ask()
            if permit is not Permit.REFUSED:
                bench.breaker.record(permit, outcome)
        else:
            bench.now += seconds
    bench.now += 16.0
    permit = bench.breaker.ask()
    assert permit is not Permit.REFUSED
    bench.breaker.record(permit, SUCCESS)
    assert bench.breaker.state is CLOSED


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_a_few_scattered_failures_never_open_it(share):
    bench = Bench()
    for number in range(1, 1000):
        bench.now += 0.01
        bench.feed(FAILURE if share and number % round(1 / share) == 0 else SUCCESS)
    assert bench.breaker.state is CLOSED
