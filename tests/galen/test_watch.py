from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.detection.contract import Detections
from analysis.history import History
from analysis.journal import EventKind, Journal
from collectors.contract import Sample
from collectors.links import Link
from collectors.poller import Tick
from galen.errors import GalenError
from galen.telemetry.status import StatusBoard, read_status
from galen.watch import WATCH_ENTITY, WatchLoop, WatchParts, only_watch


@dataclass
class World:
    """Parts that record what they are given, any of which can be told to fail."""

    journal: Journal
    failing: set[str] = field(default_factory=set)
    stored: list[Sample] = field(default_factory=list)
    analysed: list[Sequence[Sample]] = field(default_factory=list)
    healed: list[Any] = field(default_factory=list)
    pruned: list[float] = field(default_factory=list)
    compacted: int = 0

    def call(self, part: str) -> None:
        if part in self.failing:
            raise RuntimeError(f"{part} is broken")

    def loop(self, board: StatusBoard | None = None) -> WatchLoop:
        parts = SimpleNamespace(
            poller=SimpleNamespace(tick=self.poll),
            store=SimpleNamespace(write=self.write),
            history=History(capacity_ticks=10),
            analyst=SimpleNamespace(tick=self.analyse, save=lambda: None),
            healer=SimpleNamespace(tick=self.heal),
            ledger=SimpleNamespace(standing=list),
            journal=self.journal,
            seasons=SimpleNamespace(take=lambda now: {}),
            upkeep=SimpleNamespace(due=self.due),
        )
        assert set(vars(parts)) == set(WatchParts.__dataclass_fields__)
        return WatchLoop(
            parts,  # type: ignore[arg-type]
            interval_seconds=1.0,
            clock=lambda: 10_000.0,
            board=board,
        )

    def poll(self, now: float) -> Tick:
        self.call("poll")
        return Tick(now, [Sample(now, "host/a", "host_cpu_percent", 5.0)], [])

    def write(self, samples: Sequence[Sample]) -> int:
        self.call("store")
        self.stored.extend(samples)
        return len(samples)

    def due(self, now: float) -> Iterator[tuple[str, Any]]:
        yield "prune", lambda: self.prune(now)
        yield "compact", self.compact

    def prune(self, now: float) -> None:
        self.call("prune")
        self.pruned.append(now)

    def compact(self) -> None:
        self.compacted += 1

    def analyse(self, now: float, samples: Sequence[Sample], links: Sequence[Link]) -> Any:
        self.call("analyse")
        self.analysed.append(samples)
        return SimpleNamespace(incidents=["open"], changes=[], detections=Detections(now, (), {}))

    def heal(self, now: float, incidents: Any, history: History) -> None:
        self.call("heal")
        self.healed.append(incidents)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Journal(tmp_path / "journal.sqlite"))


def test_a_tick_goes_through_the_house_in_one_direction(world: World) -> None:
    loop = world.loop()
    loop.tick(10_000.0)
    loop.tick(10_001.0)
    assert [sample.entity for sample in world.stored] == [
        "host/a",
        "host/a",
        WATCH_ENTITY,
        WATCH_ENTITY,
    ]
    assert len(world.analysed) == 2
    assert world.healed == [["open"], ["open"]]
    assert world.pruned == [10_000.0, 10_001.0]


def test_a_duty_of_the_store_that_fails_holds_up_no_other(world: World) -> None:
    world.failing = {"prune"}
    world.loop().tick(10_000.0)
    assert world.compacted == 1
    (event,) = world.journal.events(kinds=[EventKind.PART_FAILED])
    assert "prune" in event.summary


@pytest.mark.parametrize("part", ["store", "analyse", "heal"])
def test_one_broken_part_stops_no_other_and_is_told_once(world: World, part: str) -> None:
    world.failing = {part}
    loop = world.loop()
    for now in (10_000.0, 10_001.0, 10_002.0):
        loop.tick(now)
    assert bool(world.stored) == (part != "store")
    assert bool(world.analysed) == (part != "analyse")
    assert bool(world.healed) == (part == "store")
    (event,) = world.journal.events(kinds=[EventKind.PART_FAILED])
    assert part in event.summary


def test_the_status_counts_ticks_and_what_failed_in_them(world: World, tmp_path: Path) -> None:
    path = tmp_path / "watch_status.json"
    loop = world.loop(StatusBoard(path, started_seconds=9_999.0, interval_seconds=1.0))
    world.failing = {"heal", "poll"}
    loop.tick(10_000.0)
    world.failing = {"heal"}
    loop.tick(10_001.0)
    status = read_status(path)
    assert (status.ticks, status.time_seconds) == (2, 10_001.0)
    assert status.part_failures == {"poll": 1, "heal": 1}
    assert status.samples == 1


def test_without_samples_nothing_is_analysed(world: World) -> None:
    world.failing = {"poll"}
    world.loop().tick(10_000.0)
    assert world.analysed == world.healed == []


def test_only_one_watch_loop_writes_to_a_state_directory(tmp_path: Path) -> None:
    second = only_watch(tmp_path)
    with only_watch(tmp_path), pytest.raises(GalenError, match="another watch loop"), second:
        pass
    with only_watch(tmp_path):
        pass
