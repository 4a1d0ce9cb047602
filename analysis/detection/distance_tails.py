"""How surprising a distance is: minus the logarithm of its tail probability among past distances.

Up to its 90% quantile a distance surprises in proportion; from there to the largest quantile that the
sample supports, as its empirical tail does; beyond, by a Pareto law through these quantiles (Pickands,
1975): the heavy-tailed case of the tail in SPOT (Siffer et al., KDD 2017). A fit through quantiles is
refitted hundreds of times on a long history that holds anomalies of its own, which do not move it far:
:func:`analysis.detection.tails.fit_tail` is the better estimate for few, clean scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.detection.contract import FloatArray

_RATES = np.array([0.1, 0.03, 0.01, 0.003])
_LEAST_BEYOND = 5
"""A quantile is used where at least as many past distances lie beyond it."""
LEAST_ROWS = 50
_LEAST_SLOPE = 0.02
_FREE_SLOPE = 0.5
"""Without a tail to fit, the probability falls with the square of the distance."""
_LEAST_SHARE = 0.01
"""Of the usual size of a metric: the distance that counts where it hardly ever moved."""


@dataclass(frozen=True)
class DistanceTail:
    """The tail of one kind of distance."""

    logs: FloatArray
    """``[anchors]`` logarithms of distances, rising."""
    surprises: FloatArray
    """``[anchors]`` minus the logarithm of the share of past distances that reach them."""
    slope: float
    """Growth of the log distance beyond the last anchor while the probability falls by a factor e."""

    @classmethod
    def fit(cls, past: FloatArray, size: float) -> DistanceTail | None:
        """Fit to distances ``[rows]``, NaN where missing, of a metric of a usual size.

        Returns:
            None where there are too few of them.
        """
        known = past[np.isfinite(past)]
        if len(known) < LEAST_ROWS:
            return None
        rates = _RATES[: max(1, int((_RATES * len(known) >= _LEAST_BEYOND).sum()))]
        quantiles = np.quantile(known, 1.0 - rates)
        above = quantiles > 0
        if not above[0]:
            # It hardly ever moved: what counts as moving at all begins the tail.
            least = float(quantiles[above][0]) if above.any() else _LEAST_SHARE * size
            share = (1.0 + (known >= least).sum()) / (1.0 + len(known))
            quantiles = np.concatenate(([least], quantiles[above]))
            rates = np.concatenate(([share], rates[above]))
        logs, surprises = np.log(quantiles), -np.log(rates)
        rising = np.concatenate(([True], (np.diff(logs) > 0) & (np.diff(surprises) > 0)))
        logs, surprises = logs[rising], surprises[rising]
        if len(logs) == 1:
            slope = _FREE_SLOPE if not above[0] else _LEAST_SLOPE
        else:
            slope = max((logs[-1] - logs[0]) / (surprises[-1] - surprises[0]), _LEAST_SLOPE)
        return cls(logs, surprises, float(slope))

    def surprise(self, distances: FloatArray) -> FloatArray:
        """Return how surprising distances ``[rows]`` are, NaN where one is missing."""
        base = np.exp(self.logs[0])
        logs = np.log(np.maximum(distances, base))
        tail = np.interp(logs, self.logs, self.surprises)
        tail = tail + np.maximum(logs - self.logs[-1], 0.0) / self.slope
        return np.asarray(np.where(distances <= base, self.surprises[0] * distances / base, tail))


def fit_all(past: FloatArray, size: float) -> list[DistanceTail | None]:
    """Fit one tail a column of distances ``[rows, views]``."""
    return [DistanceTail.fit(past[:, view], size) for view in range(past.shape[1])]


def surprises(tails: Sequence[DistanceTail | None], distances: FloatArray) -> FloatArray:
    """Return surprises ``[rows, views]``, NaN where a distance or its tail is missing."""
    found = np.full(distances.shape, np.nan)
    for view, tail in enumerate(tails):
        if tail is not None:
            found[:, view] = tail.surprise(distances[:, view])
    return found
