"""How surprising a distance is: minus the logarithm of its tail probability among past distances.

The bulk is empirical, the tail a Pareto law through two quantiles of past distances (a peaks-over-
threshold tail as in SPOT, Siffer et al., KDD 2017, in its heavy-tailed case; Pickands, 1975, for
estimating it from quantiles, which a few anomalies among the past do not move, as they do moments).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.detection.contract import FloatArray

_BULK = 0.9
_FAR = 0.99
_LEAST_ROWS = 50
_LEAST_SLOPE = 0.02
_FREE_SLOPE = 0.5
"""Where distances were hardly ever above 0 their tail cannot be fitted: p falls with the square."""
_LEAST_SHARE = 0.01
"""Of the usual size of the metric: the distance that counts where it never moved."""


@dataclass(frozen=True)
class Tails:
    """One tail a view."""

    base: FloatArray
    """``[views]`` distances where the tail begins; infinite where too little is known."""
    rate: FloatArray
    """``[views]`` share of past distances above the base."""
    slope: FloatArray
    """``[views]`` growth of the log distance when the probability falls by a factor e."""

    @classmethod
    def fit(cls, past: FloatArray, size: float) -> Tails:
        """Fit to distances ``[rows, views]``, NaN where missing, of a metric of a usual size."""
        views = past.shape[1]
        base, rate = np.full(views, np.inf), np.ones(views)
        slope = np.full(views, _FREE_SLOPE)
        for view in range(views):
            known = past[:, view]
            known = known[np.isfinite(known)]
            if len(known) < _LEAST_ROWS:
                continue
            bulk, far = np.quantile(known, (_BULK, _FAR))
            if bulk > 0:
                base[view], rate[view] = bulk, 1.0 - _BULK
                steep = np.log(far / bulk) / np.log((1.0 - _BULK) / (1.0 - _FAR))
                slope[view] = max(steep, _LEAST_SLOPE)
            else:
                base[view] = max(far, _LEAST_SHARE * size)
                rate[view] = (1.0 + (known > base[view]).sum()) / (1.0 + len(known))
        return cls(base, rate, slope)

    def surprise(self, distances: FloatArray) -> FloatArray:
        """Return surprises ``[rows, views]`` of distances, NaN where one is missing or not judged."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = distances / self.base
            beyond = np.log(np.maximum(ratio, 1.0)) / self.slope
            found = -np.log(self.rate) * np.minimum(ratio, 1.0) + beyond
        return np.asarray(np.where(np.isfinite(self.base), found, np.nan))
