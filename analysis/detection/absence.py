"""Absence and drop to zero: what a series does not say.

Both learn what is usual for the series itself first: its cadence and longest gap, and its longest run
of zeros. They fail on series that come or work so rarely that silence is their normal state; those
are left to limits and baselines. Direction: absent, and down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray, Scores
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.settings import AbsenceSettings, DropSettings
from collectors.contract import SeriesKey

_GAP_MEMORY_VALUES = 20.0
_LONGEST_GAP_MARGIN = 1.5
_PAUSE_TICKS = 4.0
_LONGEST_DECAY = 0.999
"""The longest gap or run seen fades by half in 700 values."""


class Absence:
    """Scores the age of the newest value in units of the series' own cadence."""

    name = "absence"

    def __init__(self, settings: AbsenceSettings) -> None:
        self._settings = settings
        self._columns = Columns(last_seconds=np.nan, cadence=np.nan, longest=0.0, count=0.0)
        self._last_tick = np.nan
        self._tick_gap = np.nan

    @property
    def age_of_observation(self) -> FloatArray:
        """``[series]``: the age in seconds up to which the newest value is still the present one."""
        return np.asarray(1.5 * np.fmax(self._columns["cadence"], 0.0) + 0.5)

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for new series."""
        self._columns.grow(len(keys))

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        self._columns.keep(kept)

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:
        """Score one tick; a value that came scores 0."""
        columns, own = self._columns, self._settings
        self._skip_pause(time_seconds)
        present = np.isfinite(values)
        age = time_seconds - columns["last_seconds"]
        cadence = np.fmax(columns["cadence"], 0.0)
        allowed = np.maximum(own.minimum_seconds, own.missed_values * cadence)
        allowed = np.maximum(allowed, _LONGEST_GAP_MARGIN * columns["longest"])
        known = columns["count"] >= own.warm_values
        score = np.where(present, 0.0, age / np.maximum(allowed, 1e-9))
        # A gap that was alarmed about is no part of what is usual.
        usual = present & learn & (age <= allowed)
        columns["longest"][present] *= _LONGEST_DECAY
        columns.put("longest", np.maximum(columns["longest"], age), usual)
        gap = np.where(np.isnan(columns["cadence"]), age, columns["cadence"])
        step = np.maximum(1.0 / _GAP_MEMORY_VALUES, 1.0 / (columns["count"] + 1.0))
        moved = gap + step * (np.minimum(age, 3.0 * gap) - gap)
        paced = present & np.isfinite(age)
        columns.put("cadence", moved, paced)
        columns.put("last_seconds", time_seconds, present)
        columns.add("count", 1.0, present)
        nothing = np.full(len(columns), np.nan)
        return Scores(np.where(known, score, np.nan), nothing, nothing, nothing)

    def _skip_pause(self, time_seconds: float) -> None:
        """Leave out the time in which the watch itself stood still: that is nobody's absence."""
        gap = time_seconds - self._last_tick
        if gap > _PAUSE_TICKS * self._tick_gap:
            self._columns["last_seconds"][:] += gap - self._tick_gap
        elif np.isfinite(gap):
            first = np.isnan(self._tick_gap)
            self._tick_gap = gap if first else self._tick_gap + 0.1 * (gap - self._tick_gap)
        self._last_tick = time_seconds

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        return {**self._columns.state(), "ticks": np.array([self._last_tick, self._tick_gap])}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state of the same series."""
        if state.get("ticks", np.empty(0)).shape != (2,):
            raise ValueError("the state of absence has no `ticks`")
        self._columns.restore(state)
        self._last_tick, self._tick_gap = (
            float(x) for x in np.asarray(state["ticks"], dtype=float)
        )


class DropToZero:
    """Scores how long a rate that never rests has been zero."""

    name = "drop_to_zero"

    def __init__(self, settings: DropSettings) -> None:
        self._settings = settings
        self._profiles = SeriesProfiles()
        self._columns = Columns(
            level=np.nan,
            zero_ratio=0.0,
            ratio_before=0.0,
            longest=0.0,
            run=0.0,
            count=0.0,
            last_seconds=np.nan,
        )

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for new series."""
        self._profiles.grow(keys)
        self._columns.grow(len(keys))

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        self._profiles.keep(kept)
        self._columns.keep(kept)

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:
        """Score one tick, then learn level and usual runs of zeros."""
        columns, own = self._columns, self._settings
        judged = np.isfinite(values) & self._profiles["drop"]
        steady = columns["level"] > 2.0 * self._profiles["deadband"]
        zero = judged & (values <= own.zero_share * np.nan_to_num(columns["level"]))
        run = np.where(zero, columns["run"] + 1.0, np.where(judged, 0.0, columns["run"]))
        allowed = np.maximum(own.minimum_zeros - 1.0, own.run_factor * columns["longest"])
        known = (
            judged
            & steady
            & (columns["ratio_before"] < own.usual_zero_ratio)
            & (columns["count"] >= own.warm_values)
        )
        score = np.where(zero, run / np.maximum(allowed + 0.5, 1e-9), 0.0)
        result = Scores(
            score=np.where(known, score, np.nan),
            expected=np.where(known, columns["level"], np.nan),
            low=np.where(known, own.zero_share * columns["level"], np.nan),
            high=np.full(len(columns), np.nan),
        )
        self._note_runs(judged, zero, run, learn)
        self._learn(time_seconds, values, judged & learn & ~(known & (score > 1.0)), zero)
        columns.add("count", 1.0, judged)
        columns.put("last_seconds", time_seconds, judged)
        return result

    def _note_runs(
        self,
        judged: NDArray[np.bool_],
        zero: NDArray[np.bool_],
        run: FloatArray,
        learn: NDArray[np.bool_],
    ) -> None:
        """Count runs of zeros and remember the longest that was none of our alarms."""
        columns = self._columns
        ended = judged & ~zero & learn & (columns["run"] > 0)
        columns["longest"][judged] *= _LONGEST_DECAY
        columns.put("longest", np.maximum(columns["longest"], columns["run"]), ended)
        columns.put("run", run, judged)

    def _learn(
        self,
        time_seconds: float,
        values: FloatArray,
        taken: NDArray[np.bool_],
        zero: NDArray[np.bool_],
    ) -> None:
        columns = self._columns
        elapsed = np.fmax(time_seconds - columns["last_seconds"], 0.0)
        rate = np.maximum(
            1.0 - np.exp(-elapsed / self._settings.memory_seconds), 1.0 / (columns["count"] + 1.0)
        )
        columns.add("zero_ratio", rate * (zero - columns["zero_ratio"]), taken)
        working = taken & ~zero
        # The run that is judged must not make zeros look usual.
        columns.put("ratio_before", columns["zero_ratio"], working)
        level = np.where(np.isnan(columns["level"]), values, columns["level"])
        columns.put("level", level + rate * (values - level), working)

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        return self._columns.state()

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state of the same series."""
        self._columns.restore(state)
