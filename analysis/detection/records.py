"""Thresholds for series of which nothing is known but their past: a deviation has to be a record.

A signal of the catalogue has a unit and a family, which say how large a deviation can matter. For any
other the only measure is what the series itself has done: its spread, and the largest deviation lately
that lasted for two values. Under exchangeability a new record comes with probability 1 / n (Rényi, "On
outstanding values", 1962), so that a series with a heavy tail, or with a job every morning, is quiet
after it has shown it, and one that never moves is not.

What was raised becomes part of the record when it is over, but moves it by half at most, so that one
fault does not hide the next; records fade over ``record_days``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray
from analysis.detection.settings import BaselineSettings
from collectors.contract import SeriesKey
from collectors.signals import catalogue

_PREFIX = "record_"
_SIGMA_PER_MEAN_DEVIATION = 1.2533
_CLIP_DEVIATIONS = 5.0
"""Farther values move the spread as if they were this far, so that it neither explodes nor, as it would
if they were left out, shrinks until everything is far."""
_FIRST_VALUES = 20
"""Values of a new series that are taken as they come."""
_GROWTH = 1.5
"""What deviates moves the record by this factor at most."""
_LEAST_SHARE = 1e-6
"""The least spread as a share of the level: what is smaller is the rounding of a constant."""


class Records:
    """Spread and record ``[series]`` of what is not in the catalogue; all others cost nothing."""

    def __init__(self, settings: BaselineSettings) -> None:
        self._settings = settings
        self._columns = Columns(
            ruled=False,
            spread=0.0,
            count=0.0,
            before=0.0,
            second=0.0,
            event=0.0,
            record=0.0,
            last_seconds=np.nan,
        )
        self._some = False

    @property
    def ruled(self) -> NDArray[np.bool_]:
        """``[series]``: whose threshold is the record."""
        return self._columns["ruled"]

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for new series."""
        start = len(self._columns)
        self._columns.grow(len(keys))
        unknown = [key.signal not in catalogue() for key in keys]
        self._columns["ruled"][start:] = unknown
        self._some = self._some or any(unknown)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        self._columns.keep(kept)
        self._some = bool(self._columns["ruled"].any())

    def threshold(self, usual: FloatArray, level: FloatArray) -> FloatArray:
        """Return the thresholds ``[series]``: the usual one but where a record rules.

        A series that is too young for a record has the larger of both.

        Args:
            usual: what the family of each says, with its caution at the cold start.
            level: of each.
        """
        if not self._some:
            return usual
        columns = self._columns
        needed = np.maximum(self._settings.record_sigmas, columns["record"])
        own = needed * self._sigma(level)
        young = columns["count"] < self._settings.record_values
        own = np.where(young, np.maximum(own, usual), own)
        return np.where(columns["ruled"], own, usual)

    def learn(
        self, time_seconds: float, error: FloatArray, level: FloatArray, learn: NDArray[np.bool_]
    ) -> None:
        """Take one tick of distances from the level ``[series]``, NaN where nothing was given."""
        if not self._some:
            return
        columns = self._columns
        given = np.isfinite(error) & columns["ruled"]
        z = np.abs(np.where(given, error, 0.0)) / self._sigma(level)
        # As the alert policy counts: two values that are far out, with one between them or none.
        lasting = np.minimum(z, np.maximum(columns["before"], columns["second"]))
        # While it deviates only what it comes to is noted; it is learned when it is over.
        event = np.where(given, np.maximum(columns["event"], lasting), columns["event"])
        normal = given & learn
        base = np.maximum(self._settings.record_sigmas, columns["record"])
        elapsed = np.fmax(time_seconds - columns["last_seconds"], 0.0)
        faded = columns["record"] * np.exp(-elapsed / (86_400.0 * self._settings.record_days))
        record = np.maximum(faded, np.minimum(event, _GROWTH * base))
        young = columns["count"] < _FIRST_VALUES
        columns["record"][normal] = np.where(young, 0.0, record)[normal]
        columns["event"][given] = np.where(learn, 0.0, event)[given]
        columns["second"][given] = columns["before"][given]
        columns["before"][given] = z[given]
        size = np.abs(np.where(given, error, 0.0))
        size = np.where(young, size, np.minimum(size, _CLIP_DEVIATIONS * columns["spread"]))
        rate = np.maximum(1.0 / self._settings.record_values, 1.0 / (columns["count"] + 1.0))
        columns["spread"][normal] += (rate * (size - columns["spread"]))[normal]
        columns["count"][given] += 1.0
        columns["last_seconds"][given] = time_seconds

    def _sigma(self, level: FloatArray) -> FloatArray:
        least = 1e-9 + _LEAST_SHARE * np.abs(np.nan_to_num(level))
        return np.maximum(_SIGMA_PER_MEAN_DEVIATION * self._columns["spread"], least)

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        return {f"{_PREFIX}{name}": array for name, array in self._columns.state().items()}

    def check(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise ValueError where a state does not fit; one from before there were records does."""
        if own := _own(state):
            self._columns.check(own)

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state of the same series; without records in it they begin anew."""
        if own := _own(state):
            self._columns.restore(own)
            self._some = bool(self._columns["ruled"].any())


def _own(state: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    return {
        name.removeprefix(_PREFIX): array
        for name, array in state.items()
        if name.startswith(_PREFIX)
    }
