"""The online robust baseline: level and spread of every series, with a seasonal shape where one holds.

Direction: both. Warm-up: a minute; for another, and while values are few, thresholds are wider
(:mod:`analysis.detection.cold_start`). It fails on faults that grow more slowly than the level follows
(see :mod:`analysis.detection.trend`) and on those that move within the usual spread.

Method: exponentially weighted location with Huber-clipped updates (Huber, "Robust Estimation of a
Location Parameter", 1964; Gelper, Fried and Croux, "Robust forecasting with exponential and
Holt-Winters smoothing", 2010) and an exponentially weighted mean absolute deviation. The seasonal
shape, one number a phase, is fitted by :mod:`analysis.detection.seasonal_fit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.detection.calibration import TailTracker
from analysis.detection.cold_start import by_age, by_count, judged, settled
from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray, Realised, Scores
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.records import Records
from analysis.detection.seasonal_fit import SeasonalShape
from analysis.detection.seasonal_shapes import SeasonalShapes
from analysis.detection.settings import BaselineSettings, SignalOverride
from collectors.contract import SeriesKey

_SIGMA_PER_MEAN_DEVIATION = 1.2533
"""sqrt(pi / 2): the standard deviation of a normal series over its mean absolute deviation."""
_SHADOW_VALUES = 5.0
"""Memory, in values, of the fast level that always learns; a re-based series continues from it."""
_LOAD_WEIGHT = 0.4
"""Weight of the newest value in the average that stands for a load-like series, about four values."""
_CLIP = 0.5
"""Residuals are clipped to this share of the threshold before they move the level."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Where the newest values are, each array ``[series]`` in the measuring space less the season."""

    position: FloatArray
    """NaN where nothing was given."""
    threshold: FloatArray
    """The distance from the level that scores 1."""
    recent: FloatArray
    """The average of the last few values, anomalous or not."""
    sigma: FloatArray
    """The usual spread around the level."""


