from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from structlog.testing import capture_logs

from collectors import usable
from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.links import Link, Relation
from collectors.poller import Poller, Tick

Behave = Callable[[float], Sequence[tuple[str, float]]]


class Fake:
    """A collector whose one call does what the test says."""

    def __init__(self, name: str, behave: Behave, deadline_seconds: float = 5.0) -> None:
        self.name = name
        self.deadline_seconds = deadline_seconds
        self.behave = behave
        self.calls = 0
        self.closed = False

    def is_supported(self) -> Support:
        return Support(supported=True)

    def collect(self, now_seconds: float) -> Collection:
        self.calls += 1
        return Collection(
            [Sample(now_seconds, "host/box", s, v) for s, v in self.behave(now_seconds)]
        )

    def close(self) -> None:
        self.closed = True


class Slow(Fake):
    every_seconds = 2.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _steady(_: float) -> list[tuple[str, float]]:
    return [("host_load", 1.0)]


def _fail(_: float) -> list[tuple[str, float]]:
    raise CollectorError("the source is away", fix="start it")


def _own(tick: Tick, name: str) -> dict[str, float]:
    return {s.signal: s.value for s in tick.samples if s.entity == f"collector/{name}"}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_one_tick_gathers_all_and_reports_on_each(clock: Clock) -> None:
    poller = Poller([Fake("a", _steady), Fake("b", _fail)], clock)
    tick = poller.tick(1000.0)
    assert [s for s in tick.samples if s.entity == "host/box"] == [
        Sample(1000.0, "host/box", "host_load", 1.0)
    ]
    assert _own(tick, "a") == {
        "scrape_success": 1.0,
        "scrape_success_ratio": 1.0,
        "scrape_duration_seconds": 0.0,
        "scrape_samples": 1.0,
        "scrape_age_seconds": 0.0,
        "metric_out_of_range_ratio": 0.0,
    }
    assert _own(tick, "b")["scrape_success"] == 0.0
    healthy, sick = tick.health
    assert (healthy.ok, healthy.samples, healthy.last_success_seconds) == (True, 1, 1000.0)
    assert (sick.ok, sick.error) == (False, "the source is away; start it")


def test_an_unexpected_error_is_one_collectors_own(clock: Clock) -> None:
    def broken(_: float) -> list[tuple[str, float]]:
        raise ZeroDivisionError("oops")

    poller = Poller([Fake("a", broken), Fake("b", _steady)], clock)
    for second in range(3):
        tick = poller.tick(float(second))
        assert tick.health[0].error == "ZeroDivisionError: oops"
        assert tick.health[1].ok


def test_a_collector_that_hangs_is_not_called_again_until_it_returns(
    clock: Clock, release: threading.Event
) -> None:
    entered = threading.Event()

    def hang(_: float) -> list[tuple[str, float]]:
        entered.set()
        release.wait()
        return [("host_load", 99.0)]

    def answer(_: float) -> list[tuple[str, float]]:
        # The clock moves past the other's deadline while this one answers.
        entered.wait()
        clock.now += 1.0
        return [("host_load", 1.0)]

    stuck, fine = Fake("stuck", hang, deadline_seconds=0.5), Fake("fine", answer)
    poller = Poller([stuck, fine], clock)
    for second in range(1, 4):
        tick = poller.tick(float(second))
        assert _own(tick, "stuck")["scrape_success"] == 0.0
        assert _own(tick, "stuck")["scrape_age_seconds"] == clock.now
        assert _own(tick, "fine")["scrape_success"] == 1.0
    assert (stuck.calls, fine.calls) == (1, 3)
    assert "still waiting" in tick.health[0].error

    # The late answer is thrown away and the next tick calls again.
    stuck.behave = fine.behave = _steady
    release.set()
    while stuck.calls == 1:
        tick = poller.tick(10.0)
    assert 99.0 not in {sample.value for sample in tick.samples}
    assert tick.health[0].ok


def test_a_slow_call_within_its_deadline_comes_with_a_later_tick(release: threading.Event) -> None:
    def slow(_: float) -> list[tuple[str, float]]:
        release.wait()
        return [("canary_success", 1.0)]

    poller = Poller([Fake("canary", slow, deadline_seconds=60)], budget_seconds=0.01)
    tick = poller.tick(1.0)
    assert not tick.samples
    assert not tick.health[0].ok
    release.set()
    while not tick.samples:
        tick = poller.tick(2.0)
    assert tick.health[0].ok
    assert tick.samples[0][:3] == (1.0, "host/box", "canary_success")


