"""How much wider thresholds are while a series is new, for two reasons.

What has just started behaves as it will not again: caches fill, models load. That is a matter of age.
And a spread that is known from few values may be far too small: that is a matter of their number, and
Student's t says how much ("The probable error of a mean", 1908). What lies beyond 3.5 standard
deviations once in 4,000 normal values lies beyond 6.5 of them when they come from eight values. So a
series that comes every fifteen seconds is judged within two minutes as well.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from analysis.detection.contract import FloatArray
from analysis.detection.settings import BaselineSettings

_LEAST_VALUES = 4
"""Values from which a series that is old enough is judged."""
_MOST_VALUES = 120
"""Values from which the spread is taken for known."""


def judged(age: FloatArray, count: FloatArray, settings: BaselineSettings) -> NDArray[np.bool_]:
    """Return which series, by their age in seconds and number of values, are judged at all."""
    old = (count >= _LEAST_VALUES) & (age >= settings.warm_seconds)
    return np.asarray((count >= settings.quiet_values) | old)


def settled(age: FloatArray, count: FloatArray, settings: BaselineSettings) -> NDArray[np.bool_]:
    """Return which series are new no more: nothing widens their thresholds in any way that shows."""
    return np.asarray((age >= 2.0 * settings.warm_seconds) & (count >= 2.0 * settings.warm_values))


def by_age(age: FloatArray, settings: BaselineSettings) -> FloatArray:
    """Return the factor on the thresholds ``[series]`` of what has just started, from age in seconds."""
    progress = np.clip(age / max(settings.warm_seconds, 1e-9) - 1.0, 0.0, 1.0)
    return np.asarray(settings.cold_caution ** (1.0 - progress))


def by_count(count: FloatArray, settings: BaselineSettings) -> FloatArray:
    """Return the factor on the spread ``[series]`` that is known from so many values."""
    factors = _by_count(settings.raise_sigmas, settings.cold_caution)
    return factors[np.clip(count, 0, _MOST_VALUES).astype(np.int64)]


@lru_cache(maxsize=16)
def _by_count(sigmas: float, most: float) -> FloatArray:
    """Return the factor by number of values: of the t-quantile of a prediction to the normal one."""
    count = np.arange(_MOST_VALUES + 1, dtype=float)
    enough = np.maximum(count, 2.0)
    beyond = t.isf(norm.sf(sigmas), enough - 1.0) * np.sqrt(1.0 + 1.0 / enough)
    factors = np.clip(beyond / sigmas, 1.0, most)
    factors[-1] = 1.0
    return np.asarray(np.where(count < 2.0, most, factors))
