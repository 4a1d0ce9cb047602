"""Level shifts: a deviation that stays is a new level, told once and then taken for normal.

A cumulative sum of the scores (Page, "Continuous inspection schemes", 1954) says when values left their
level: at its last zero. They have shifted once enough of them lie beyond the band on one side, are no
trend and show one level among themselves. What happens then depends on what the series means. Load is
re-based soon, because a surge that lasts is the load of today, and the level before is remembered, so
that going back is no surprise. Symptoms and resources stay deviating for ``absorb_seconds``, because
people are still hurt. In the end everything is re-based, and each re-base is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.alert_policy import AlertPolicy
from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.seasonal import Reading, SeasonalBaseline
from analysis.detection.settings import DetectionSettings
from analysis.findings import LevelShift
from collectors.contract import SeriesKey
from collectors.signals import unit_of

_DRIFT = 0.5
"""Half of the least shift of interest, in thresholds: Page's reference value."""
_LEVEL_VALUES = 20.0
_STEADY_SIGMAS, _STEADY_SHARE = 2.0, 0.1
"""The average of the newest few values has to be as near to that of twenty, in standard deviations or
in thresholds: of a climb it is ahead."""
_STEADY_VALUES = 10.0
_HOME = 0.5
"""How near the old level is home, in thresholds."""
_RETURN_VALUES = 5.0


