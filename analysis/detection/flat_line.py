"""Flat line: a series that always moved stands still.

A sensor or an exporter that is stuck repeats its last value, which no baseline finds. The runs of equal
values of a series show how it moves: every value anew, or every thirtieth where an exporter reads its
device twice a minute. Only series that move like clockwork are judged; whole degrees and other coarse
values rest for as long as they like. What is at zero or at a physical limit rests, and so does a service
without traffic, whose series are left out.

Direction: flat. Warm-up: :attr:`FlatLineSettings.warm_values` moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray, Scores
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.settings import FlatLineSettings
from collectors.contract import SeriesKey

_RUN_MEMORY = 20.0
"""Memory, in runs, of their usual length."""


class FlatLine:
    """Scores how long a series that always moves has stood still."""

    name = "flat_line"

    def __init__(self, settings: FlatLineSettings) -> None:
        self._settings = settings
        self._profiles = SeriesProfiles()
        self._columns = Columns(
            last=np.nan,
            run=0.0,
            since_seconds=np.nan,
            length=0.0,
            spread=0.0,
            runs=0.0,
        )

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for new series."""
        self._profiles.grow(keys)
        self._columns.grow(len(keys))

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        self._profiles.keep(kept)
        self._columns.keep(kept)

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:  # noqa: ARG002
        """Score one tick, then learn from the runs that have ended.

        ``learn`` is not used: a run that ends was no flat line, or was told already.
        """
        columns, own, profiles = self._columns, self._settings, self._profiles
        given = np.isfinite(values) & profiles["moves"]
        moved = given & (values != columns["last"])
        columns.add("run", 1.0, given)
        ended = moved & np.isfinite(columns["last"])
        self._learn(ended, columns["run"] - 1.0)
        columns["run"][moved] = 1.0
        columns.put("since_seconds", time_seconds, moved)
        columns.put("last", values, moved)

        lasted = time_seconds - columns["since_seconds"]
        self._rest(given & (lasted > own.absorb_seconds))
        resting = (np.abs(values) <= profiles["deadband"]) | (values <= profiles["lowest"])
        resting |= values >= profiles["highest"]
        regular = columns["spread"] <= own.irregularity * columns["length"]
        known = given & own.enabled & regular & (columns["runs"] >= own.warm_values) & ~resting
        usual = np.maximum(own.minimum_values, own.run_factor * columns["length"])
        score = np.minimum(columns["run"] / (usual + 0.5), lasted / max(own.minimum_seconds, 1e-9))
        nothing = np.full(len(columns), np.nan)
        return Scores(np.where(known, score, np.nan), nothing, nothing, nothing)

    def _learn(self, ended: NDArray[np.bool_], length: FloatArray) -> None:
        """Learn the usual length of runs, and how much it varies, from those that have ended."""
        columns = self._columns
        rate = np.maximum(1.0 / _RUN_MEMORY, 1.0 / (columns["runs"] + 1.0))
        # One run that was far too long is a fault that is over, and no habit.
        most = np.where(columns["runs"] > 0, 3.0 * columns["length"] + 1.0, np.inf)
        error = np.minimum(length, most) - columns["length"]
        columns.add("length", rate * error, ended)
        columns.add("spread", rate * (np.abs(error) - columns["spread"]), ended)
        columns.add("runs", 1.0, ended)

    def _rest(self, chosen: NDArray[np.bool_]) -> None:
        """Take what has stood still for long for a series that rests, and learn its moves anew."""
        for name in ("length", "spread", "runs"):
            self._columns[name][chosen] = 0.0

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        return self._columns.state()

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state of the same series."""
        self._columns.restore(state)