class SeasonalBaseline:
    """Scores each value by its distance from its series' own level."""

    name = "baseline"

    def __init__(
        self, settings: BaselineSettings, overrides: Sequence[SignalOverride] = ()
    ) -> None:
        self._settings = settings
        self._profiles = SeriesProfiles(overrides)
        self._tail = TailTracker(settings.tail_rate)
        self._records = Records(settings)
        self._columns = Columns(
            level=np.nan,
            deviation=0.0,
            shadow=np.nan,
            smooth=np.nan,
            gap=np.nan,
            count=0.0,
            first_seconds=np.nan,
            last_seconds=np.nan,
        )
        self._deviation: FloatArray = np.empty(0)
        self._normal: NDArray[np.bool_] = np.empty(0, dtype=bool)
        self._shapes = SeasonalShapes()
        self._season = np.empty(0)
        nothing = np.empty(0)
        self._reading = Reading(nothing, nothing, nothing, nothing)
        self._distance: FloatArray = nothing
        self._raw: FloatArray = nothing

    @property
    def warmed_up(self) -> NDArray[np.bool_]:
        """``[series]``: whether a baseline of its own exists."""
        age = self._columns["last_seconds"] - self._columns["first_seconds"]
        enough = self._columns["count"] >= self._settings.warm_values
        return np.asarray(enough & (age >= self._settings.warm_seconds))

    @property
    def gap(self) -> FloatArray:
        """``[series]``: the usual distance of values in seconds, 0 where there is none yet."""
        return np.asarray(np.fmax(self._columns["gap"], 0.0))

    @property
    def level(self) -> FloatArray:
        """``[series]``: the level in the measuring space, less the season."""
        return self._columns["level"]

    @property
    def reading(self) -> Reading:
        """What the newest tick measured."""
        return self._reading

    @property
    def tail(self) -> TailTracker:
        """The calibration, for its realised rate."""
        return self._tail

    @property
    def deviation(self) -> FloatArray:
        """``[series]``: how far the newest value is to the bad side, before calibration.

        0 on the harmless side, NaN where there is no value or no baseline.
        """
        return self._deviation

    @property
    def normal(self) -> NDArray[np.bool_]:
        """``[series]``: whether the newest deviation is taken for one of normal values."""
        return self._normal

    def realised(self) -> Realised:
        """Return how often normal values scored above 1."""
        return self._tail.realised.summary(self.name, self._profiles.keys)

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for new series."""
        self._profiles.grow(keys)
        self._columns.grow(len(keys))
        self._tail.grow(len(keys))
        self._records.grow(keys)
        self._shapes.grow(len(keys))

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        self._profiles.keep(kept)
        self._columns.keep(kept)
        self._tail.keep(kept)
        self._records.keep(kept)
        self._shapes.keep(kept)

    def adopt(self, shapes: Mapping[int, SeasonalShape]) -> None:
        """Use fitted seasonal shapes, by column, from now on; what is expected now stays the same."""
        columns = self._columns
        chosen = np.array(sorted(shapes), dtype=np.int64)
        seen = columns["last_seconds"]
        now = float(np.nanmax(seen)) if np.isfinite(seen).any() else 0.0
        before = self._shapes.at(now)
        self._shapes.adopt(shapes)
        change = (before - self._shapes.at(now))[chosen]
        for name in ("level", "shadow", "smooth"):
            columns[name][chosen] += change

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:
        """Score one tick of values ``[series]``, then learn from it."""
        profiles, columns = self._profiles, self._columns
        season = self._season = self._shapes.at(time_seconds)
        given = np.isfinite(values) & profiles["statistical"].astype(bool)
        position = profiles.forward(np.where(given, values, np.nan)) - season
        self._begin(time_seconds, position, given)
        position = self._smooth(position, given)
        age = np.fmax(time_seconds - columns["first_seconds"], 0.0)
        known = judged(age, columns["count"], self._settings)
        level = columns["level"] + season
        threshold = self._records.threshold(self._threshold(level, age), level)
        error = position - columns["level"]
        expected = profiles.inverse(columns["level"] + season)
        raw = self._raw_score(profiles.inverse(position + season), expected, error, threshold)
        rising = given & (error > 0) & self._idle(expected)
        started = rising & (raw > 1.0)
        raw = np.where(rising, 0.0, raw)
        # A record is a limit that the tail has made already.
        limit = np.where(self._records.ruled, 1.0, self._tail.limit)
        score = np.where(given & known, raw / limit, np.nan)
        reach = threshold * limit
        low = profiles.inverse(columns["level"] + season - reach)
        high = profiles.inverse(columns["level"] + season + reach)
        sigma = _SIGMA_PER_MEAN_DEVIATION * columns["deviation"]
        self._reading = Reading(position, reach, columns["shadow"], sigma)
        result = Scores(
            score=score,
            expected=np.where(known, expected, np.nan),
            low=np.where(known, np.maximum(low, profiles["lowest"]), np.nan),
            high=np.where(known, np.minimum(high, profiles["highest"]), np.nan),
        )
        # A deviation to the harmless side says nothing of how heavy the tail is that alarms.
        harmful = np.where(error > 0, profiles["bad_up"], profiles["bad_down"]).astype(bool)
        self._deviation = np.where(given & known, np.where(harmful, raw, 0.0), np.nan)
        taken = learn & given & self.warmed_up
        # While caution fades deviations look smaller than they will.
        self._normal = taken & settled(age, columns["count"], self._settings)
        self._tail.update(self._deviation, taken)
        self._records.learn(time_seconds, error, level, learn)
        self._columns.reset(started)
        self._begin(time_seconds, position, started)
        self._learn(time_seconds, position, given, learn, threshold)
        return result

    def share_with_least(self, factor: float) -> FloatArray:
        """Return the share ``[series]`` of the newest scores that a larger least deviation leaves.

        Args:
            factor: how many times larger the least deviation that can matter would be.
        """
        raw = np.maximum(np.nan_to_num(self._raw), 1e-12)
        return np.asarray(np.minimum(1.0, np.nan_to_num(self._distance) / (factor * raw)))

    def dismiss(self, values: FloatArray) -> None:
        """Learn that deviations of so many values ``[series]`` were none: the tail is heavier."""
        self._tail.add_dismissed(values)

    def in_unit(self, positions: FloatArray) -> FloatArray:
        """Bring positions ``[series]`` of the newest tick's time into the units of the signals."""
        return self._profiles.inverse(positions + self._season)

    def rebase(self, chosen: NDArray[np.bool_], level: FloatArray) -> None:
        """Take a level ``[series]`` in the measuring space for the normal of the chosen series."""
        usable = chosen & np.isfinite(level)
        self._columns.put("level", level, usable)

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        tail, shapes = self._tail.state(), self._shapes.state()
        return {**self._columns.state(), **tail, **shapes, **self._records.state()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state of the same series."""
        self._columns.check(state)
        self._tail.check(state)
        self._shapes.check(state)
        self._records.check(state)
        self._columns.restore(state)
        self._tail.restore(state)
        self._shapes.restore(state)
        self._records.restore(state)

    def _raw_score(
        self, values: FloatArray, expected: FloatArray, error: FloatArray, threshold: FloatArray
    ) -> FloatArray:
        """Return the lesser of two ratios: to the threshold, and to the least deviation of interest."""
        by_spread = np.abs(error) / np.maximum(threshold, 1e-12)
        least = np.maximum(self._profiles["least"].astype(float), 1e-12)
        self._distance = np.abs(values - expected) / least
        self._raw = np.minimum(by_spread, self._distance)
        return np.asarray(self._raw)

    def _idle(self, expected: FloatArray) -> NDArray[np.bool_]:
        """Return which load-like series stand still; traffic that starts begins a new baseline."""
        return np.asarray(self._profiles["follows_load"] & (expected < self._profiles["deadband"]))

    def _threshold(self, level: FloatArray, age: FloatArray) -> FloatArray:
        own, columns = self._settings, self._columns
        sigma = _SIGMA_PER_MEAN_DEVIATION * columns["deviation"]
        spread = own.raise_sigmas * by_count(columns["count"], own) * sigma
        return np.maximum(self._profiles.floor(level), spread) * by_age(age, own)

    def _smooth(self, position: FloatArray, given: NDArray[np.bool_]) -> FloatArray:
        """Average the newest values of load-like series, whose counts are noisy by nature."""
        smooth = self._columns["smooth"]
        weight = np.where(self._profiles["follows_load"], _LOAD_WEIGHT, 1.0)
        smooth[given] += (weight * (position - smooth))[given]
        return np.where(given, smooth, np.nan)

    def _begin(self, time_seconds: float, position: FloatArray, given: NDArray[np.bool_]) -> None:
        """Let series without a level start from their first value."""
        columns = self._columns
        fresh = given & (columns["count"] == 0)
        columns.put("level", position, fresh)
        columns.put("shadow", position, fresh)
        columns.put("smooth", position, fresh)
        columns.put("first_seconds", time_seconds, fresh)

    def _learn(
        self,
        time_seconds: float,
        position: FloatArray,
        given: NDArray[np.bool_],
        learn: NDArray[np.bool_],
        threshold: FloatArray,
    ) -> None:
        columns, own = self._columns, self._settings
        elapsed = np.where(columns["count"] == 0, 0.0, time_seconds - columns["last_seconds"])
        gap = np.where(np.isnan(columns["gap"]), elapsed, columns["gap"])
        columns.put("gap", gap + 0.1 * (elapsed - gap), given)

        shadow_rate = 1.0 / _SHADOW_VALUES
        columns["shadow"][given] += shadow_rate * (position - columns["shadow"])[given]
        taken = given & learn
        error = np.where(taken, position - columns["level"], 0.0)
        cold = 1.0 / (columns["count"] + 1.0)
        level_rate = self._rate(elapsed, own.level_memory_seconds, self._level_values())
        clipped = np.clip(error, -_CLIP * threshold, _CLIP * threshold)
        columns.add("level", np.maximum(level_rate, cold) * clipped, taken)
        spread_rate = self._rate(elapsed, own.scale_memory_seconds, own.scale_memory_values)
        # What is far out is a change of level, which the level follows, and no spread.
        near = taken & (np.abs(error) <= threshold)
        change = np.maximum(spread_rate, cold) * (np.abs(error) - columns["deviation"])
        columns.add("deviation", change, near)
        columns.add("count", 1.0, given)
        columns.put("last_seconds", time_seconds, given)

    def _level_values(self) -> FloatArray:
        """Return the least memory of the level: half where only the past says what is usual.

        There no least deviation forgives a level that lags behind.
        """
        return self._settings.level_memory_values * np.where(self._records.ruled, 0.5, 1.0)

    def _rate(self, elapsed: FloatArray, seconds: float, values: float | FloatArray) -> FloatArray:
        """Return the weight of the newest value for a memory in seconds and at least in values."""
        memory = np.maximum(seconds, values * np.fmax(self._columns["gap"], 0.0))
        # After a pause the old level still counts: no single value may replace it.
        return np.asarray(np.minimum(1.0 - np.exp(-np.fmax(elapsed, 0.0) / memory), 0.3))
