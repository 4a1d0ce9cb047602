"""Lines thin enough to draw: few points, every spike, and a gap where there was no data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tsdownsample
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

MAX_POINTS = 1000

_GAP_CADENCES = 4.0
"""A silence of this many times the usual distance between samples is a gap: three were missed."""

_MAX_GAPS = 100
"""Of more gaps than this the longest are drawn; the eye cannot tell more on one panel."""


@dataclass(frozen=True, slots=True)
class Line:
    """A series to draw: ``times`` in seconds since the epoch and ``values``; NaN breaks the line."""

    times: FloatArray
    values: FloatArray

    @property
    def last(self) -> float | None:
        """Return the newest value, None for a line without points."""
        present = self.values[np.isfinite(self.values)]
        return float(present[-1]) if present.size else None


def thin(times: FloatArray, values: FloatArray, *, max_points: int = MAX_POINTS) -> Line:
    """Reduce a series ``[n]``, sorted by time, to at most ``max_points`` and mark its gaps.

    MinMaxLTTB keeps the shape and every one-sample spike (Van Der Donckt et al., "MinMaxLTTB:
    Leveraging MinMax-Preselection to Scale LTTB", 2023).
    """
    if len(times) < 2:
        return Line(times, values)
    steps = np.diff(times)
    gaps = np.flatnonzero(steps > _GAP_CADENCES * np.median(steps)) + 1
    if len(gaps) > _MAX_GAPS:
        gaps = np.sort(gaps[np.argsort(steps[gaps - 1])[-_MAX_GAPS:]])
    budget = max_points - 3 * len(gaps)
    if len(times) > budget:
        kept = tsdownsample.MinMaxLTTBDownsampler().downsample(  # type: ignore[no-untyped-call]
            times, values, n_out=budget
        )
        # The samples beside a gap stay, so that it begins and ends where it did.
        indices = np.unique(np.concatenate([kept.astype(np.int64), gaps, gaps - 1]))
    else:
        indices = np.arange(len(times))
    places = np.searchsorted(indices, gaps)
    breaks = (times[gaps - 1] + times[gaps]) / 2
    return Line(
        np.insert(times[indices], places, breaks), np.insert(values[indices], places, np.nan)
    )
