"""Calibration: scores above 1 on normal data come at a known rate.

Two forms of the same idea. Live, :class:`TailTracker` follows the quantile of each series' own recent
normal scores by online subgradient steps (Gibbs and Candes, "Adaptive Conformal Inference", NeurIPS
2021; Angelopoulos et al., "Conformal PID Control", NeurIPS 2023): its realised rate tends to the
nominal one whatever the distribution is. Off line, :func:`conformal_threshold` takes the finite-sample
quantile of held-out training scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray, Realised

_RECENT_ALARMS = 20.0
"""The realised rate of late is over so many values that this many of them should be above 1."""
_STEP = 0.15
"""How far one score above its limit moves the limit, as a share of it: bursts of up to three normal
outliers raise it by half, and 1 / rate normal values in a row lower it by the same share."""
_HIGHEST = 3.0
"""A limit never rises beyond this, so that no series becomes deaf."""


class RealisedRate:
    """Counts how often normal values were called unusual, to be held against the nominal rate."""

    def __init__(self, nominal: float) -> None:
        self._nominal = nominal
        self._columns = Columns(above=0.0, seen=0.0, recent=0.0)

    def grow(self, count: int) -> None:
        """Add series."""
        self._columns.grow(count)

    def move(self, came_from: NDArray[np.int64]) -> None:
        """Let series ``i`` be the one that was ``came_from[i]``; a new one, where that is -1."""
        self._columns.move(came_from)

    def note(self, above: NDArray[np.bool_], taken: NDArray[np.bool_]) -> None:
        """Count one tick: which normal values ``[series]`` there were, and which were unusual."""
        columns = self._columns
        columns["above"][:] += above
        columns["seen"][:] += taken
        # Exact at first, then a memory in values.
        weight = np.maximum(self._nominal / _RECENT_ALARMS, 1.0 / np.maximum(columns["seen"], 1.0))
        columns["recent"][:] += weight * taken * (above - columns["recent"])

    def add(self, values: FloatArray) -> None:
        """Count values ``[series]``, by number, that were called unusual and turned out normal."""
        columns = self._columns
        columns["above"][:] += values
        columns["seen"][:] += values
        weight = np.maximum(self._nominal / _RECENT_ALARMS, 1.0 / np.maximum(columns["seen"], 1.0))
        columns["recent"][:] += np.minimum(weight * values, 1.0) * (1.0 - columns["recent"])

    def rates(self) -> FloatArray:
        """Return the share of all normal values that were unusual; NaN where none was seen."""
        seen = self._columns["seen"]
        nothing = np.full(len(seen), np.nan)
        rates: FloatArray = np.divide(self._columns["above"], seen, out=nothing, where=seen > 0)
        return rates

    def summary(self, detector: str, names: Sequence[tuple[str, str]]) -> Realised:
        """Return the rate over all series, and of late that of the one that is farthest off.

        Args:
            detector: whose rate it is.
            names: entity and signal of each column.
        """
        columns = self._columns
        known = columns["seen"] >= _RECENT_ALARMS / self._nominal
        worst, recent = None, 0.0
        if known.any():
            column = int(np.argmax(np.where(known, columns["recent"], -1.0)))
            worst, recent = names[column], float(columns["recent"][column])
        return Realised(
            detector=detector,
            nominal_rate=self._nominal,
            above=float(columns["above"].sum()),
            seen=float(columns["seen"].sum()),
            worst=worst,
            worst_rate=recent,
        )

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        return self._columns.state()

    def check(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise ValueError where a state does not fit."""
        self._columns.check(state)

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state; raises ValueError and changes nothing where it does not fit."""
        self._columns.restore(state)


class TailTracker:
    """A factor ``[series]`` of at least 1 by which raw scores are divided."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._columns = Columns(limit=1.0)
        self._realised = RealisedRate(rate)

    @property
    def limit(self) -> FloatArray:
        """The present factor of each series."""
        limit: FloatArray = self._columns["limit"]
        return limit

    @property
    def realised(self) -> RealisedRate:
        """How often normal values scored above 1."""
        return self._realised

    def grow(self, count: int) -> None:
        """Add series."""
        self._columns.grow(count)
        self._realised.grow(count)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the series where ``kept`` is false."""
        self.move(np.flatnonzero(kept))

    def move(self, came_from: NDArray[np.int64]) -> None:
        """Let series ``i`` be the one that was ``came_from[i]``; a new one, where that is -1."""
        self._columns.move(came_from)
        self._realised.move(came_from)

    def update(self, raw: FloatArray, learn: NDArray[np.bool_]) -> None:
        """Learn from raw scores ``[series]`` of values that are taken for normal."""
        taken = learn & np.isfinite(raw)
        limit = self._columns["limit"]
        above = taken & (raw > limit)
        step = _STEP * (above - self._rate * taken)
        np.clip(limit * (1.0 + step), 1.0, _HIGHEST, out=limit)
        self._realised.note(above, taken)

    def add_dismissed(self, values: FloatArray) -> None:
        """Learn of values ``[series]`` above 1, by number, that turned out to be normal after all.

        The first of them was counted when it came: only then learning stopped. It moves the limit
        once more, so that what was nearly raised makes a series more careful than what was not.
        """
        limit = self._columns["limit"]
        np.clip(limit * (1.0 + _STEP) ** values, 1.0, _HIGHEST, out=limit)
        self._realised.add(np.maximum(values - 1.0, 0.0))

    def realised_rate(self) -> FloatArray:
        """Return the share of normal values that scored above 1; NaN where none was seen."""
        return self._realised.rates()

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        own = {**self._columns.state(), **self._realised.state()}
        return {f"tail_{name}": array for name, array in own.items()}

    def check(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise ValueError where a state does not fit."""
        own = _without_prefix(state)
        self._columns.check(own)
        self._realised.check(own)

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state; raises ValueError and changes nothing where it does not fit."""
        self.check(state)
        self._columns.restore(_without_prefix(state))
        self._realised.restore(_without_prefix(state))


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