def test_each_collector_has_its_own_pace(clock: Clock) -> None:
    slow, fast = Slow("slow", _steady), Fake("fast", _steady)
    poller = Poller([slow, fast], clock)
    for second in range(6):
        clock.now = second + 0.01 * (second % 2)
        tick = poller.tick(float(second))
        # Its own signals are there at every tick, so a gap means that the poller stopped.
        assert _own(tick, "slow")["scrape_success"] == 1.0
    assert (slow.calls, fast.calls) == (3, 6)
    assert _own(tick, "slow")["scrape_age_seconds"] == pytest.approx(1.01)


def test_recovery_shows_in_the_ratio(clock: Clock) -> None:
    flaky = Fake("flaky", _fail)
    poller = Poller([flaky], clock)
    poller.tick(1.0)
    flaky.behave = _steady
    tick = poller.tick(2.0)
    assert _own(tick, "flaky")["scrape_success"] == 1.0
    assert _own(tick, "flaky")["scrape_success_ratio"] == 0.5


def test_values_that_cannot_be_are_counted(clock: Clock) -> None:
    def odd(_: float) -> list[tuple[str, float]]:
        return [
            ("gpu_temperature_celsius", 900.0),
            ("gpu_power_usage_watts", math.nan),
            ("host_load", 1.0),
            ("host_cpu_percent", 50.0),
        ]

    tick = Poller([Fake("odd", odd)], clock).tick(1.0)
    assert _own(tick, "odd")["metric_out_of_range_ratio"] == 0.5
    assert len([s for s in tick.samples if s.entity == "host/box"]) == 3


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="different names"):
        Poller([Fake("a", _steady), Fake("a", _steady)])


def test_closing_closes_all_even_when_one_refuses(clock: Clock) -> None:
    class Stubborn(Fake):
        def close(self) -> None:
            raise RuntimeError("no")

    first, last = Stubborn("a", _steady), Fake("b", _steady)
    Poller([first, last], clock).close()
    assert last.closed


@pytest.mark.parametrize("reason", [SystemExit(3), KeyboardInterrupt(), MemoryError("all gone")])
def test_whatever_a_collector_raises_ends_neither_its_thread_nor_the_tick(
    reason: BaseException, clock: Clock
) -> None:
    def broken(_: float) -> list[tuple[str, float]]:
        raise reason

    sick = Fake("sick", broken)
    poller = Poller([sick, Fake("fine", _steady)], clock)
    assert type(reason).__name__ in poller.tick(1.0).health[0].error
    sick.behave = _steady
    tick = poller.tick(2.0)
    assert [each.ok for each in tick.health] == [True, True]


class Returns(Fake):
    """A collector that returns something of its own."""

    def __init__(self, name: str, found: object) -> None:
        super().__init__(name, _steady)
        self.found = found

    def collect(self, now_seconds: float) -> Collection:
        return self.found  # type: ignore[return-value]


def test_what_is_no_collection_is_a_failure(clock: Clock) -> None:
    poller = Poller([Returns("odd", None), Fake("fine", _steady)], clock)
    tick = poller.tick(1.0)
    assert tick.health[0].error == "TypeError: collect() must return a Collection, not NoneType"
    assert tick.health[1].ok


def test_broken_samples_are_left_out_counted_and_said_once(clock: Clock) -> None:
    good = Sample(1.0, "host/box", "host_load", 1.0)
    broken = [
        good._replace(entity=math.nan),
        good._replace(entity=""),
        good._replace(entity="x" * 10_000),
        good._replace(signal=None),
        good._replace(value="7"),
        good._replace(value=10**400),
        good._replace(time_seconds=math.inf),
        good._replace(labels=None),
        None,
        (1.0, "host/box"),
    ]
    poller = Poller([Returns("odd", Collection([*broken, good]))], clock)
    with capture_logs() as logged:
        ticks = [poller.tick(float(second)) for second in range(2)]
    assert [s for s in ticks[-1].samples if s.entity == "host/box"] == [good]
    assert _own(ticks[-1], "odd")["metric_out_of_range_ratio"] == pytest.approx(10 / 11)
    assert [row["event"] for row in logged] == ["samples_unusable"]


