"""The alert policy: from scores to anomalies that a person should hear of.

On the Numenta benchmark the policy moved the score more than the choice of detector. A deviation
has to last, in values or in seconds; it is over only after some time below a lower level; it lives at
least as long as the hold; and one that comes back soon after clearing has to last twice as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray
from analysis.detection.settings import AlertSettings

_CLEAR_VALUES = 2
"""Values below the clear level before a deviation is over, so that one lucky value does not end it."""


class AlertPolicy:
    """Holds, for every series, whether a deviation is pending or active."""

    def __init__(self, settings: AlertSettings) -> None:
        self._settings = settings
        self._dismissed = np.empty(0)
        self._columns = Columns(
            active=False,
            pending=False,
            onset_seconds=np.nan,
            raised_seconds=np.nan,
            cleared_seconds=np.nan,
            calm_since_seconds=np.nan,
            above=0.0,
            calm=0.0,
        )

    @property
    def active(self) -> NDArray[np.bool_]:
        """``[series]``: raised and not yet cleared."""
        return self._columns["active"]

    @property
    def deviating(self) -> NDArray[np.bool_]:
        """``[series]``: pending or active, so that a baseline should not learn."""
        return np.asarray(self._columns["active"] | self._columns["pending"])

    @property
    def onset_seconds(self) -> FloatArray:
        """``[series]``: when the present deviation began; NaN while there is none."""
        return self._columns["onset_seconds"]

    @property
    def raised_seconds(self) -> FloatArray:
        """``[series]``: when the present anomaly was raised; NaN while there is none."""
        return self._columns["raised_seconds"]

    @property
    def dismissed(self) -> FloatArray:
        """``[series]``: values above 1 in deviations that ended at this tick without being raised."""
        return self._dismissed

    def grow(self, count: int) -> None:
        """Add series."""
        self._columns.grow(count)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the series where ``kept`` is false."""
        self._columns.keep(kept)
        self._dismissed = np.empty(0)

    def update(
        self,
        time_seconds: float,
        score: FloatArray,
        *,
        minimum_values: NDArray[Any],
        minimum_seconds: NDArray[Any],
        hold_seconds: NDArray[Any] | float,
    ) -> None:
        """Take one tick of scores ``[series]``; NaN leaves a series as it is.

        A series is raised once it scored above 1 for ``minimum_values`` values, or for two values
        that are at least ``minimum_seconds`` apart, which rules at slow cadences.
        """
        columns, own = self._columns, self._settings
        seen = np.isfinite(score)
        above = seen & (score > 1.0)
        begun = above & ~self.deviating
        columns.put("onset_seconds", time_seconds, begun)
        columns.put("pending", True, begun)
        columns.add("above", 1.0, above)
        self._note_calm(time_seconds, seen & (score < own.clear_level), seen)

        recent = time_seconds - columns["cleared_seconds"] < own.rearm_seconds
        factor = np.where(recent, 2.0, 1.0)
        lasted = time_seconds - columns["onset_seconds"]
        enough = (columns["above"] >= factor * minimum_values) | (
            (columns["above"] >= 2 * factor) & (lasted >= factor * minimum_seconds)
        )
        # A rule of one value has no second one to wait for, whatever came before.
        enough |= np.asarray(minimum_values <= 1) & (columns["above"] >= 1)
        raised = above & columns["pending"] & enough
        columns.put("active", True, raised)
        columns.put("pending", False, raised)
        columns.put("raised_seconds", time_seconds, raised)
        self._end(time_seconds, hold_seconds)

    def drop(self, chosen: NDArray[np.bool_]) -> None:
        """End the deviations of the chosen series at once, such as after a re-base."""
        self._clear(chosen & self.deviating)

    def _note_calm(
        self, time_seconds: float, calm: NDArray[np.bool_], seen: NDArray[np.bool_]
    ) -> None:
        columns = self._columns
        starts = calm & (columns["calm"] == 0)
        columns.put("calm_since_seconds", time_seconds, starts)
        columns.add("calm", 1.0, calm)
        columns["calm"][seen & ~calm] = 0.0

    def _end(self, time_seconds: float, hold_seconds: NDArray[Any] | float) -> None:
        columns, own = self._columns, self._settings
        calm = columns["calm"] >= _CLEAR_VALUES
        quiet_for = time_seconds - columns["calm_since_seconds"]
        held = time_seconds - columns["raised_seconds"] >= np.maximum(
            hold_seconds, own.hold_seconds
        )
        over = columns["active"] & calm & (quiet_for >= own.clear_seconds) & held
        columns.put("cleared_seconds", time_seconds, over)
        fizzled = columns["pending"] & calm
        self._dismissed = np.where(fizzled, columns["above"], 0.0)
        self._clear(over | fizzled)

    def _clear(self, chosen: NDArray[np.bool_]) -> None:
        columns = self._columns
        columns.put("active", False, chosen)
        columns.put("pending", False, chosen)
        columns.put("above", 0.0, chosen)
        columns.put("onset_seconds", np.nan, chosen)
        columns.put("raised_seconds", np.nan, chosen)

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        return self._columns.state()

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state; raises ValueError and changes nothing where it does not fit."""
        self._columns.restore(state)
