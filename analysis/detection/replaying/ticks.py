"""From stored samples to the ticks that the live pipeline would have seen, in bounded memory.

History comes in chunks of time. A sample belongs to the first tick that is not before it: the watch
loop's own where it left samples of itself, else the end of the usual step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray
from collectors.contract import SeriesKey

COLUMNS = ("time", "entity", "signal", "value")
_OWN_TICK_WITHIN_SECONDS = 60.0
"""A tick of the watch loop that is later than this has not seen the sample: the loop stood still."""
_LONGEST_SILENCE_SECONDS = 3600.0
"""Empty ticks are replayed for this long; a longer silence is a pause of the watch itself."""


_SAME_TICK = 1e-4
"""Share of a step by which a sample may seem to be after its tick: times are floating point."""


class TickRows:
    """Cuts chunks of history into ticks and lays each into a row ``[series]``.

    It names the series as :class:`analysis.history.History` does, so that the pipeline can read it.
    No object is made a sample: a replay is as fast as the pipeline.

    Args:
        start_seconds: where the grid of ticks begins.
        step_seconds: the distance of ticks; None takes the usual distance of times in the first chunk.
        watch_entity: whose samples say when the watch loop ticked.
        steady: tick at every step from the first sample up to where history has been read, however
            long nothing comes: somebody else of the fleet speaks meanwhile.
    """

    def __init__(
        self,
        start_seconds: float,
        *,
        step_seconds: float | None = None,
        watch_entity: str | None = None,
        steady: bool = False,
    ) -> None:
        self._start = start_seconds
        self._steady = steady
        self._step = step_seconds
        self._watch = watch_entity
        self._columns: dict[SeriesKey, int] = {}
        self._waiting = _Samples.nothing()
        self._last_own = -np.inf
        self._last_tick = np.nan
        self._width = 0

    @property
    def keys(self) -> Sequence[SeriesKey]:
        """Every series seen, in the order of first sight; the position is the column."""
        return tuple(self._columns)

    @property
    def layout(self) -> int:
        """Columns mean the same series for the whole replay."""
        return 0

    @property
    def step_seconds(self) -> float:
        """The distance of ticks where the watch loop does not say; NaN before the first sample."""
        return np.nan if self._step is None else self._step

    def labels(self, _key: SeriesKey) -> Mapping[str, str]:
        """Return no labels: tables of samples have none."""
        return MappingProxyType({})

    def take(self, frame: pd.DataFrame, until_seconds: float) -> Iterator[tuple[float, FloatArray]]:
        """Yield the ticks that are whole once all samples before ``until_seconds`` are known.

        Args:
            frame: the samples since the last call, sorted by time.
            until_seconds: up to where history has been read; infinity after the last chunk.

        Yields:
            The time of a tick and its row ``[series]``, NaN where nothing came.
        """
        samples = self._waiting.plus(self._numbered(frame))
        if len(samples.times):
            if self._step is None:
                self._step = _usual_step(samples.times)
            ticks = self._ticks_of(samples, until_seconds)
            ripe = int(np.searchsorted(ticks, until_seconds, side="left"))
            self._waiting = samples.after(ripe)
            if ripe:
                yield from self._rows(samples.before(ripe), ticks[:ripe])
        if self._steady and np.isfinite(until_seconds):
            yield from self._silence(until_seconds)

    def _numbered(self, frame: pd.DataFrame) -> _Samples:
        """Return a frame's samples with the column of each; new series are numbered as they come."""
        entities, entity_names = pd.factorize(frame["entity"])
        signals, signal_names = pd.factorize(frame["signal"])
        pairs = entities.astype(np.int64) * max(len(signal_names), 1) + signals
        codes, distinct = pd.factorize(pairs)
        columns = np.empty(len(distinct), dtype=np.int64)
        for place, pair in enumerate(distinct):
            entity, signal = divmod(int(pair), len(signal_names))
            key = SeriesKey(str(entity_names[entity]), str(signal_names[signal]))
            columns[place] = self._columns.setdefault(key, len(self._columns))
        of_sample = columns[codes] if len(codes) else np.empty(0, dtype=np.int64)
        own = np.zeros(len(frame), dtype=bool)
        if self._watch is not None and len(frame):
            own = np.asarray(entity_names == self._watch)[entities]
        times = frame["time"].to_numpy(dtype=float)
        return _Samples(times, of_sample, frame["value"].to_numpy(dtype=float), own)

    def _ticks_of(self, samples: _Samples, until_seconds: float) -> FloatArray:
        """Return the tick ``[samples]`` of each; infinity where that is not known yet."""
        times, step = samples.times, self.step_seconds
        grid = self._start + np.ceil((times - self._start) / step - _SAME_TICK) * step
        if self._watch is None:
            return grid
        own = np.unique(times[samples.own])
        if not len(own) and not np.isfinite(self._last_own):
            return grid
        within = max(_OWN_TICK_WITHIN_SECONDS, 4.0 * step)
        own = _with_first_ticks(own, times, self._last_own, within)
        following = np.append(own, np.inf)[np.searchsorted(own, times)]
        # Without a tick so far, the next chunk may still bring one that was in time.
        open_end = np.isinf(following) & (times + within > until_seconds)
        after_end = np.isinf(following) & np.isinf(until_seconds)
        ticks = np.where(following - times <= within, following, grid)
        ticks = np.where(open_end | after_end, np.inf, ticks)
        if len(own):
            self._last_own = float(own[-1])
        return np.maximum.accumulate(ticks)

    def _rows(self, samples: _Samples, ticks: FloatArray) -> Iterator[tuple[float, FloatArray]]:
        numbers, first = np.unique(ticks, return_index=True)
        bounds = np.append(first, len(ticks))
        known = np.maximum.accumulate(samples.columns) + 1
        for now, (begin, end) in zip(numbers, itertools.pairwise(bounds), strict=True):
            yield from self._silence(float(now))
            self._width = max(int(known[end - 1]), self._width)
            row = np.full(self._width, np.nan)
            # Where a series has several samples in a tick the newest one stands, as in live.
            row[samples.columns[begin:end]] = samples.values[begin:end]
            self._last_tick = float(now)
            yield float(now), row

    def _silence(self, until_seconds: float) -> Iterator[tuple[float, FloatArray]]:
        """Yield the ticks without a sample before this one, as they would have run."""
        step = self.step_seconds
        if not np.isfinite(self._last_tick) or np.isfinite(self._last_own):
            return
        last, missing = self._last_tick, round((until_seconds - self._last_tick) / step) - 1
        if not self._steady:
            missing = min(missing, int(_LONGEST_SILENCE_SECONDS / step))
        for number in range(1, missing + 1):
            self._last_tick = last + number * step
            yield self._last_tick, np.full(self._width, np.nan)


