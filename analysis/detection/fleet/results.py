"""What comes back from a shard, small enough for any network, and what a whole run found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from analysis.detection.backtest import Replayed
from analysis.detection.replaying.alarms import Alarm
from collectors.contract import SeriesKey


class SeriesSummary(NamedTuple):
    """What the scores of one series were."""

    key: SeriesKey
    values: int
    """Ticks at which it had a value."""
    anomalous_ticks: int
    """Ticks at which the alert policy held it for anomalous."""
    highest_score: float
    highest_at_seconds: float | None
    """The first tick with that score; None where nothing could be said."""
    realised_tail_rate: float
    """Share of its normal values that scored above 1; NaN where there were none."""
    digest: str
    """Of all its scores: equal digests are equal scores, bit for bit."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Where the time of a shard went, in seconds."""

    reading: float = 0.0
    reading_busy: float = 0.0
    """The part of reading that this process computed; the rest it waited."""
    fitting: float = 0.0
    scoring: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.reading + self.fitting + self.scoring

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.reading + other.reading,
            self.reading_busy + other.reading_busy,
            self.fitting + other.fitting,
            self.scoring + other.scoring,
        )


@dataclass(frozen=True, slots=True)
class ShardResult:
    """One shard, scored."""

    number: int
    series: tuple[SeriesSummary, ...]
    alarms: tuple[Alarm, ...]
    ticks: int
    shapes: int
    """Series for which a seasonal shape was fitted."""
    spent: Spent
    worker: str
    """Host and process."""
    notes: tuple[str, ...] = ()
    """Why what was read is incomplete, such as a partial answer."""
    replayed: Replayed | None = None
    """What a backtest asked for in place of series and alarms; None also where nothing was stored."""


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """One shard that could not be scored, and why."""

    number: int
    entities: tuple[str, ...]
    error: str
    fix: str
    worker: str


@dataclass(frozen=True)
class FleetResult:
    """A run over all shards."""

    done: Sequence[ShardResult]
    """In the order of the shards."""
    failed: Sequence[ShardFailure] = ()
    seconds: float = 0.0
    lost_workers: int = 0
    stopped: bool = False
    """Whether somebody asked to stop before all shards were scored."""
    spent: Spent = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spent", sum((one.spent for one in self.done), Spent()))

    @property
    def ticks(self) -> int:
        """The ticks of each shard; all have the same."""
        return max((one.ticks for one in self.done), default=0)

    def alarms(self) -> list[Alarm]:
        """Return all alarms by the time at which they were raised."""
        alarms = (alarm for one in self.done for alarm in one.alarms)
        return sorted(alarms, key=lambda alarm: (alarm.raised_seconds, alarm.key))

    def notes(self) -> list[str]:
        """Return each reason once why what was read is incomplete."""
        return list(dict.fromkeys(note for one in self.done for note in one.notes))

    def replays(self) -> list[Replayed]:
        """Return what a backtest asked for, shard by shard."""
        return [one.replayed for one in self.done if one.replayed is not None]

    def digest(self) -> str:
        """Return a digest of all scores: equal where every series has the same, bit for bit."""
        whole = hashlib.blake2b(digest_size=16)
        for one in sorted(self.series(), key=lambda one: one.key):
            whole.update(f"{one.key.entity} {one.key.signal} {one.digest}\n".encode())
        return whole.hexdigest()

    def series(self) -> Iterator[SeriesSummary]:
        """Yield every series that had a sample, shard by shard."""
        for one in self.done:
            yield from one.series
