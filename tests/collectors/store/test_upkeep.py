from __future__ import annotations

from pathlib import Path

import pytest

from collectors.contract import Sample
from collectors.store.contract import StoreError
from collectors.store.sqlite import SqliteSeriesStore
from collectors.store.upkeep import Retention, StoreUpkeep

T0 = 1_700_002_800.0  # a whole hour
DAY = 86_400.0
EVER = {"start_seconds": float("-inf"), "end_seconds": float("inf")}
KEEP = Retention(raw_seconds=2 * 3600.0, minute_seconds=DAY, hour_seconds=10 * DAY)


class Machine:
    """A store, its upkeep, and the two clocks of a machine."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteSeriesStore(path)
        self.now, self.monotonic = T0, 1000.0
        self.start()

    def start(self) -> None:
        self.upkeep = StoreUpkeep(self.store, KEEP, monotonic=lambda: self.monotonic)

    def run(self, seconds: float, *, step: float = 60.0) -> set[str]:
        """Let time pass with a sample and a round of duties every step, and name what was done."""
        done: set[str] = set()
        until = self.monotonic + seconds
        while self.monotonic < until:
            self.now += step
            self.monotonic += step
            self.store.write([Sample(self.now, "host/a", "x", 1.0)])
            for name, duty in self.upkeep.due(self.now):
                duty()
                done.add(name)
        return done

    def times(self) -> list[float]:
        return list(self.store.read(**EVER)["time"])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "series.sqlite")


def test_samples_go_before_minutes_and_minutes_before_hours(machine: Machine) -> None:
    assert machine.run(3 * DAY) == {"prune", "give back", "compact"}
    ages = [machine.now - at for at in machine.times()]
    assert 2 * 3600.0 < max(ages) <= 3 * 3600.0 + 600.0
    minutes = machine.store.read_rollup(**EVER)["time"]
    assert DAY - 3600.0 <= machine.now - minutes.min() <= DAY + 3600.0 + 600.0
    hours = machine.store.read_rollup(**EVER, resolution_seconds=3600)["time"]
    assert len(hours) == 3 * 24 + 1


def test_a_clock_that_jumps_forward_and_back_deletes_nothing(machine: Machine) -> None:
    machine.run(3600.0)
    before = machine.times()
    machine.now += 365 * DAY
    assert machine.run(1800.0) == {"compact"}
    machine.now -= 365 * DAY
    assert "prune" in machine.run(1800.0)
    assert set(before) <= set(machine.times())
    assert len(machine.times()) == len(before) + 60


def test_a_jump_that_stays_is_believed_after_an_hour(machine: Machine) -> None:
    machine.run(3600.0)
    machine.now += 365 * DAY
    machine.run(4000.0)
    assert min(machine.times()) > T0 + 300 * DAY


def test_a_start_long_after_the_last_sample_waits_before_it_deletes(machine: Machine) -> None:
    machine.run(3600.0)
    machine.now += 30 * DAY
    machine.start()
    assert machine.run(1800.0) == {"compact"}
    assert min(machine.times()) < T0 + DAY
    machine.run(3600.0)
    assert min(machine.times()) > T0 + DAY


def test_a_clock_that_goes_back_keeps_every_sample_and_the_duties(machine: Machine) -> None:
    machine.run(7200.0)
    machine.now -= 5000.0
    written = machine.times()
    assert machine.run(1800.0) == {"prune", "give back", "compact"}
    # Rounds are 60 s apart and the jump is not, so that no sample replaces another.
    assert len(machine.times()) == len(written) + 30
    assert machine.times() == sorted(machine.times())


def test_compaction_goes_on_at_the_next_tick_until_it_is_done(machine: Machine) -> None:
    class Slow:
        def __init__(self) -> None:
            self.calls = 0

        def compact(self, *, now_seconds: float, budget_seconds: float) -> bool:
            self.calls += 1
            return self.calls == 3

        def series(self) -> list[object]:
            return []

        def prune(self, *, before_seconds: float) -> int:
            raise StoreError("the disk is full")

        def prune_rollups(self, **_: float) -> int:
            return 0

        def give_back(self) -> int:
            return 0

    slow = Slow()
    upkeep = StoreUpkeep(slow, KEEP, monotonic=lambda: machine.monotonic)  # type: ignore[arg-type]
    for _ in range(10):
        machine.monotonic += 1.0
        for name, duty in upkeep.due(T0):
            if name == "prune":
                with pytest.raises(StoreError):
                    duty()
            else:
                duty()
    assert slow.calls == 3
