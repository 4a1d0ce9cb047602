"""Seasonal shapes in a replay: fitted when the watch loop would have, on what it would have had."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.detection.contract import FloatArray
from analysis.detection.seasonal_fit import SeasonalShape
from analysis.detection.seasonal_history import STEP_SECONDS, fit_medians
from collectors.contract import SeriesKey


@dataclass(frozen=True, slots=True)
class SeasonPlan:
    """When shapes are fitted and on how much history, as the watch loop does it."""

    first_seconds: float
    """From the start to the first fit."""
    every_seconds: float
    history_seconds: float
    zone: str = "UTC"
    """Whose wall clock days and weeks follow."""


class ReplayedSeasons:
    """Keeps the medians of five minutes of every series, and fits shapes on them when it is time.

    A replay has no store to read again; the medians are what a fit makes of it. They take eight bytes
    a series and five minutes: 7 KB for three days.
    """

    def __init__(self, plan: SeasonPlan) -> None:
        self._plan = plan
        self._most = max(2, int(plan.history_seconds / STEP_SECONDS))
        self._slot: int | None = None
        self._rows: list[FloatArray] = []
        self._times: list[float] = []
        self._medians: list[FloatArray] = []
        self._due: float | None = None

    def take(
        self, now: float, row: FloatArray, keys: Sequence[SeriesKey]
    ) -> Mapping[SeriesKey, SeasonalShape]:
        """Note one tick; return the shapes that the watch loop would adopt after it."""
        slot = int(now // STEP_SECONDS)
        if slot != self._slot:
            self._close_slot()
            self._slot = slot
        self._rows.append(row)
        if self._due is None:
            self._due = now + self._plan.first_seconds
        if now < self._due:
            return {}
        self._due = now + self._plan.every_seconds
        return self._fit(keys)

    def _close_slot(self) -> None:
        if self._slot is None or not self._rows:
            return
        width = max(len(row) for row in self._rows)
        block = np.full((len(self._rows), width), np.nan)
        for place, row in enumerate(self._rows):
            block[place, : len(row)] = row
        with warnings.catch_warnings():
            # A series without a value in these five minutes has none in the medians either.
            warnings.simplefilter("ignore", RuntimeWarning)
            self._medians.append(np.nanmedian(block, axis=0))
        self._times.append((self._slot + 0.5) * STEP_SECONDS)
        self._rows.clear()
        del self._medians[: -self._most], self._times[: -self._most]

    def _fit(self, keys: Sequence[SeriesKey]) -> Mapping[SeriesKey, SeasonalShape]:
        times = np.array(self._times)
        table = np.full((len(times), len(keys)), np.nan)
        for place, medians in enumerate(self._medians):
            table[place, : len(medians)] = medians
        shapes = {}
        for column, key in enumerate(keys):
            present = np.isfinite(table[:, column])
            shape = fit_medians(key, times[present], table[present, column], zone=self._plan.zone)
            if shape is not None:
                shapes[key] = shape
        return shapes
