"""What series looked like around alarms and missed faults, kept in bounded memory while a replay runs.

The newest ticks of all series lie in a ring. When an alarm begins, its series' part of the ring is
taken out and followed until some ticks after the alarm's end. Only so many are kept: those of the
highest scores, and no more than a few of one series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray
from analysis.detection.replaying.alarms import Alarm
from analysis.detection.replaying.judging import LabelledFault
from analysis.detection.states import TickArrays
from collectors.contract import SeriesKey

BEFORE_TICKS = 90
AFTER_TICKS = 45
_MOST_POINTS = 400
"""Points of one trace; of a longer one every other tick is left out, again and again."""
_NAMES = ("observed", "expected", "low", "high", "score")


@dataclass(slots=True)
class Trace:
    """One series around one alarm or missed fault; lists of equal length, NaN where there is nothing."""

    key: SeriesKey
    raised_seconds: float | None
    """When the alarm was raised; None for the nearest miss of a fault."""
    fault: int | None
    """The place of the missed fault among the labels."""
    highest_score: float
    times: list[float] = field(default_factory=list)
    observed: list[float] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class KeptTraces:
    """What a recorder kept; plain data."""

    alarms: Sequence[Trace]
    nearest_misses: Mapping[int, Trace]
    """By the number of the fault among the labels."""
    most: int

    @classmethod
    def joined(cls, parts: Sequence[KeptTraces]) -> KeptTraces:
        """Join those of parts of a fleet: the highest scores of all."""
        most = max(part.most for part in parts)
        alarms = [trace for part in parts for trace in part.alarms]
        alarms.sort(key=lambda trace: -trace.highest_score)
        nearest: dict[int, Trace] = {}
        for part in parts:
            for number, trace in part.nearest_misses.items():
                known = nearest.get(number)
                if known is None or trace.highest_score > known.highest_score:
                    nearest[number] = trace
        return cls(alarms[:most], nearest, most)

    def chosen(self, alarms: Sequence[Alarm], missed: Sequence[int]) -> list[Trace]:
        """Return the traces of these alarms in their order, then those of the missed faults."""
        highest = {(alarm.key, alarm.raised_seconds): alarm.highest_score for alarm in alarms}
        found = []
        for trace in self.alarms:
            score = highest.get((trace.key, trace.raised_seconds or 0.0))
            if score is not None:
                found.append(replace(trace, highest_score=score))
        found.sort(key=lambda trace: (trace.raised_seconds or 0.0, trace.key))
        nearest = (self.nearest_misses.get(number) for number in missed)
        return [*found, *(trace for trace in nearest if trace is not None)]


@dataclass(slots=True)
class _Following:
    """A trace that still grows."""

    trace: Trace
    column: int
    stride: int = 1
    since: int = 0
    left: int | None = None
    """Ticks still to come; None while the alarm is on."""


class TraceRecorder:
    """Keeps what series looked like around their alarms.

    Args:
        faults: labelled faults; of each the series that came nearest to an alarm is kept.
        most: traces of alarms at most; of as many faults the nearest misses are kept.
        most_per_series: of one series.
    """

    def __init__(
        self, faults: Sequence[LabelledFault] = (), *, most: int = 120, most_per_series: int = 3
    ) -> None:
        self._ring = _Ring(BEFORE_TICKS + AFTER_TICKS)
        self._most = most
        self._most_per_series = most_per_series
        self._following: dict[SeriesKey, _Following] = {}
        self._kept: list[Trace] = []
        self._misses = [_NearestMiss(at, fault) for at, fault in enumerate(faults[:most])]

    def take(
        self,
        now: float,
        arrays: TickArrays,
        keys: Sequence[SeriesKey],
        begun: Sequence[Alarm],
        ended: Sequence[Alarm],
    ) -> None:
        """Note one tick and the alarms that began and ended with it.

        Args:
            now: the time of the tick.
            arrays: its result.
            keys: the series of the columns of ``arrays``.
            begun: alarms whose first tick this is.
            ended: alarms whose last tick was before.
        """
        newest = self._ring.push(now, arrays)
        for alarm in ended:
            if following := self._following.get(alarm.key):
                following.left = AFTER_TICKS
                following.trace.highest_score = alarm.highest_score
        for key in list(self._following):
            self._follow(key, now, newest)
        index: dict[SeriesKey, int] = {}
        if begun:
            wanted = {alarm.key for alarm in begun}
            index = {key: column for column, key in enumerate(keys) if key in wanted}
        for alarm in begun:
            self._begin(alarm, index[alarm.key])
        for miss in self._misses:
            miss.take(now, newest[_NAMES.index("score")], keys, self._ring)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the columns where ``kept`` is false; what was followed is closed."""
        self._kept += [following.trace for following in self._following.values()]
        self._following.clear()
        self._ring.keep(kept)
        for miss in self._misses:
            miss.forget_columns()

    def kept(self) -> KeptTraces:
        """Return what has been kept so far, without the ring."""
        open_ones = [following.trace for following in self._following.values()]
        nearest = {miss.number: miss.finish(self._ring) for miss in self._misses}
        return KeptTraces(
            [*self._kept, *open_ones],
            {number: trace for number, trace in nearest.items() if trace is not None},
            self._most,
        )

    def _begin(self, alarm: Alarm, column: int) -> None:
        if alarm.key in self._following:
            # It comes back while what came after its last alarm is still drawn: one picture.
            self._following[alarm.key].left = None
            return
        if not self._has_room(alarm):
            return
        trace = Trace(alarm.key, alarm.raised_seconds, None, alarm.highest_score)
        self._ring.copy(column, trace, BEFORE_TICKS)
        self._following[alarm.key] = _Following(trace, column)

    def _has_room(self, alarm: Alarm) -> bool:
        if sum(trace.key == alarm.key for trace in self._kept) >= self._most_per_series:
            return False
        if len(self._kept) + len(self._following) < self._most:
            return True
        lowest = min(self._kept, key=lambda trace: trace.highest_score, default=None)
        if lowest is None or lowest.highest_score >= alarm.highest_score:
            return False
        self._kept.remove(lowest)
        return True

    def _follow(self, key: SeriesKey, now: float, newest: FloatArray) -> None:
        following = self._following[key]
        following.since += 1
        if following.since >= following.stride:
            following.since = 0
            _append(following.trace, now, newest[:, following.column])
            if len(following.trace.times) > _MOST_POINTS:
                _thin(following.trace)
                following.stride *= 2
        if following.left is not None:
            following.left -= 1
            if following.left <= 0:
                self._kept.append(self._following.pop(key).trace)


