"""Leaks: memory and the like that grows steadily beyond all that the series has held before.

Two windows look for the same shape: a few seconds for growth of tens of megabytes a second, minutes
for slow growth. A leak grows evenly, so the median step has to explain the growth; loading a model or
filling a cache is a few large steps, and growth with load turns back or stays within the range seen
before. Direction: up. Warm-up: :attr:`TrendSettings.settle_seconds` after the first value and after
each restart of the process, which shows as a fall by a fifth.

The slope is the median of pairwise slopes and monotony is Kendall's tau (Theil, 1950; Sen, 1968;
Mann, 1945). It fails on leaks that grow by less than what matters in the
slow window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray, Scores
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.settings import TrendSettings
from collectors.contract import SeriesKey

_RESTART_FALL = 0.2
_EVEN_SHARE = 0.5
"""The median step, and the newest two, have to be at least this share of the mean step."""
_FAST_TAU = 0.7
_SLOW_TAU = 0.85


class Trend:
    """Scores the steady growth of what can leak."""

    name = "trend"

    def __init__(self, settings: TrendSettings) -> None:
        self._settings = settings
        self._profiles = SeriesProfiles()
        self._columns = Columns(first_seconds=np.nan, last=np.nan, slow_score=0.0)
        self._watched: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._fast = _Window(settings.fast_points, settings.fast_seconds, _FAST_TAU)
        self._slow = _Window(settings.slow_points, settings.slow_seconds, _SLOW_TAU)

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for new series; only those that can leak are watched."""
        start = len(self._profiles)
        self._profiles.grow(keys)
        self._columns.grow(len(keys))
        added = start + np.flatnonzero(self._profiles["leak"][start:])
        self._watched = np.append(self._watched, added)
        self._fast.grow(len(added))
        self._slow.grow(len(added))

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:  # noqa: ARG002
        """Score one tick of values ``[series]``; only watched series have an opinion.

        ``learn`` is not used: the range of the past leaves out the window that is judged.
        """
        nothing = np.full(len(self._columns), np.nan)
        result = Scores(nothing.copy(), nothing.copy(), nothing, nothing.copy())
        if self._watched.size:
            self._score_watched(time_seconds, values[self._watched], result)
        return result

    def _score_watched(self, time_seconds: float, level: FloatArray, result: Scores) -> None:
        watched, columns, own = self._watched, self._columns, self._settings
        given = np.isfinite(level)
        self._forget_restarted(time_seconds, level, given)
        self._fast.push(time_seconds, level, given)
        interval = own.slow_seconds / (own.slow_points - 1)
        due = given & (self._slow.age(time_seconds) >= interval - 1e-6)
        need = own.least_share * self._profiles["least"][watched]
        slow_need = np.maximum(need, own.slow_share * np.nan_to_num(np.abs(level)))
        if due.any():
            self._slow.push(time_seconds, level, due)
            columns["slow_score"][watched[due]] = self._slow.judge(slow_need)[due]
        fast = self._fast.judge(need)
        slow = np.minimum(columns["slow_score"][watched], self._slow.beyond(level, slow_need))
        score = np.fmax(np.minimum(fast, self._fast.beyond(level, need)), np.maximum(slow, 0.0))
        settled = time_seconds - columns["first_seconds"][watched] >= own.settle_seconds
        expected = np.fmax(self._fast.peak, self._fast.oldest)
        result.score[watched] = np.where(given & settled, score, np.nan)
        result.expected[watched] = expected
        result.high[watched] = expected + need

    def _forget_restarted(
        self, time_seconds: float, level: FloatArray, given: NDArray[np.bool_]
    ) -> None:
        columns, watched = self._columns, self._watched
        last = columns["last"][watched]
        fell = given & (level < last - _RESTART_FALL * np.abs(last))
        self._fast.clear(fell)
        self._slow.clear(fell)
        columns["slow_score"][watched[fell]] = 0.0
        begun = fell | (given & np.isnan(last))
        columns["first_seconds"][watched[begun]] = time_seconds
        columns["last"][watched[given]] = level[given]

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        return {**self._columns.state(), **self._fast.state("fast"), **self._slow.state("slow")}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state of the same series."""
        self._fast.check(state, "fast")
        self._slow.check(state, "slow")
        self._columns.restore(state)
        self._fast.restore(state, "fast")
        self._slow.restore(state, "slow")


class _Window:
    """The newest values ``[points, watched]``, oldest first, and the highest that came before them."""

    def __init__(self, points: int, least_seconds: float, least_tau: float) -> None:
        self._least_seconds = least_seconds
        self._least_tau = least_tau
        self._arrays = {
            "times": np.full((points, 0), np.nan),
            "values": np.full((points, 0), np.nan),
            "peak": np.full((1, 0), np.nan),
        }
        self._pairs = np.triu_indices(points, k=1)

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

    def grow(self, count: int) -> None:
        """Add series."""
        for name, array in self._arrays.items():
            self._arrays[name] = np.hstack((array, np.full((len(array), count), np.nan)))

    def push(self, time_seconds: float, values: FloatArray, chosen: NDArray[np.bool_]) -> None:
        """Add the newest value of the chosen series."""
        self.peak[chosen] = np.fmax(self.peak, self.oldest)[chosen]
        for array, newest in (
            (self._arrays["times"], np.full(len(values), time_seconds)),
            (self._arrays["values"], values),
        ):
            array[:, chosen] = np.vstack((array[1:], newest))[:, chosen]

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
        is uneven, not monotonous or already over. Cheap conditions come first: few series pass them.
        """
        times, values = self._arrays["times"], self._arrays["values"]
        span = times[-1] - times[0]
        steps = np.diff(values, axis=0)
        share = _EVEN_SHARE * steps.mean(axis=0)
        full = np.isfinite(values).all(axis=0) & (span >= self._least_seconds * 0.95)
        chosen = np.flatnonzero(full & (steps[-2:].mean(axis=0) >= share))
        chosen = chosen[np.median(steps[:, chosen], axis=0) >= share[chosen]]
        slope, tau = self._robust_slope(chosen)
        sound = (tau >= self._least_tau) & (slope > 0)
        score = np.zeros(len(span))
        growth = slope * span[chosen]
        score[chosen] = np.where(sound, growth / np.maximum(need[chosen], 1e-12), 0.0)
        return score

    def _robust_slope(self, chosen: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Return slope and tau of the chosen series.

        The slope is the median of all pairs' (Theil-Sen); tau is the share of pairs that rise less
        the share of those that fall (Kendall).
        """
        times, values = self._arrays["times"][:, chosen], self._arrays["values"][:, chosen]
        first, second = self._pairs
        rise = values[second] - values[first]
        run = times[second] - times[first]
        return np.median(rise / run, axis=0), np.sign(rise).mean(axis=0)

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
