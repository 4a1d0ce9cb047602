"""Samples as columns, the form in which they are stored, merged and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

MINUTE_MILLISECONDS = 60_000
HOUR_MILLISECONDS = 3_600_000
_PACKED_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Columns:
    """Samples ``[n]``: series number, time in milliseconds since the epoch, value."""

    series: IntArray
    times: IntArray
    values: FloatArray

    def __len__(self) -> int:
        return len(self.times)

    @classmethod
    def empty(cls) -> Columns:
        """Return none."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))

    def where(self, chosen: NDArray[Any] | slice) -> Columns:
        """Return the chosen samples: a mask, places, or a slice."""
        return Columns(self.series[chosen], self.times[chosen], self.values[chosen])

    def groups(self, period: int) -> Iterator[tuple[int, int, slice]]:
        """Yield ``(series, slot, places)`` of samples that are sorted by series and time.

        A slot is a period of time since the epoch, in milliseconds, by its number.
        """
        if not len(self):
            return
        slots = self.times // period
        edges = np.flatnonzero((np.diff(self.series) != 0) | (np.diff(slots) != 0)) + 1
        starts = np.concatenate(([0], edges))
        ends = np.append(edges, len(self))
        for series, slot, start, end in zip(
            self.series[starts].tolist(), slots[starts].tolist(), starts.tolist(), ends.tolist(),
            strict=True,
        ):  # fmt: skip
            yield series, slot, slice(start, end)


def joined(parts: Iterable[Columns]) -> Columns:
    """Put columns one behind the other."""
    given = [part for part in parts if len(part)]
    if not given:
        return Columns.empty()
    if len(given) == 1:
        return given[0]
    return Columns(
        np.concatenate([part.series for part in given]),
        np.concatenate([part.times for part in given]),
        np.concatenate([part.values for part in given]),
    )


def settled(log: Columns) -> Columns:
    """Sort by series and time; of samples of one series at one time the last one stays."""
    return log.where(settled_places(log.series, log.times))


def settled_places(major: IntArray, minor: IntArray) -> NDArray[np.intp]:
    """Return the places that sort by two columns; of equal ones only the last is among them."""
    order = sorted_places(major, minor)
    last = np.ones(len(order), bool)
    last[:-1] = np.diff(major[order]) != 0
    last[:-1] |= np.diff(minor[order]) != 0
    return order if last.all() else order[last]


def without(samples: Columns, others: Columns) -> Columns:
    """Leave out samples whose series has another one at that time; both are settled."""
    if not len(samples) or not len(others):
        return samples
    both = joined([samples, others])
    order = np.lexsort((both.times, both.series))  # stable: a sample stands before its other
    twice = (np.diff(both.series[order]) == 0) & (np.diff(both.times[order]) == 0)
    keep = np.ones(len(both), bool)
    keep[order[:-1][twice]] = False
    return samples.where(keep[: len(samples)])


def sorted_places(major: IntArray, minor: IntArray) -> NDArray[np.intp]:
    """Return the places ``[n]`` that sort by two columns; equal ones keep their order."""
    if not len(major):
        return np.empty(0, np.intp)
    low, span = int(minor.min()), int(minor.max()) - int(minor.min()) + 1
    base, heights = int(major.min()), int(major.max()) - int(major.min()) + 1
    if heights >= _PACKED_LIMIT // span:
        return np.lexsort((minor, major))
    packed = (major - base) * span + (minor - low)
    # The default sort uses vector instructions and is several times as fast as the stable one, which
    # only duplicates need.
    order = np.argsort(packed)
    in_order = packed[order]
    if (in_order[1:] == in_order[:-1]).any():
        return np.argsort(packed, kind="stable")
    return order