class _Ring:
    """The newest ticks of all series: ``[ticks, 5, series]`` and their times."""

    def __init__(self, ticks: int) -> None:
        self._ticks = ticks
        self._times = np.full(ticks, np.nan)
        self._values = np.full((ticks, len(_NAMES), 0), np.nan)
        self._count = 0

    def push(self, now: float, arrays: TickArrays) -> FloatArray:
        """Add a tick and return it ``[5, series]``."""
        width = len(arrays.score)
        if width > self._values.shape[2]:
            grown = np.full((self._ticks, len(_NAMES), max(width, 64)), np.nan)
            grown[:, :, : self._values.shape[2]] = self._values
            self._values = grown
        place = self._count % self._ticks
        newest: FloatArray = self._values[place]
        newest[:] = np.nan
        # What a series said earlier is drawn where it said it.
        newest[0, :width] = np.where(arrays.age_seconds <= 0.0, arrays.observed, np.nan)
        newest[1, :width] = arrays.expected
        newest[2, :width] = arrays.low
        newest[3, :width] = arrays.high
        newest[4, :width] = arrays.score
        self._times[place] = now
        self._count += 1
        return newest

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the columns where ``kept`` is false."""
        self._values = self._values[:, :, : len(kept)][:, :, kept]

    def copy(self, column: int, trace: Trace, ticks: int) -> None:
        """Append the newest ticks of one series to a trace."""
        held = min(self._count, self._ticks, ticks + 1)
        for number in range(self._count - held, self._count):
            place = number % self._ticks
            _append(trace, float(self._times[place]), self._values[place, :, column])


class _NearestMiss:
    """Of one labelled fault the concerned series that scored highest, and what it looked like."""

    def __init__(self, number: int, fault: LabelledFault) -> None:
        self.number = number
        self._fault = fault
        self._concerned: NDArray[np.bool_] = np.empty(0, dtype=bool)
        self._keys: Sequence[SeriesKey] = ()
        self._best: tuple[float, int] | None = None
        self._wait = 0
        self._trace: Trace | None = None

    def take(self, now: float, score: FloatArray, keys: Sequence[SeriesKey], ring: _Ring) -> None:
        if self._wait:
            self._wait -= 1
            if not self._wait:
                self._snap(ring)
        if not self._fault.start_seconds <= now <= self._fault.end_seconds:
            return
        if len(keys) > len(self._concerned):
            self._keys = keys
            self._concerned = np.array([self._fault.concerns(key) for key in keys], dtype=bool)
        scores = np.where(self._concerned, np.nan_to_num(score[: len(self._concerned)]), -1.0)
        column = int(np.argmax(scores)) if len(scores) else -1
        if column >= 0 and scores[column] > (-0.5 if self._best is None else self._best[0]):
            self._best = (float(scores[column]), column)
            self._wait = AFTER_TICKS

    def forget_columns(self) -> None:
        """Columns have moved: what was nearest is kept as far as it was seen."""
        self._concerned = np.empty(0, dtype=bool)
        self._best, self._wait = (None if self._best is None else (self._best[0], -1)), 0

    def finish(self, ring: _Ring) -> Trace | None:
        if self._wait:
            self._snap(ring)
        return self._trace

    def _snap(self, ring: _Ring) -> None:
        if self._best is None or self._best[1] < 0:
            return
        score, column = self._best
        self._trace = Trace(self._keys[column], None, self.number, score)
        ring.copy(column, self._trace, BEFORE_TICKS + AFTER_TICKS - 1)


def _append(trace: Trace, now: float, values: FloatArray) -> None:
    trace.times.append(now)
    for name, value in zip(_NAMES, values, strict=True):
        getattr(trace, name).append(float(value))


def _thin(trace: Trace) -> None:
    for name in ("times", *_NAMES):
        setattr(trace, name, getattr(trace, name)[::2])