class _Samples:
    """Samples as arrays ``[samples]``, sorted by time."""

    def __init__(
        self,
        times: FloatArray,
        columns: NDArray[np.int64],
        values: FloatArray,
        own: NDArray[np.bool_],
    ) -> None:
        self.times, self.columns, self.values, self.own = times, columns, values, own

    @classmethod
    def nothing(cls) -> _Samples:
        return cls(np.empty(0), np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=bool))

    def plus(self, other: _Samples) -> _Samples:
        return _Samples(
            np.concatenate((self.times, other.times)),
            np.concatenate((self.columns, other.columns)),
            np.concatenate((self.values, other.values)),
            np.concatenate((self.own, other.own)),
        )

    def before(self, place: int) -> _Samples:
        return self._part(slice(None, place))

    def after(self, place: int) -> _Samples:
        return self._part(slice(place, None))

    def _part(self, part: slice) -> _Samples:
        return _Samples(self.times[part], self.columns[part], self.values[part], self.own[part])


def _with_first_ticks(
    own: FloatArray, times: FloatArray, last_own: float, within_seconds: float
) -> FloatArray:
    """Add each start's first tick, which has no sample of itself: it tells of a tick before it."""
    previous = np.concatenate(([last_own], own[:-1]))
    starts = own[own - previous > within_seconds]
    before = np.searchsorted(times, starts) - 1
    first, starts = times[before[before >= 0]], starts[before >= 0]
    return np.union1d(own, first[(first > last_own) & (starts - first <= within_seconds)])


def _usual_step(times: FloatArray) -> float:
    distinct = np.unique(times)
    return float(np.median(np.diff(distinct))) if len(distinct) > 1 else 1.0
