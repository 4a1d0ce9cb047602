"""Leaks: memory and the like that grows steadily beyond all that the series has held before.

Two windows look for the same shape: a few seconds for growth of tens of megabytes a second, minutes
for slow growth. A leak grows evenly, so the median step has to explain the growth; loading a model or
filling a cache is a few large steps, and growth with load turns back or stays within the range seen
before. Direction: up. Warm-up: :attr:`TrendSettings.settle_seconds` after the first value and after
each restart of the process, which shows as a fall by a fifth.

How the slope is taken is said in :mod:`analysis.detection.slope_window`; when memory is full, in
:mod:`analysis.detection.exhaustion`. It fails on leaks that grow by less than what matters in the slow
window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray, Scores
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.settings import TrendSettings
from analysis.detection.slope_window import SlopeWindow
from collectors.contract import SeriesKey

_RESTART_FALL = 0.2
_SETTLE_WINDOWS = 3
_CHANCE = 3.0
"""Standard deviations of a random walk that growth has to be beyond."""
_STEP_MEMORY, _STEP_WARM = 60.0, 10.0
"""Memory, in values, of the usual step, and values from which it is known."""
_FAST_TAU = 0.7
_SLOW_TAU = 0.85


class Trend:
    """Scores the steady growth of what can leak."""

    name = "trend"

    def __init__(self, settings: TrendSettings) -> None:
        self._settings = settings
        self._profiles = SeriesProfiles()
        self._columns = Columns(
            first_seconds=np.nan, last=np.nan, slow_score=0.0, values=0.0, step=0.0
        )
        self._watched: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._fast = SlopeWindow(settings.fast_points, settings.fast_seconds, _FAST_TAU)
        self._slow = SlopeWindow(settings.slow_points, settings.slow_seconds, _SLOW_TAU)

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for new series; only those that can leak are watched."""
        start = len(self._profiles)
        self._profiles.grow(keys)
        self._columns.grow(len(keys))
        added = start + np.flatnonzero(self._profiles["leak"][start:])
        self._watched = np.append(self._watched, added)
        self._fast.grow(len(added))
        self._slow.grow(len(added))

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        self._profiles.keep(kept)
        self._columns.keep(kept)
        still = kept[self._watched]
        self._fast.keep(still)
        self._slow.keep(still)
        self._watched = (np.cumsum(kept) - 1)[self._watched[still]]

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
        # Growth that a walk of the usual steps makes by chance is none.
        chance = _CHANCE * np.sqrt(own.fast_points) * columns["step"][watched]
        if due.any():
            self._slow.push(time_seconds, level, due)
            grown = self._slow.judge(np.maximum(slow_need, chance))
            columns["slow_score"][watched[due]] = grown[due]
        fast = self._fast.judge(np.maximum(need, chance))
        slow = np.minimum(columns["slow_score"][watched], self._slow.beyond(level, slow_need))
        score = np.fmax(np.minimum(fast, self._fast.beyond(level, need)), np.maximum(slow, 0.0))
        settled = time_seconds - columns["first_seconds"][watched] >= own.settle_seconds
        # At slow cadences the past that a peak is of has to be longer than the window, too.
        settled &= columns["values"][watched] >= _SETTLE_WINDOWS * own.fast_points
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
        self._learn_steps(np.abs(level - last), given & ~fell & np.isfinite(last))
        begun = fell | (given & np.isnan(last))
        columns["first_seconds"][watched[begun]] = time_seconds
        columns["values"][watched[begun]] = 0.0
        columns["values"][watched[given]] += 1.0
        columns["last"][watched[given]] = level[given]

    def _learn_steps(self, size: FloatArray, chosen: NDArray[np.bool_]) -> None:
        """Learn how large steps usually are; a few large ones are no habit."""
        columns, watched = self._columns, self._watched
        usual, count = columns["step"][watched], columns["values"][watched]
        taken = np.where(count > _STEP_WARM, np.minimum(size, 3.0 * usual), size)
        rate = np.maximum(1.0 / _STEP_MEMORY, 1.0 / (count + 1.0))
        columns["step"][watched[chosen]] += (rate * (taken - usual))[chosen]

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
