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
    """The newest values of the watched series, and the highest that came before them.

    Each series has a ring of its own, so that a new value costs one place and no move of the others.

    Args:
        points: how many values of a series are kept.
        least_seconds: the time that they have to span before they say anything.
        least_tau: how monotonous they have to be.
    """

    def __init__(self, points: int, least_seconds: float, least_tau: float) -> None:
        self._points = points
        self._least_seconds = least_seconds
        self._least_tau = least_tau
        self._times = np.full((points, 0), np.nan)
        self._values = np.full((points, 0), np.nan)
        self._peak = np.full(0, np.nan)
        # Where the next value goes: there is the oldest one.
        self._head = np.zeros(0, dtype=np.intp)
        self._every = np.arange(0)
        self._pairs = np.triu_indices(points, k=1)
        deviation = np.sqrt(points * (points - 1) * (2 * points + 5) / 18.0)
        self._ranks_off = round(_NORMAL_QUANTILE * deviation / 2.0)

    @property
    def peak(self) -> FloatArray:
        """``[watched]``: the highest value older than the window; NaN where there is none."""
        return self._peak

    @property
    def oldest(self) -> FloatArray:
        """``[watched]``: the oldest value in the window."""
        return self._back(self._values, self._points)

    @property
    def newest(self) -> FloatArray:
        """``[watched]``: the newest value in the window."""
        return self._back(self._values, 1)

    @property
    def span(self) -> FloatArray:
        """``[watched]``: the seconds between the oldest and the newest value; NaN until it is full."""
        return self._back(self._times, 1) - self._back(self._times, self._points)

    def grow(self, count: int) -> None:
        """Add series."""
        new = np.full((self._points, count), np.nan)
        self._times = np.hstack((self._times, new))
        self._values = np.hstack((self._values, new))
        self._peak = np.append(self._peak, new[0])
        self._head = np.append(self._head, np.zeros(count, dtype=np.intp))
        self._every = np.arange(len(self._head))

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the series where ``kept`` ``[watched]`` is false."""
        self._times, self._values = self._times[:, kept], self._values[:, kept]
        self._peak, self._head = self._peak[kept], self._head[kept]
        self._every = np.arange(len(self._head))

    def push(self, time_seconds: float, values: FloatArray, chosen: NDArray[np.bool_]) -> None:
        """Add the newest value, which is finite, of the chosen series."""
        place = np.flatnonzero(chosen)
        head = self._head[place]
        self._peak[place] = np.fmax(self._peak[place], self._values[head, place])
        self._times[head, place] = time_seconds
        self._values[head, place] = values[place]
        self._head[place] = (head + 1) % self._points

    def age(self, time_seconds: float) -> FloatArray:
        """Return how long ago each series was pushed; infinite where never."""
        newest = self._back(self._times, 1)
        return np.where(np.isnan(newest), np.inf, time_seconds - newest)

    def beyond(self, level: FloatArray, need: FloatArray) -> FloatArray:
        """Return how far a level is above all before the window, in units of ``need``."""
        before = np.fmax(self._peak, self.oldest)
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

    def growing(self) -> tuple[NDArray[np.intp], Slopes]:
        """Return which of the series grow evenly and monotonously until now, and how fast.

        Cheap conditions come first: few series pass them.
        """
        chosen, share = self._rising()
        values = self._ordered(self._values, chosen)
        steps = np.diff(values, axis=0)
        # A median is at least so much only where half of the steps are, and those are sooner counted.
        even = np.flatnonzero(np.count_nonzero(steps >= share, axis=0) >= (len(steps) + 1) // 2)
        even = even[np.median(steps[:, even], axis=0) >= share[even]]
        return self._slopes(chosen[even], values[:, even])

    def _rising(self) -> tuple[NDArray[np.intp], FloatArray]:
        """Return what grew over a full window and still does, and the least median step of each."""
        newest, oldest = self.newest, self.oldest
        share = _EVEN_SHARE * (newest - oldest) / (self._points - 1)
        lately = (newest - self._back(self._values, 3)) / 2.0
        # What is not full has no oldest value.
        full = np.isfinite(oldest) & (self.span >= self._least_seconds * 0.95)
        chosen = np.flatnonzero(full & (share > 0) & (lately >= share))
        return chosen, share[chosen]

    def _back(self, array: FloatArray, count: int) -> FloatArray:
        """Return what was pushed so many values ago, ``[watched]``; 1 is the newest."""
        return np.asarray(array[(self._head - count) % self._points, self._every])

    def _ordered(self, array: FloatArray, chosen: NDArray[np.intp]) -> FloatArray:
        """Return the windows ``[points, chosen]``, oldest first."""
        rows = (self._head[chosen] + np.arange(self._points)[:, None]) % self._points
        return np.asarray(array[rows, chosen])

    def _slopes(
        self, chosen: NDArray[np.intp], values: FloatArray
    ) -> tuple[NDArray[np.intp], Slopes]:
        """Return which of the chosen, whose values are given, are monotonous, and their slopes."""
        first, second = self._pairs
        rise = values[second] - values[first]
        tau = (np.count_nonzero(rise > 0, axis=0) - np.count_nonzero(rise < 0, axis=0)) / len(first)
        # Few are: only their slopes are worth sorting.
        sound = tau >= self._least_tau
        chosen, rise, tau = chosen[sound], rise[:, sound], tau[sound]
        times = self._ordered(self._times, chosen)
        slopes = np.sort(rise / (times[second] - times[first]), axis=0)
        middle = (len(first) - 1) / 2.0
        low, high = int(np.floor(middle)), int(np.ceil(middle))
        return chosen, Slopes(
            middle=(slopes[low] + slopes[high]) / 2.0,
            low=slopes[max(low - self._ranks_off, 0)],
            high=slopes[min(high + self._ranks_off, len(first) - 1)],
            tau=tau,
        )

    def clear(self, chosen: NDArray[np.bool_]) -> None:
        """Forget everything of the chosen series."""
        if chosen.any():
            self._times[:, chosen] = np.nan
            self._values[:, chosen] = np.nan
            self._peak[chosen] = np.nan

    def state(self, prefix: str) -> dict[str, NDArray[np.generic]]:
        """Return copies of the arrays, oldest values first."""
        return {
            f"{prefix}_times": self._ordered(self._times, self._every),
            f"{prefix}_values": self._ordered(self._values, self._every),
            f"{prefix}_peak": self._peak[None].copy(),
        }

    def check(self, state: Mapping[str, NDArray[np.generic]], prefix: str) -> None:
        """Raise ValueError where a state does not fit."""
        shapes = {"times": self._times.shape, "values": self._values.shape}
        for name, shape in {**shapes, "peak": (1, len(self._peak))}.items():
            given = state.get(f"{prefix}_{name}")
            if given is None or given.shape != shape:
                raise ValueError(
                    f"the array {prefix}_{name} of the state is missing or does not fit"
                )

    def restore(self, state: Mapping[str, NDArray[np.generic]], prefix: str) -> None:
        """Take up arrays that were checked."""
        self._times[:] = state[f"{prefix}_times"]
        self._values[:] = state[f"{prefix}_values"]
        self._peak[:] = state[f"{prefix}_peak"][0]
        self._head[:] = 0