def test_a_flood_of_samples_is_cut(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usable, "MAX_SAMPLES", 100)
    flood = [Sample(1.0, f"host/{n}", "host_load", 1.0) for n in range(250)]
    tick = Poller([Returns("flood", Collection(flood))], clock).tick(1.0)
    assert len([s for s in tick.samples if s.entity.startswith("host/")]) == 100
    assert _own(tick, "flood")["metric_out_of_range_ratio"] == 0.6


def test_samples_without_end_are_a_failure(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usable, "MAX_SAMPLES", 10)
    monkeypatch.setattr(usable, "_MAX_LEFT_OUT", 40)
    endless = itertools.repeat(Sample(1.0, "host/box", "host_load", 1.0))
    tick = Poller([Returns("endless", Collection(endless))], clock).tick(1.0)  # type: ignore[arg-type]
    assert "more than 40 samples" in tick.health[0].error


def test_links_of_the_last_call_come_with_every_tick(clock: Clock) -> None:
    link = Link("service/llm", Relation.RUNS_ON, "host/box")
    poller = Poller([Returns("a", Collection([], links=[link, link]))], clock)
    assert poller.tick(1.0).links == [link]


def test_a_clock_of_the_day_that_jumps_changes_no_pace_and_no_age(clock: Clock) -> None:
    slow = Slow("slow", _steady)
    poller = Poller([slow], clock)
    for second, day in enumerate([1000.0, 1001.0, -9e9, 9e9, 1004.0, 1005.0]):
        clock.now = float(second)
        own = _own(poller.tick(day), "slow")
        assert 0 <= own["scrape_age_seconds"] <= 1
        assert own["scrape_duration_seconds"] == 0
    assert slow.calls == 3


def test_after_a_long_pause_there_is_one_call_and_no_burst(clock: Clock) -> None:
    slow = Slow("slow", _steady)
    poller = Poller([slow], clock)
    poller.tick(1.0)
    clock.now = 3600.0
    poller.tick(3601.0)
    clock.now = 3601.0
    poller.tick(3602.0)
    assert slow.calls == 2


def test_closing_waits_for_no_collector_beyond_its_deadline(release: threading.Event) -> None:
    entered = threading.Event()

    class Hangs(Fake):
        def close(self) -> None:
            entered.set()
            release.wait()

    hanging = [Hangs(f"hangs{number}", _steady) for number in range(20)]
    fine = Fake("fine", _steady)
    poller = Poller([*hanging, fine])
    with capture_logs() as logged:
        poller.close(deadline_seconds=0.3)
    assert entered.is_set()
    assert fine.closed
    assert len([row for row in logged if row["event"] == "collector_does_not_close"]) == 20


def test_closing_reaches_a_collector_that_is_inside_a_call(release: threading.Event) -> None:
    entered = threading.Event()

    def hang(_: float) -> list[tuple[str, float]]:
        entered.set()
        release.wait()
        return []

    stuck = Fake("stuck", hang, deadline_seconds=0.01)
    poller = Poller([stuck], budget_seconds=0.01)
    poller.tick(1.0)
    entered.wait()
    poller.close()
    assert stuck.closed


def test_one_gpu_of_two_collectors_is_one(clock: Clock) -> None:
    def gpu(entity: str, value: float, **labels: str) -> Fake:
        fake = Fake(entity.rsplit("/", 1)[-1] + labels.get("exporter", "own"), _steady)
        sample = Sample(
            1000.0, entity, "gpu_temperature_celsius", value, {"uuid": "GPU-a", **labels}
        )
        fake.collect = lambda _: Collection([sample])  # type: ignore[method-assign]
        return fake

    poller = Poller(
        [gpu("host/pod/gpu/3", 50.0, exporter="dcgm"), gpu("host/box/gpu/0", 51.0)], clock
    )
    tick = poller.tick(1000.0)
    found = [(s.entity, s.value) for s in tick.samples if s.signal == "gpu_temperature_celsius"]
    assert found == [("host/box/gpu/0", 51.0)]
