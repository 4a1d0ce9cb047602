"""Calibration: scores above 1 on normal data come at a known rate.

Two forms of the same idea. Live, :class:`TailTracker` follows the quantile of each series' own recent
normal scores by online subgradient steps (Gibbs and Candes, "Adaptive Conformal Inference", NeurIPS
2021; Angelopoulos et al., "Conformal PID Control", NeurIPS 2023): its realised rate tends to the
nominal one whatever the distribution is. Off line, :func:`conformal_threshold` takes the finite-sample
quantile of held-out training scores.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray

_STEP = 0.15
"""How far one score above its limit moves the limit, as a share of it: bursts of up to three normal
outliers raise it by half, and 1 / rate normal values in a row lower it by the same share."""
_HIGHEST = 3.0
"""A limit never rises beyond this, so that no series becomes deaf."""


class TailTracker:
    """A factor ``[series]`` of at least 1 by which raw scores are divided."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._columns = Columns(limit=1.0, above=0.0, seen=0.0)

    @property
    def limit(self) -> FloatArray:
        """The present factor of each series."""
        limit: FloatArray = self._columns["limit"]
        return limit

    def grow(self, count: int) -> None:
        """Add series."""
        self._columns.grow(count)

    def update(self, raw: FloatArray, learn: NDArray[np.bool_]) -> None:
        """Learn from raw scores ``[series]`` of values that are taken for normal."""
        taken = learn & np.isfinite(raw)
        limit = self._columns["limit"]
        above = taken & (raw > limit)
        step = _STEP * (above - self._rate * taken)
        np.clip(limit * (1.0 + step), 1.0, _HIGHEST, out=limit)
        self._columns["above"][:] += above
        self._columns["seen"][:] += taken

    def add_dismissed(self, values: FloatArray) -> None:
        """Learn of values ``[series]`` above 1, by number, that turned out to be normal after all."""
        limit = self._columns["limit"]
        np.clip(limit * (1.0 + _STEP) ** values, 1.0, _HIGHEST, out=limit)
        self._columns["above"][:] += values
        self._columns["seen"][:] += values

    def realised_rate(self) -> FloatArray:
        """Return the share of normal values that scored above 1; NaN where none was seen."""
        seen = self._columns["seen"]
        nothing = np.full(len(seen), np.nan)
        rates: FloatArray = np.divide(self._columns["above"], seen, out=nothing, where=seen > 0)
        return rates

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        return {f"tail_{name}": array for name, array in self._columns.state().items()}

    def check(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise ValueError where a state does not fit."""
        self._columns.check(_without_prefix(state))

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state; raises ValueError and changes nothing where it does not fit."""
        self._columns.restore(_without_prefix(state))


def _without_prefix(state: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    return {name[5:]: array for name, array in state.items() if name.startswith("tail_")}


def conformal_threshold(scores: FloatArray, rate: float) -> float:
    """Return the score that at most a share ``rate`` of exchangeable normal scores exceeds.

    The finite-sample quantile ``ceil((n + 1)(1 - rate)) / n`` of split conformal prediction (Vovk,
    2005). Where the sample is too small for the rate, the largest score is returned.

    Args:
        scores: ``[n]`` normal scores; values that are not finite are left out.
        rate: the nominal share of normal scores above the threshold, between 0 and 1.

    Raises:
        ValueError: when no score is finite.
    """
    finite = np.sort(scores[np.isfinite(scores)])
    if not finite.size:
        raise ValueError("a threshold needs at least one finite score")
    rank = int(np.ceil((finite.size + 1) * (1.0 - rate)))
    return float(finite[min(rank, finite.size) - 1])
