"""The two channels from scores to raised anomalies, each with its own alert policy.

The hard channel holds what needs no statistics of the value's own past: limits, absence, drops to zero,
leaks, exhaustion, flat lines and siblings that differ. The statistical channel holds the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.detection.alert_policy import AlertPolicy
from analysis.detection.contract import FloatArray, Scores
from analysis.detection.limits import Limits
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.settings import AlertSettings
from analysis.detection.states import DOWN, UP

_HARD = ("absence", "drop_to_zero", "trend", "exhaustion", "peers", "flat_line")
"""What is raised by other than its value's own limit, so never without a bad direction."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What one tick's values look like, each array ``[series]``."""

    seconds: float
    given: NDArray[np.bool_]
    stale: NDArray[np.bool_]
    """The newest value is older than the series' own cadence explains."""
    age: FloatArray
    direction: NDArray[np.int8]
    """On which side of the baseline the value is."""
    mute: NDArray[np.bool_]
    """Nothing is raised: the series is under maintenance, or switched off."""
    at_home: NDArray[np.bool_]
    """The value is back at a level that it had before."""
    p_value: FloatArray


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """What both alert policies were given at one tick, each array ``[series]``."""

    seconds: float
    statistical: FloatArray
    hard: FloatArray
    direction: NDArray[np.int8]
    minimum_values: NDArray[Any]
    minimum_seconds: NDArray[Any]
    hard_values: NDArray[Any]
    hard_seconds: NDArray[Any]
    hard_hold_seconds: NDArray[Any]
    deviating: NDArray[np.bool_]
    """What the statistical channel then held for deviating, before any re-base."""


class Channels:
    """Holds which deviations are pending and which are raised."""

    def __init__(self, settings: AlertSettings, profiles: SeriesProfiles) -> None:
        self._settings = settings
        self._profiles = profiles
        self.statistical = AlertPolicy(settings)
        self.hard = AlertPolicy(settings)
        self.inputs: PolicyInputs | None = None

    @property
    def active(self) -> NDArray[np.bool_]:
        """``[series]``: raised in either channel."""
        return np.asarray(self.statistical.active | self.hard.active)

    @property
    def busy(self) -> NDArray[np.bool_]:
        """``[series]``: deviating in a way that a baseline should not learn."""
        return np.asarray(self.statistical.deviating | self.hard.active)

    @property
    def onset_seconds(self) -> FloatArray:
        """``[series]``: the first onset of both channels; NaN while there is none."""
        return np.fmin(self.statistical.onset_seconds, self.hard.onset_seconds)

    def grow(self, count: int) -> None:
        """Add series."""
        self.statistical.grow(count)
        self.hard.grow(count)

    def update(
        self, moment: Moment, scores: Mapping[str, Scores], limits: Limits
    ) -> NDArray[np.bool_]:
        """Give both channels their scores; return which series deviate in a way that counts."""
        statistical = self._statistical_score(moment, scores["baseline"])
        profiles = self._profiles
        self.statistical.update(
            moment.seconds,
            statistical,
            minimum_values=profiles["minimum_values"],
            minimum_seconds=profiles["minimum_seconds"],
            hold_seconds=0.0,
        )
        hard = self._hard_score(moment, scores)
        values, seconds, hold = limits.durations
        self.hard.update(
            moment.seconds, hard, minimum_values=values, minimum_seconds=seconds, hold_seconds=hold
        )
        self.inputs = PolicyInputs(
            moment.seconds,
            statistical,
            hard,
            moment.direction,
            profiles["minimum_values"],
            profiles["minimum_seconds"],
            values,
            seconds,
            hold,
            self.statistical.deviating,
        )
        return np.asarray((statistical > 1.0) | (hard > 1.0))

    def _statistical_score(self, moment: Moment, baseline: Scores) -> FloatArray:
        profiles, direction = self._profiles, moment.direction
        bad = (profiles["bad_up"] & (direction == UP)) | (
            profiles["bad_down"] & (direction == DOWN)
        )
        score = np.where(bad, baseline.score, np.where(moment.given, 0.0, np.nan))
        # Whether it stays there is seen in a few values; until then nothing begins and nothing ends.
        score = np.where(bad & moment.at_home, np.nan, score)
        # What a series no longer says neither raises nor holds an anomaly of its value.
        return np.where((moment.stale & ~moment.given) | moment.mute, 0.0, score)

    def _hard_score(self, moment: Moment, scores: Mapping[str, Scores]) -> FloatArray:
        profiles = self._profiles
        over = np.where(moment.stale, 0.0, np.nan)
        # An old absence is a series that is gone, not news.
        news = ~profiles["conditional"] & (moment.age <= self._settings.absorb_seconds)
        others = np.where(news, scores["absence"].score, over)
        for name in _HARD[1:]:
            others = np.fmax(others, scores[name].score)
        # Without a bad direction only a rule of its own raises a signal, such as a state.
        harmless = ~(profiles["bad_up"] | profiles["bad_down"])
        others = np.where(harmless, over, others)
        return np.where(moment.mute, 0.0, np.fmax(scores["limit"].score, others))
