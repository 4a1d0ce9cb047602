"""The recent past in memory: one ring of values a series, aligned to ticks.

Detection and diagnosis read it; only the watch loop writes it. A value that did not arrive is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from collectors.contract import Sample, SeriesKey

FloatArray = NDArray[np.float64]

_FORGET_SECONDS = 3600.0
_LEAST_TICKS_BETWEEN_LOOKS = 256


class History:
    """A matrix ``[capacity_ticks, series]`` used as a ring, with the times of its rows.

    A series of which the ring holds nothing any more is forgotten, an hour after its last sample at
    the earliest; the columns of the others then close up.
    """

    def __init__(self, *, capacity_ticks: int = 1800) -> None:
        if capacity_ticks < 2:
            raise ValueError(f"capacity_ticks must be at least 2, got {capacity_ticks}")
        self._capacity = capacity_ticks
        self._times = np.full(capacity_ticks, np.nan)
        self._values = np.full((capacity_ticks, 64), np.nan)
        self._index: dict[SeriesKey, int] = {}
        self._labels: dict[SeriesKey, Mapping[str, str]] = {}
        self._last_seen: dict[SeriesKey, float] = {}
        self._ticks = 0
        self._layout = 0

    @property
    def layout(self) -> int:
        """Another number whenever series have been forgotten, so that columns mean others."""
        return self._layout

    @property
    def nbytes(self) -> int:
        """How many bytes the values take."""
        return self._values.nbytes + self._times.nbytes

    @property
    def keys(self) -> Sequence[SeriesKey]:
        """Every series seen, in the order of first sight; the position is the column."""
        return tuple(self._index)

    @property
    def ticks(self) -> int:
        """How many ticks have been appended since the start."""
        return self._ticks

    def append(self, now_seconds: float, samples: Iterable[Sample]) -> FloatArray:
        """Add one tick and return its row ``[series]``; a series without a sample is NaN in it."""
        if self._ticks % max(self._capacity, _LEAST_TICKS_BETWEEN_LOOKS) == 0 and self._ticks:
            self._forget(now_seconds)
        row = self._ticks % self._capacity
        self._values[row, :] = np.nan
        self._times[row] = now_seconds
        for sample in samples:
            key = SeriesKey(sample.entity, sample.signal)
            column = self._column(key)
            self._values[row, column] = sample.value
            self._labels[key] = sample.labels
            self._last_seen[key] = now_seconds
        self._ticks += 1
        return self._values[row, : len(self._index)].copy()

    def window(
        self, key: SeriesKey, start_seconds: float, end_seconds: float
    ) -> tuple[FloatArray, FloatArray]:
        """Return the times and values of one series with ``start <= time < end``, oldest first."""
        column = self._index.get(key)
        rows = self._rows(start_seconds, end_seconds)
        if column is None:
            return self._times[rows], np.full(len(rows), np.nan)
        return self._times[rows], self._values[rows, column]

    def matrix(self, start_seconds: float, end_seconds: float) -> tuple[FloatArray, FloatArray]:
        """Return times ``[ticks]`` and values ``[ticks, series]`` with ``start <= time < end``."""
        rows = self._rows(start_seconds, end_seconds)
        return self._times[rows], self._values[rows][:, : len(self._index)]

    def latest(self, key: SeriesKey, *, max_age_seconds: float) -> float | None:
        """Return the newest value of a series that is not older than ``max_age_seconds``."""
        if not self._ticks or key not in self._index:
            return None
        now = self._times[(self._ticks - 1) % self._capacity]
        _, values = self.window(key, now - max_age_seconds, np.inf)
        present = values[np.isfinite(values)]
        return float(present[-1]) if present.size else None

    def last_seen_seconds(self, key: SeriesKey) -> float | None:
        """Return when a series last had a sample."""
        return self._last_seen.get(key)

    def labels(self, key: SeriesKey) -> Mapping[str, str]:
        """Return the labels of a series' newest sample."""
        return self._labels.get(key, MappingProxyType({}))

    def _forget(self, now_seconds: float) -> None:
        """Drop the series that are in no row of the ring."""
        oldest = float(np.nanmin(self._times))
        before = min(oldest, now_seconds - _FORGET_SECONDS)
        kept = [key for key in self._index if self._last_seen[key] >= before]
        if len(kept) == len(self._index):
            return
        columns = [self._index[key] for key in kept]
        self._values = self._values[:, columns]
        self._index = {key: column for column, key in enumerate(kept)}
        self._labels = {key: self._labels[key] for key in kept}
        self._last_seen = {key: self._last_seen[key] for key in kept}
        self._layout += 1

    def _column(self, key: SeriesKey) -> int:
        column = self._index.get(key)
        if column is None:
            column = self._index[key] = len(self._index)
            wide = self._values.shape[1]
            if column >= wide:
                # Room for an eighth more, and no twice as much: this is most of Galen's memory.
                grown = np.full((self._capacity, wide + max(wide // 8, 64)), np.nan)
                grown[:, :wide] = self._values
                self._values = grown
        return column

    def _rows(self, start_seconds: float, end_seconds: float) -> NDArray[np.int64]:
        count = min(self._ticks, self._capacity)
        rows = (np.arange(self._ticks - count, self._ticks) % self._capacity).astype(np.int64)
        times = self._times[rows]
        return rows[(times >= start_seconds) & (times < end_seconds)]
