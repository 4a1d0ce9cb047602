"""Counting samples into buckets of time: lowest, highest, mean and count of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collectors.store.columns import Columns, FloatArray, IntArray, joined, settled

_SHIFT = 32
_OFFSET = 2**31
"""Bucket numbers are below it in size: minutes of the year 5138 are 1.7e9."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Buckets ``[m]`` of one length, each of one series, sorted by ``keys``."""

    keys: IntArray
    """Series number and bucket number in one; see :func:`key_of`."""
    count: IntArray
    low: FloatArray
    high: FloatArray
    mean: FloatArray

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def empty(cls) -> Buckets:
        """Return none."""
        none = np.empty(0)
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), none, none, none)

    @property
    def series(self) -> IntArray:
        """The series numbers."""
        return self.keys >> _SHIFT

    @property
    def numbers(self) -> IntArray:
        """The bucket numbers: time since the epoch divided by the bucket's length."""
        numbers: IntArray = (self.keys & (2**_SHIFT - 1)) - _OFFSET
        return numbers

    def where(self, chosen: NDArray[Any] | slice) -> Buckets:
        """Return the chosen buckets: a mask, places, or a slice."""
        return Buckets(
            self.keys[chosen], self.count[chosen], self.low[chosen], self.high[chosen],
            self.mean[chosen],
        )  # fmt: skip

    def count_at(self, keys: IntArray) -> IntArray:
        """Return the count of each of some buckets; 0 where there is none."""
        places, known = _find(self.keys, keys)
        counts = np.zeros(len(keys), np.int64)
        counts[known] = self.count[places[known]]
        return counts


def key_of(series: IntArray | int, numbers: IntArray | int) -> Any:
    """Return the sortable key of buckets."""
    return (series << _SHIFT) | (numbers + _OFFSET)


def put_together(parts: list[Buckets]) -> Buckets:
    """Sort buckets by their keys."""
    keys = np.concatenate([part.keys for part in parts])
    order = np.argsort(keys)
    return Buckets(
        keys[order],
        np.concatenate([part.count for part in parts])[order],
        np.concatenate([part.low for part in parts])[order],
        np.concatenate([part.high for part in parts])[order],
        np.concatenate([part.mean for part in parts])[order],
    )


def bucketed(samples: Columns, milliseconds: int) -> Buckets:
    """Count samples, sorted by series and time, into buckets of a length."""
    if not len(samples):
        return Buckets.empty()
    keys = key_of(samples.series, samples.times // milliseconds)
    counts = np.ones(len(keys), np.int64)
    return _reduced(keys, counts, samples.values, samples.values, samples.values)


def coarser(buckets: Buckets, factor: int) -> Buckets:
    """Put every ``factor`` adjoining buckets into one."""
    if factor == 1 or not len(buckets):
        return buckets
    keys = key_of(buckets.series, buckets.numbers // factor)
    return _reduced(keys, buckets.count, buckets.low, buckets.high, buckets.mean)


def refreshed(stored: Buckets, before: Columns, late: Columns, milliseconds: int) -> Buckets:
    """Return stored buckets after samples came to them.

    A bucket whose samples are all still there is counted anew, so that a sample that replaces another
    is not counted twice. Where they are gone, the new samples are added to what is known.

    Args:
        stored: the buckets as they were.
        before: the samples that are still there, sorted by series and time.
        late: what came, sorted by series and time.
        milliseconds: the length of a bucket.
    """
    whole = bucketed(settled(joined([before, late])), milliseconds)
    if not len(stored):
        return whole
    came = bucketed(late, milliseconds)
    known = stored.count_at(came.keys)
    complete = (known == 0) | (known == bucketed(before, milliseconds).count_at(came.keys))
    anew = whole.where(np.isin(whole.keys, came.keys[complete]))
    added_to = came.where(~complete)
    return put_together(
        [
            stored.where(~np.isin(stored.keys, came.keys)),
            anew,
            _added(stored.where(np.isin(stored.keys, added_to.keys)), added_to),
        ]
    )


def _added(stored: Buckets, came: Buckets) -> Buckets:
    """Put pairs of buckets of the same keys together."""
    if not len(stored):
        return stored
    both = put_together([stored, came])
    return _reduced(both.keys, both.count, both.low, both.high, both.mean)


def _reduced(
    keys: IntArray, count: IntArray, low: FloatArray, high: FloatArray, mean: FloatArray
) -> Buckets:
    """Put neighbours of the same key together."""
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    counts = np.add.reduceat(count, starts)
    lows, highs = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
    # Sums of values near the largest number overflow; the middle of the extremes is as good there.
    with np.errstate(over="ignore", invalid="ignore"):
        means = np.add.reduceat(mean * count, starts) / counts
    # Rounding must not put the mean of equal values beside them.
    means = np.where(np.isfinite(means), np.clip(means, lows, highs), lows / 2 + highs / 2)
    return Buckets(keys[starts], counts, lows, highs, means)


def _find(keys: IntArray, wanted: IntArray) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    places = np.searchsorted(keys, wanted)
    known = places < len(keys)
    known[known] = keys[places[known]] == wanted[known]
    return places, known
