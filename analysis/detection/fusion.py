"""From the scores of all detectors to one picture of every series, and of what is raised.

The detector with the highest score leads: its band and direction are shown. While an anomaly is held its
newest deviating value stays in the picture, so that people see what was wrong and not the pause between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.detection.channels import Channels, Moment
from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray, Scores
from analysis.detection.exhaustion import Forecast
from analysis.detection.level_shift import LevelShifts
from analysis.detection.limits import Limits
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.states import (
    ABSENT,
    DOWN,
    EVENT,
    FLAT,
    NORMAL,
    UP,
    TickArrays,
)

LEADERS = (
    "baseline",
    "limit",
    "absence",
    "drop_to_zero",
    "trend",
    "exhaustion",
    "peers",
    "flat_line",
)
"""Detectors whose score can be that of a series; the order breaks ties."""
BITS = (
    "baseline",
    "limit",
    "absence",
    "drop_to_zero",
    "trend",
    "mahalanobis",
    "forest",
    "exhaustion",
    "peers",
    "flat_line",
)
"""Which bit says that a detector scores above 1. Saved states hold such bits: add, never reorder."""
_BOUNDS = ("expected", "low", "high")
_SHOWN = (*_BOUNDS, "observed", "score", "direction", "detectors", "p_value")


class Fusion:
    """Keeps what is shown of every series between its values, and of its anomaly while it is held.

    Args:
        profiles: what each series means; the pipeline grows it.
        limits: whose rules are shown.
        seen: the newest ``value`` of each series, and the ``onset`` of its deviation, kept here.
    """

    def __init__(self, profiles: SeriesProfiles, limits: Limits, seen: Columns) -> None:
        self._profiles = profiles
        self._limits = limits
        self._seen = seen
        self.last = _shown_columns()
        self.held = _shown_columns()

    def grow(self, count: int) -> None:
        """Add series."""
        self.last.grow(count)
        self.held.grow(count)

    def fuse(
        self,
        moment: Moment,
        scores: Mapping[str, Scores],
        counted: NDArray[np.bool_],
        channels: Channels,
    ) -> dict[str, NDArray[Any]]:
        """Return what is shown of every series at this tick, by the fields of :class:`TickArrays`.

        Args:
            moment: what the tick's values look like.
            scores: by detector.
            counted: which series deviate in a way that counts.
            channels: what is raised.
        """
        leader, score = _highest([scores[name].score for name in LEADERS])
        deviating = score > 1.0
        values = self._seen["value"]
        bounds = {name: _led(scores, leader, name, deviating) for name in _BOUNDS}
        now = {
            "observed": values,
            "score": score,
            "direction": self._directions(moment, leader, values, bounds["expected"], deviating),
            "detectors": _bits(scores),
            "p_value": moment.p_value,
            **bounds,
        }
        # Between the values of a slow series what was said of its last value stands.
        absent = scores["absence"].score > 1.0
        fresh = moment.given | moment.stale | absent
        for name in _SHOWN:
            self.last.put(name, now[name], fresh)
        last = {name: self.last[name].copy() for name in _SHOWN}
        active = channels.active
        self._hold(last, counted & (last["score"] > 1.0), active)
        return self._shown(moment, last, active, channels.onset_seconds)

    def _shown(
        self,
        moment: Moment,
        last: Mapping[str, NDArray[Any]],
        active: NDArray[np.bool_],
        first: FloatArray,
    ) -> dict[str, NDArray[Any]]:
        event = self._profiles["event"]
        held = active & ((last["score"] <= 1.0) | event)
        shown: dict[str, NDArray[Any]] = {
            name: np.where(held, self.held[name], last[name]) for name in _SHOWN
        }
        gone = moment.stale & ~moment.given & ~(held & event)
        observed = np.where(held & event, self.held["observed"], last["observed"])
        shown["observed"] = np.where(gone, np.nan, observed)
        shown["direction"] = shown["direction"].astype(np.int8)
        # The onset of each deviation is the first of both channels while either lasts.
        onset = self._seen["onset"]
        onset[:] = np.where(np.isnan(first), np.nan, np.fmin(onset, first))
        return {
            **shown,
            "onset_seconds": onset.copy(),
            "active": active,
            "age_seconds": moment.age,
        }

    def of_anomalies(self, arrays: TickArrays) -> TickArrays:
        """Return the same tick with what is active as its newest deviating value showed it."""
        held = self.held
        return replace(
            arrays,
            observed=np.where(self._profiles["event"], held["observed"], arrays.observed),
            direction=held["direction"].astype(np.int8),
            expected=held["expected"],
            low=held["low"],
            high=held["high"],
            score=held["score"],
            detectors=held["detectors"],
            p_value=held["p_value"],
        )

    def _directions(
        self,
        moment: Moment,
        leader: NDArray[np.int64],
        values: FloatArray,
        expected: FloatArray,
        deviating: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        below = np.where(values < self._limits.below, DOWN, UP)
        with np.errstate(invalid="ignore"):
            beside = np.where(values < expected, DOWN, UP)
        fixed = {"absence": ABSENT, "drop_to_zero": DOWN, "trend": UP, "flat_line": FLAT}
        told = {"baseline": moment.direction, "limit": below, "exhaustion": beside, "peers": beside}
        choices = [
            told[name] if name in told else np.full_like(leader, fixed[name]) for name in LEADERS
        ]
        by_leader = np.choose(leader, choices)
        limit = LEADERS.index("limit")
        by_leader = np.where(self._profiles["event"] & (leader == limit), EVENT, by_leader)
        return np.where(deviating, by_leader, NORMAL)

    def _hold(
        self,
        now: Mapping[str, NDArray[Any]],
        deviating: NDArray[np.bool_],
        active: NDArray[np.bool_],
    ) -> None:
        """Keep what the newest deviating value looked like, for as long as its anomaly is held."""
        held = self.held
        for name in _SHOWN:
            if name == "detectors":
                before = np.where(active, held[name], 0)
                held[name][deviating] = (before | now[name].astype(np.int64))[deviating]
            else:
                held[name][deviating] = now[name][deviating]


def tick_arrays(
    shown: Mapping[str, NDArray[Any]],
    warmed_up: NDArray[np.bool_],
    share: FloatArray,
    forecast: Forecast | None,
    shifts: LevelShifts,
) -> TickArrays:
    """Put one tick's picture together; what changes later is copied."""
    return TickArrays(
        **shown,
        warmed_up=warmed_up,
        share=share,
        forecast=forecast,
        shifted_at=shifts.shifted_at.copy(),
        shifted_from=shifts.before.copy(),
        shifted_to=shifts.after.copy(),
    )


