"""Which series are gone for good: detection forgets them, so that churn of pods does not add up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray

_LOOKS = 8
"""How many times it is looked within the time after which a series is gone."""


class Retirement:
    """Looks now and then for series that have been silent for too long.

    Args:
        after_seconds: the silence after which a series is gone.
    """

    def __init__(self, after_seconds: float) -> None:
        self._after_seconds = after_seconds
        self._every_seconds = after_seconds / _LOOKS
        self._next_seconds = -np.inf
        self._last_seconds = -np.inf
        self._looked_at = 0

    def gone(self, now_seconds: float, last_values: FloatArray) -> NDArray[np.bool_] | None:
        """Return which series ``[series]`` to forget; None while there is nothing to do.

        Args:
            now_seconds: the time of the tick.
            last_values: ``[series]`` when each had its newest value; NaN where it never had one.
        """
        # After a start or a pause every series seems silent: each gets the time to speak again.
        if now_seconds - self._last_seconds >= self._every_seconds:
            self._next_seconds = now_seconds + self._every_seconds
        self._last_seconds = now_seconds
        if now_seconds < self._next_seconds:
            return None
        self._next_seconds = now_seconds + self._every_seconds
        gone = now_seconds - last_values > self._after_seconds
        # Known by a seasonal shape only, and silent since the last look.
        gone |= np.isnan(last_values) & (np.arange(len(last_values)) < self._looked_at)
        self._looked_at = int((~gone).sum())
        return gone if gone.any() else None
