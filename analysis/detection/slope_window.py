"""A window of the newest values of some series, and the robust slope in it.

The slope is the median of the slopes of all pairs of values and its interval lies between two of them
by rank; monotony is Kendall's tau (Theil, 1950; Sen, "Estimates of the regression coefficient based on
Kendall's tau", 1968; Mann, 1945).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray

_EVEN_SHARE = 0.5
"""The median step, and the newest two, have to be at least this share of the mean step."""
_NORMAL_QUANTILE = 1.96
"""Of a 95% interval."""


@dataclass(frozen=True, slots=True)
class Slopes:
    """Robust slopes, each array ``[chosen]``, in units a second."""

    middle: FloatArray
    low: FloatArray
    high: FloatArray
    tau: FloatArray
    """The share of pairs that rise less the share of those that fall."""


class SlopeWindow:
    """The newest values ``[points, watched]``, oldest first, and the highest that came before them.

    Args:
        points: how many values of a series are kept.
        least_seconds: the time that they have to span before they say anything.
        least_tau: how monotonous they have to be.
    """

    def __init__(self, points: int, least_seconds: float, least_tau: float) -> None:
        self._least_seconds = least_seconds
        self._least_tau = least_tau
        self._arrays = {
            "times": np.full((points, 0), np.nan),
            "values": np.full((points, 0), np.nan),
            "peak": np.full((1, 0), np.nan),
        }
        self._pairs = np.triu_indices(points, k=1)
        deviation = np.sqrt(points * (points - 1) * (2 * points + 5) / 18.0)
        self._ranks_off = round(_NORMAL_QUANTILE * deviation / 2.0)

    @property
    def peak(self) -> FloatArray:
        """``[watched]``: the highest value older than the window; NaN where there is none."""
        peak: FloatArray = self._arrays["peak"][0]
        return peak

    @property
    def oldest(self) -> FloatArray:
        """``[watched]``: the oldest value in the window."""
        oldest: FloatArray = self._arrays["values"][0]
        return oldest

    @property
    def newest(self) -> FloatArray:
        """``[watched]``: the newest value in the window."""
        newest: FloatArray = self._arrays["values"][-1]
        return newest

    @property
    def span(self) -> FloatArray:
        """``[watched]``: the seconds between the oldest and the newest value; NaN until it is full."""
        times = self._arrays["times"]
        return np.asarray(times[-1] - times[0])

    def grow(self, count: int) -> None:
        """Add series."""
        for name, array in self._arrays.items():
            self._arrays[name] = np.hstack((array, np.full((len(array), count), np.nan)))

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the series where ``kept`` ``[watched]`` is false."""
        for name, array in self._arrays.items():
            self._arrays[name] = array[:, kept]

    def push(self, time_seconds: float, values: FloatArray, chosen: NDArray[np.bool_]) -> None:
        """Add the newest value of the chosen series."""
        np.copyto(self.peak, np.fmax(self.peak, self.oldest), where=chosen)
        arrays = ((self._arrays["times"], time_seconds), (self._arrays["values"], values))
        for array, newest in arrays:
            np.copyto(array[:-1], array[1:], where=chosen)
            np.copyto(array[-1], newest, where=chosen)

    def age(self, time_seconds: float) -> FloatArray:
        """Return how long ago each series was pushed; infinite where never."""
        newest = self._arrays["times"][-1]
        return np.where(np.isnan(newest), np.inf, time_seconds - newest)

    def beyond(self, level: FloatArray, need: FloatArray) -> FloatArray:
        """Return how far a level is above all before the window, in units of ``need``."""
        before = np.fmax(self.peak, self.oldest)
        return np.asarray(np.nan_to_num((level - before) / np.maximum(need, 1e-12)))

    def judge(self, need: FloatArray) -> FloatArray:
        """Return a score ``[watched]``.

        It is the growth that the robust slope explains over the least that matters; 0 where growth
        is uneven, not monotonous or already over.
        """
        score = np.zeros(len(need))
        chosen, slopes = self.growing()
        growth = slopes.middle * self.span[chosen]
        score[chosen] = growth / np.maximum(need[chosen], 1e-12)
        return score

    def growing(self) -> tuple[NDArray[np.int64], Slopes]:
        """Return which of the series grow evenly and monotonously until now, and how fast.

        Cheap conditions come first: few series pass them.
        """
        values, span = self._arrays["values"], self.span
        steps = np.diff(values, axis=0)
        share = _EVEN_SHARE * steps.mean(axis=0)
        full = np.isfinite(values).all(axis=0) & (span >= self._least_seconds * 0.95)
        chosen = np.flatnonzero(full & (share > 0) & (steps[-2:].mean(axis=0) >= share))
        chosen = chosen[np.median(steps[:, chosen], axis=0) >= share[chosen]]
        slopes = self._slopes(chosen)
        sound = (slopes.tau >= self._least_tau) & (slopes.middle > 0)
        kept = Slopes(
            slopes.middle[sound], slopes.low[sound], slopes.high[sound], slopes.tau[sound]
        )
        return chosen[sound], kept

    def _slopes(self, chosen: NDArray[np.int64]) -> Slopes:
        times, values = self._arrays["times"][:, chosen], self._arrays["values"][:, chosen]
        first, second = self._pairs
        rise = values[second] - values[first]
        slopes = np.sort(rise / (times[second] - times[first]), axis=0)
        middle = (len(first) - 1) / 2.0
        low = max(int(np.floor(middle)) - self._ranks_off, 0)
        high = min(int(np.ceil(middle)) + self._ranks_off, len(first) - 1)
        return Slopes(
            middle=np.median(slopes, axis=0),
            low=slopes[low],
            high=slopes[high],
            tau=np.sign(rise).mean(axis=0),
        )

    def clear(self, chosen: NDArray[np.bool_]) -> None:
        """Forget everything of the chosen series."""
        for array in self._arrays.values():
            array[:, chosen] = np.nan

    def state(self, prefix: str) -> dict[str, NDArray[np.generic]]:
        """Return copies of the arrays."""
        return {f"{prefix}_{name}": array.copy() for name, array in self._arrays.items()}

    def check(self, state: Mapping[str, NDArray[np.generic]], prefix: str) -> None:
        """Raise ValueError where a state does not fit."""
        for name, array in self._arrays.items():
            given = state.get(f"{prefix}_{name}")
            if given is None or given.shape != array.shape:
                raise ValueError(
                    f"the array {prefix}_{name} of the state is missing or does not fit"
                )

    def restore(self, state: Mapping[str, NDArray[np.generic]], prefix: str) -> None:
        """Take up arrays that were checked."""
        for name, array in self._arrays.items():
            array[:] = state[f"{prefix}_{name}"]