class LevelShifts:
    """Follows every raised deviation until it is over or the new level.

    Args:
        settings: of detection.
        profiles: what each series means; shared with the pipeline, which grows it.
    """

    def __init__(self, settings: DetectionSettings, profiles: SeriesProfiles) -> None:
        self._settings = settings.shift
        self._absorb_seconds = settings.alerts.absorb_seconds
        self._absorb_values = settings.alerts.absorb_values
        self._profiles = profiles
        self._columns = Columns(
            up=0.0,
            down=0.0,
            up_since=np.nan,
            down_since=np.nan,
            level=np.nan,
            values=0.0,
            steady=0.0,
            shifted_at=np.nan,
            before=np.nan,
            after=np.nan,
            home=np.nan,
            home_until=np.nan,
            home_values=0.0,
        )

    def grow(self, count: int) -> None:
        """Add series."""
        self._columns.grow(count)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the series where ``kept`` is false."""
        self._columns.keep(kept)

    @property
    def shifted_at(self) -> FloatArray:
        """``[series]``: when a deviation that is a new level began; NaN where there is none."""
        return self._columns["shifted_at"]

    @property
    def before(self) -> FloatArray:
        """``[series]``: the level before the shift, in the unit of the signal."""
        return self._columns["before"]

    @property
    def after(self) -> FloatArray:
        """``[series]``: the level since the shift."""
        return self._columns["after"]

    def at_home(self, time_seconds: float, reading: Reading) -> NDArray[np.bool_]:
        """Return which series are back at the level that they had before their last shift."""
        columns = self._columns
        known = time_seconds < columns["home_until"]
        if not known.any():
            return known
        with np.errstate(invalid="ignore"):
            near = np.abs(reading.position - columns["home"]) <= _HOME * reading.threshold
        return np.asarray(known & near)

    def update(
        self,
        time_seconds: float,
        signed: FloatArray,
        baseline: SeasonalBaseline,
        policy: AlertPolicy,
        fixed: NDArray[np.bool_],
    ) -> list[LevelShift]:
        """Take one tick; re-base what is due, end its anomaly, and return what there is to tell.

        Args:
            time_seconds: of the tick.
            signed: ``[series]`` scores of the baseline, negative below the level; NaN where nothing
                was given.
            baseline: whose levels are re-based.
            policy: that holds the deviations.
            fixed: series that another detector holds deviating, which are not re-based early.
        """
        reading = baseline.reading
        self._go_home(time_seconds, signed, baseline, policy)
        self._note(time_seconds, signed, reading)
        self._find(signed, policy, baseline)
        columns = self._columns
        lasted = time_seconds - policy.raised_seconds
        early = np.isfinite(columns["shifted_at"]) & self._profiles["shifts"] & ~fixed
        early &= columns["steady"] >= _STEADY_VALUES
        early &= lasted >= self._settings.rebase_seconds
        old = lasted >= np.maximum(self._absorb_seconds, self._absorb_values * baseline.gap)
        due = early | old
        if not due.any():
            return []
        return self._rebase(time_seconds, due, baseline, policy)

    def findings(self, chosen: NDArray[np.int64], keys: Sequence[SeriesKey]) -> list[LevelShift]:
        """Return the shifts of some columns."""
        columns = self._columns
        return [
            LevelShift(
                entity=keys[column].entity,
                signal=keys[column].signal,
                unit=unit_of(keys[column].signal),
                at_seconds=float(columns["shifted_at"][column]),
                before=float(columns["before"][column]),
                after=float(columns["after"][column]),
            )
            for column in chosen
        ]

    def _note(self, time_seconds: float, signed: FloatArray, reading: Reading) -> None:
        """Move the cumulative sums, and the level of the values since they left zero."""
        columns = self._columns
        given = np.isfinite(signed)
        step = np.clip(np.nan_to_num(signed), -1.0, 1.0)
        most = float(self._settings.values)
        for name, sign in (("up", 1.0), ("down", -1.0)):
            total, since = columns[name], columns[f"{name}_since"]
            moved = np.clip(total + sign * step - _DRIFT, 0.0, most)
            begins = given & (total == 0.0) & (moved > 0.0)
            since[begins] = time_seconds
            columns.put("values", 0.0, begins)
            total[given] = moved[given]
            since[given & (moved == 0.0)] = np.nan
        away = given & ((columns["up"] > 0.0) | (columns["down"] > 0.0))
        columns.add("values", 1.0, away)
        rate = 1.0 / np.clip(columns["values"], 1.0, _LEVEL_VALUES)
        level = np.where(columns["values"] <= 1.0, reading.position, columns["level"])
        columns.put("level", level + rate * (reading.position - level), away)
        near = np.maximum(_STEADY_SIGMAS * reading.sigma, _STEADY_SHARE * reading.threshold)
        with np.errstate(invalid="ignore"):
            steady = np.abs(reading.recent - columns["level"]) <= near
        columns.put("steady", np.where(away & steady, columns["steady"] + 1.0, 0.0), given)

    def _find(
        self,
        signed: FloatArray,
        policy: AlertPolicy,
        baseline: SeasonalBaseline,
    ) -> None:
        columns = self._columns
        columns["shifted_at"][~policy.active] = np.nan
        enough = (1.0 - _DRIFT) * self._settings.values
        for name, sign in (("up", 1.0), ("down", -1.0)):
            beyond = policy.active & (sign * signed > 1.0)
            beyond &= (columns[name] >= enough) & (columns["values"] >= self._settings.values)
            steady = columns["steady"] >= _STEADY_VALUES
            found = beyond & steady & np.isnan(columns["shifted_at"])
            if found.any():
                columns["shifted_at"][found] = columns[f"{name}_since"][found]
                columns["before"][found] = baseline.in_unit(baseline.level)[found]
        moved = np.isfinite(columns["shifted_at"])
        if moved.any():
            columns["after"][moved] = baseline.in_unit(columns["level"])[moved]

    def _rebase(
        self,
        time_seconds: float,
        due: NDArray[np.bool_],
        baseline: SeasonalBaseline,
        policy: AlertPolicy,
    ) -> list[LevelShift]:
        columns = self._columns
        # What has lasted for long without a steady level moved as well, to wherever it is now.
        untold = due & np.isnan(columns["shifted_at"])
        columns.put("shifted_at", policy.onset_seconds, untold)
        columns["before"][untold] = baseline.in_unit(baseline.level)[untold]
        steady = due & ~untold & np.isfinite(columns["level"])
        target = np.where(steady, columns["level"], baseline.reading.recent)
        columns["after"][due] = baseline.in_unit(target)[due]
        remembered = due & self._profiles["shifts"]
        columns.put("home", baseline.level, remembered)
        columns["home_until"][remembered] = time_seconds + self._settings.remember_seconds
        told = due & np.isfinite(columns["before"]) & np.isfinite(columns["after"])
        findings = self.findings(np.flatnonzero(told), self._profiles.keys)
        baseline.rebase(due, target)
        policy.drop(due)
        self._forget(due)
        return findings

    def _go_home(
        self,
        time_seconds: float,
        signed: FloatArray,
        baseline: SeasonalBaseline,
        policy: AlertPolicy,
    ) -> None:
        """Let series that have come back to their old level for a few values have it again."""
        columns = self._columns
        home = self.at_home(time_seconds, baseline.reading)
        away = np.isfinite(signed) & ~home
        columns.put("home_values", 0.0, away)
        back = home & (np.abs(signed) > 1.0)
        columns.add("home_values", 1.0, back)
        settled = back & (columns["home_values"] >= _RETURN_VALUES)
        if settled.any():
            baseline.rebase(settled, columns["home"])
            policy.drop(settled)
            self._forget(settled)
            columns.put("home", np.nan, settled)
            columns.put("home_until", np.nan, settled)
            columns.put("home_values", 0.0, settled)

    def _forget(self, chosen: NDArray[np.bool_]) -> None:
        columns = self._columns
        for name in ("up", "down", "values", "steady"):
            columns[name][chosen] = 0.0
        for name in ("up_since", "down_since", "level", "shifted_at", "before", "after"):
            columns[name][chosen] = np.nan

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        return self._columns.state()

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state; raises ValueError and changes nothing where it does not fit."""
        self._columns.restore(state)