def _shown_columns() -> Columns:
    """Return columns for what is shown of a series; direction and detectors are small numbers."""
    return Columns(
        observed=np.nan,
        expected=np.nan,
        low=np.nan,
        high=np.nan,
        score=0.0,
        direction=NORMAL,
        detectors=0,
        p_value=np.nan,
    )


def _highest(scores: Sequence[FloatArray]) -> tuple[NDArray[np.int64], FloatArray]:
    """Return which of the scores ``[series]`` is the highest, the first of equals, and that score."""
    leader = np.zeros(len(scores[0]), dtype=np.int64)
    best = np.fmax(scores[0], -1.0)
    for number, score in enumerate(scores[1:], start=1):
        above = score > best
        np.copyto(leader, number, where=above)
        np.copyto(best, score, where=above)
    return leader, np.maximum(best, 0.0)


def _led(
    scores: Mapping[str, Scores],
    leader: NDArray[np.int64],
    name: str,
    deviating: NDArray[np.bool_],
) -> FloatArray:
    """Return a bound of the leading detector where it deviates and has one, else the baseline's."""
    chosen = np.array(getattr(scores["baseline"], name))
    far = np.flatnonzero(deviating)
    for number in np.unique(leader[far]):
        led = far[leader[far] == number]
        own = getattr(scores[LEADERS[number]], name)[led]
        chosen[led] = np.where(np.isfinite(own), own, chosen[led])
    return chosen


def _bits(scores: Mapping[str, Scores]) -> NDArray[np.int64]:
    """Return, for each series, a bit for every detector that scores above 1."""
    bits = np.zeros(len(scores["baseline"].score), dtype=np.int64)
    for bit, name in enumerate(BITS):
        if name in scores:
            bits |= (scores[name].score > 1.0).astype(np.int64) << bit
    return bits


def lifted(baseline: Scores, votes: Sequence[Scores], factor: float) -> Scores:
    """Return the baseline's scores, raised for series that lead a vote above 1."""
    if not votes:
        return baseline
    lead = np.zeros(len(baseline.score), dtype=bool)
    for vote in votes:
        lead |= vote.score > 1.0
    score = np.where(lead, factor * baseline.score, baseline.score)
    return Scores(score, baseline.expected, baseline.low, baseline.high)
