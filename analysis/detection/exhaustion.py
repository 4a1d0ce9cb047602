"""Exhaustion: when what runs out evenly will have run out.

Memory, disks and file descriptors have a physical limit: it is in the signal catalogue, or the value of
another series of the same entity (a GPU's whole memory). Three windows look for even growth towards it,
over half a minute, minutes and an hour, and give the time to the limit with its 95% interval. A score
above 1 means that the limit is near: nearer than ``horizon_seconds``, and than ``reach`` times what the
window has seen, because growth is no promise. The shortest window only forecasts.

Direction: towards the limit. Warm-up: a full window of even growth. It fails on growth in bursts and on
resources whose limit nobody says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray, Scores
from analysis.detection.profiles import SeriesProfiles, listed_signals, sensitivity_of
from analysis.detection.settings import ExhaustionSettings
from analysis.detection.slope_window import SlopeWindow
from collectors.contract import SeriesKey

_TAU = 0.85
_POINTS = 30
_HIGHEST_SCORE = 10.0
_RESTART_FALL = 0.2
"""A fall of what is used by this share is a restart or a clean-up, and begins a new window."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Times to the limit, each array ``[series]``; NaN where none is in sight."""

    limit: FloatArray
    per_second: FloatArray
    seconds: FloatArray
    soonest: FloatArray
    latest: FloatArray
    """Infinite where it may never come."""


@cache
def _capacity(signal: str) -> str | None:
    return sensitivity_of(signal).capacity


@cache
def _capacities() -> frozenset[str]:
    """Return the signals that say how much of another there is."""
    return frozenset(filter(None, map(_capacity, listed_signals())))


