"""Other alert policies, run beside a replay on the very scores that the real one was given.

A change of policy acts on each series by itself, so one trial that changes all series says what the
change does to any one signal. What is not replayed is what the baseline would have learned otherwise:
it does not learn from what deviates, and a policy says for how long something deviates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.detection.alert_policy import AlertPolicy
from analysis.detection.channels import PolicyInputs
from analysis.detection.contract import FloatArray
from analysis.detection.replaying.judging import AlarmTable
from analysis.detection.settings import AlertSettings
from analysis.detection.states import DOWN, UP
from collectors.contract import SeriesKey


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """One change of policy, for all series."""

    name: str
    duration_factor: float = 1.0
    """On the values and seconds that a deviation has to last."""
    least_factor: float = 1.0
    """On the least deviation that can matter."""
    only: int | None = None
    """The direction that is raised alone, as a number of :mod:`analysis.detection.states`."""
    alerts: tuple[tuple[str, float], ...] = ()
    """Settings of ``[analysis.detection.alerts]``, which hold for all series at once."""

    @property
    def for_all(self) -> bool:
        """Whether the configuration knows it for all series only."""
        return bool(self.alerts)


UNCHANGED = PolicyChange("unchanged")


def changes_worth_trying(alerts: AlertSettings) -> tuple[PolicyChange, ...]:
    """Return the changes that a backtest tries, fixed beforehand and relative to what is set."""
    tried = [
        UNCHANGED,
        PolicyChange("twice the duration", duration_factor=2.0),
        PolicyChange("four times the duration", duration_factor=4.0),
        PolicyChange("twice the least deviation", least_factor=2.0),
        PolicyChange("four times the least deviation", least_factor=4.0),
        PolicyChange("only rises", only=UP),
        PolicyChange("only falls", only=DOWN),
    ]
    for name, value in (
        ("clear_level", round(0.6 * alerts.clear_level, 3)),
        ("clear_seconds", min(6.0 * max(alerts.clear_seconds, 5.0), 3600.0)),
        ("rearm_seconds", min(10.0 * max(alerts.rearm_seconds, 30.0), 86_400.0)),
    ):
        tried.append(PolicyChange(f"{name} = {value:g}", alerts=((name, value),)))
    return tuple(tried)


class PolicyTrial:
    """Runs both channels of the alert policy with one change, and notes what would be raised."""

    def __init__(self, change: PolicyChange, alerts: AlertSettings) -> None:
        changed = alerts.model_copy(update=dict(change.alerts))
        self.change = change
        self._absorb_seconds = changed.absorb_seconds
        self._statistical = AlertPolicy(changed)
        self._hard = AlertPolicy(changed)
        self._size = 0
        self._busy = False
        self._raised: FloatArray = np.empty(0)
        self._alarms: list[tuple[int, float, float]] = []
        self._closed: list[tuple[float, SeriesKey, float]] = []
        self._last_seconds = np.nan

    def take(
        self,
        inputs: PolicyInputs,
        least_share: Callable[[float], FloatArray],
        rebased: NDArray[np.bool_],
    ) -> None:
        """Take one tick.

        Args:
            inputs: what the real policy was given.
            rebased: series whose deviation became their new level with this tick.
            least_share: for a factor on the least deviation, the share ``[series]`` of the scores
                that is left.
        """
        self._grow(len(inputs.statistical))
        statistical = self._changed(inputs, least_share)
        # Series that neither deviate nor did so lately stay as they are, whatever they say.
        if self._busy or (statistical > 1.0).any() or (inputs.hard > 1.0).any():
            self._update(inputs, statistical, rebased)
        self._last_seconds = inputs.seconds

    def table(self, keys: Sequence[SeriesKey], from_seconds: float) -> AlarmTable:
        """Return the alarms that were raised after a time, in the order of their raising."""
        still = [
            (int(column), float(self._raised[column]), self._last_seconds)
            for column in np.flatnonzero(np.isfinite(self._raised))
        ]
        named = [*self._closed, *self._named((*self._alarms, *still), keys)]
        alarms = sorted(alarm for alarm in named if alarm[0] > from_seconds)
        return AlarmTable(
            [key for _, key, _ in alarms],
            np.array([raised for raised, _, _ in alarms], dtype=float),
            np.array([last for _, _, last in alarms], dtype=float),
        )

    def keep(self, kept: NDArray[np.bool_], keys: Sequence[SeriesKey]) -> None:
        """Forget the series of ``keys`` where ``kept`` is false."""
        self._closed.extend(self._named(self._alarms, keys))
        self._alarms = []
        for column in np.flatnonzero(np.isfinite(self._raised) & ~kept[: self._size]):
            raised = float(self._raised[column])
            self._closed.append((raised, keys[int(column)], self._last_seconds))
        self._statistical.keep(kept[: self._size])
        self._hard.keep(kept[: self._size])
        self._raised = self._raised[kept[: self._size]]
        self._size = len(self._raised)

    @staticmethod
    def _named(
        alarms: Sequence[tuple[int, float, float]], keys: Sequence[SeriesKey]
    ) -> list[tuple[float, SeriesKey, float]]:
        return [(raised, keys[column], last) for column, raised, last in alarms]

    def _grow(self, size: int) -> None:
        more = size - self._size
        if more:
            self._statistical.grow(more)
            self._hard.grow(more)
            self._raised = np.append(self._raised, np.full(more, np.nan))
            self._size = size

    def _changed(
        self, inputs: PolicyInputs, least_share: Callable[[float], FloatArray]
    ) -> FloatArray:
        statistical = inputs.statistical
        if self.change.least_factor != 1.0:
            statistical = statistical * least_share(self.change.least_factor)
        if self.change.only is not None:
            harmless = np.isfinite(statistical) & (inputs.direction != self.change.only)
            statistical = np.where(harmless, 0.0, statistical)
        return statistical

    def _update(
        self, inputs: PolicyInputs, statistical: FloatArray, rebased: NDArray[np.bool_]
    ) -> None:
        factor, now = self.change.duration_factor, inputs.seconds
        self._statistical.update(
            now,
            statistical,
            minimum_values=factor * inputs.minimum_values,
            minimum_seconds=factor * inputs.minimum_seconds,
            hold_seconds=0.0,
        )
        self._hard.update(
            now,
            inputs.hard,
            minimum_values=inputs.hard_values,
            minimum_seconds=inputs.hard_seconds,
            hold_seconds=inputs.hard_hold_seconds,
        )
        self._note(now, self._statistical.active | self._hard.active)
        # Where the real policy deviates, too, its re-base is what ends both.
        old = now - self._statistical.raised_seconds >= self._absorb_seconds
        over = rebased | (old & ~inputs.deviating)
        if over.any():
            self._statistical.drop(over)
        self._busy = bool((self._statistical.deviating | self._hard.deviating).any()) or bool(
            np.isfinite(self._raised).any()
        )

    def _note(self, now: float, active: NDArray[Any]) -> None:
        on = np.isfinite(self._raised)
        for column in np.flatnonzero(on & ~active):
            self._alarms.append((int(column), float(self._raised[column]), self._last_seconds))
        self._raised[on & ~active] = np.nan
        self._raised[active & ~on] = now