class Exhaustion:
    """Scores how near the limit of a resource is at its present, steady growth."""

    name = "exhaustion"

    def __init__(self, settings: ExhaustionSettings) -> None:
        self._settings = settings
        self._profiles = SeriesProfiles()
        # Used up is counted upwards: what falls towards its limit is taken negative.
        self._columns = Columns(
            sign=0.0,
            capacity_column=-1,
            limit=np.nan,
            last=np.nan,
            **{
                f"{name}_{number}": np.nan
                for number in range(3)
                for name in ("slope", "slow", "fast", "score")
            },
        )
        spans = (settings.short_seconds, settings.middle_seconds, settings.long_seconds)
        self._windows = [SlopeWindow(_POINTS, span, _TAU) for span in spans]
        self._spans = spans
        self._watched: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._limited: dict[SeriesKey, int] = {}
        """The column that is limited by each series that says a capacity."""
        self._whole: dict[SeriesKey, int] = {}

    @property
    def forecast(self) -> Forecast | None:
        """What the newest values and slopes say; None while nothing grows towards a limit."""
        columns = self._columns
        if not any(np.isfinite(columns[f"slope_{number}"]).any() for number in range(3)):
            return None
        left = columns["sign"] * (columns["limit"] - columns["last"])
        slope, slow, fast = np.full((3, len(columns)), np.nan)
        for number in range(len(self._windows)):
            # The fastest of the slopes that are sound: a warning early is better than late.
            steeper = columns[f"slope_{number}"] > np.nan_to_num(slope)
            for into, name in ((slope, "slope"), (slow, "slow"), (fast, "fast")):
                into[steeper] = columns[f"{name}_{number}"][steeper]
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.maximum(left, 0.0)
            latest = np.where(slow > 0, left / slow, np.where(np.isnan(slow), np.nan, np.inf))
            return Forecast(
                limit=np.array(columns["limit"]),
                per_second=columns["sign"] * slope,
                seconds=left / slope,
                soonest=left / fast,
                latest=latest,
            )

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for new series; only resources with a limit are watched."""
        start = len(self._profiles)
        self._profiles.grow(keys)
        self._columns.grow(len(keys))
        columns, profiles = self._columns, self._profiles
        new = slice(start, None)
        depletes = profiles["depletes"][new]
        upwards = profiles["bad_up"][new]
        columns["sign"][new] = np.where(depletes, np.where(upwards, 1.0, -1.0), 0.0)
        limit = np.where(upwards, profiles["highest"][new], profiles["lowest"][new])
        columns["limit"][new] = np.where(depletes & np.isfinite(limit), limit, np.nan)
        self._link_capacities(start)
        before = len(self._watched)
        self._watched = np.flatnonzero(columns["sign"] != 0.0)
        for window in self._windows:
            window.grow(len(self._watched) - before)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        watched = kept[self._watched]
        for window in self._windows:
            window.keep(watched)
        self._profiles.keep(kept)
        self._columns.keep(kept)
        self._limited, self._whole = {}, {}
        self._link_capacities(0)
        self._watched = np.flatnonzero(self._columns["sign"] != 0.0)

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:  # noqa: ARG002
        """Score one tick of values ``[series]``; only watched series have an opinion.

        ``learn`` is not used: nothing that is usual is learned.
        """
        nothing = np.full(len(self._columns), np.nan)
        if not self._watched.size:
            return Scores(nothing, nothing, nothing, nothing)
        columns, watched = self._columns, self._watched
        self._read_capacities(values)
        level = columns["sign"][watched] * values[watched]
        given = np.isfinite(level)
        self._forget_restarted(level, given)
        for number, window in enumerate(self._windows):
            interval = self._spans[number] / (_POINTS - 1)
            due = given & (window.age(time_seconds) >= interval - 1e-6)
            if due.any():
                window.push(time_seconds, level, due)
                self._judge(number, due)
        columns["last"][watched[given]] = values[watched[given]]
        best = np.fmax(columns["score_1"], columns["score_2"])
        score = nothing.copy()
        score[watched] = np.where(given, np.nan_to_num(best[watched]), np.nan)
        oldest = self._windows[1].oldest * columns["sign"][watched]
        expected = nothing.copy()
        expected[watched] = np.where(best[watched] > 1.0, oldest, np.nan)
        return Scores(score, expected, nothing, nothing)

    def _judge(self, number: int, due: NDArray[np.bool_]) -> None:
        """Take the slopes of one window anew, and how near they bring the limit."""
        columns, watched, own = self._columns, self._watched, self._settings
        chosen, slopes = self._windows[number].growing()
        found = np.full((4, len(watched)), np.nan)
        found[3] = 0.0
        place = watched[chosen]
        newest = self._windows[number].newest[chosen]
        left = np.maximum(columns["sign"][place] * columns["limit"][place] - newest, 0.0)
        horizon = min(own.horizon_seconds, own.reach * self._spans[number])
        with np.errstate(divide="ignore"):
            score = np.minimum(horizon * slopes.middle / left, _HIGHEST_SCORE)
        sure = np.isfinite(score) & (slopes.low > 0)
        found[:, chosen] = (
            slopes.middle,
            slopes.low,
            slopes.high,
            np.where(sure, score, 0.0),
        )
        for name, row in zip(("slope", "slow", "fast", "score"), found, strict=True):
            columns[f"{name}_{number}"][watched[due]] = row[due]

    def _link_capacities(self, start: int) -> None:
        """Find the series that say a limit: one of the pair is among those from column ``start`` on."""
        for column, key in enumerate(self._profiles.keys[start:], start=start):
            capacity = _capacity(key.signal)
            if capacity is not None:
                self._limited[SeriesKey(key.entity, capacity)] = column
            if key.signal in _capacities():
                self._whole[key] = column
        for key, column in self._limited.items():
            self._columns["capacity_column"][column] = self._whole.get(key, -1)

    def _read_capacities(self, values: FloatArray) -> None:
        source = self._columns["capacity_column"]
        linked = np.flatnonzero(source >= 0)
        said = values[source[linked]]
        present = np.isfinite(said)
        self._columns["limit"][linked[present]] = said[present]

    def _forget_restarted(self, level: FloatArray, given: NDArray[np.bool_]) -> None:
        columns, watched = self._columns, self._watched
        last = columns["sign"][watched] * columns["last"][watched]
        fell = given & (level < last - _RESTART_FALL * np.abs(last))
        if not fell.any():
            return
        for number, window in enumerate(self._windows):
            window.clear(fell)
            for name in ("slope", "slow", "fast", "score"):
                columns[f"{name}_{number}"][watched[fell]] = np.nan

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        state: dict[str, NDArray[np.generic]] = self._columns.state()
        for number, window in enumerate(self._windows):
            state.update(window.state(f"window_{number}"))
        return state

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state of the same series."""
        for number, window in enumerate(self._windows):
            window.check(state, f"window_{number}")
        self._columns.restore(state)
        for number, window in enumerate(self._windows):
            window.restore(state, f"window_{number}")
