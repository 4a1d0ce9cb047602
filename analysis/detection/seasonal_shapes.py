"""The seasonal shapes of all series in one place, read in one vector step a tick.

Shapes differ in length: a day in steps of five minutes has 288 phases, a week 2016. They lie one after
the other in one array of single precision, so a daily shape costs 1.2 KB. Between two ticks of one
phase nothing is looked up again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray
from analysis.detection.seasonal_fit import SeasonalShape
from analysis.detection.wall_clock import wall_clock

_NAMES = ("column", "period", "phases", "offsets", "zone", "zones")


class SeasonalShapes:
    """What to add to the level of each series, by the time of its period."""

    def __init__(self) -> None:
        self._series = 0
        self._lay_out({})

    def __len__(self) -> int:
        return len(self._column)

    def grow(self, count: int) -> None:
        """Make room for new series, which have no shape."""
        self._series += count

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        place = np.cumsum(kept) - 1
        shapes = {int(place[column]): s for column, s in self._shapes().items() if kept[column]}
        self._series = int(kept.sum())
        self._lay_out(shapes)

    def adopt(self, shapes: Mapping[int, SeasonalShape]) -> None:
        """Use shapes, by column, in place of those that these series had."""
        self._lay_out({**self._shapes(), **shapes})

    def at(self, time_seconds: float) -> FloatArray:
        """Return the offset of every series ``[series]`` at a time; 0 where it has no shape."""
        season = np.zeros(self._series)
        if not len(self._column):
            return season
        ahead = np.array([wall_clock(name).offset(time_seconds) for name in self._zones])
        local = time_seconds + ahead[self._zone]
        place = (local % self._period) / self._period * self._phases - 0.5
        before = np.floor(place)
        moved = np.flatnonzero(before != self._before)
        if moved.size:
            self._look_up(moved, before)
        season[self._column] = self._first + (place - before) * self._rise
        return season

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        kept: dict[str, NDArray[np.generic]] = {
            "column": self._column,
            "period": self._period,
            "phases": self._phases,
            "offsets": self._offsets,
            "zone": self._zone,
            "zones": np.array(self._zones, dtype=str),
        }
        return {f"shapes_{name}": array.copy() for name, array in kept.items()}

    def check(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise ValueError where a state does not fit."""
        missing = [name for name in _NAMES if f"shapes_{name}" not in state]
        if missing:
            raise ValueError(f"the state has no array shapes_{missing[0]}")
        columns = np.asarray(state["shapes_column"])
        phases = np.asarray(state["shapes_phases"], dtype=np.int64)
        if columns.size and int(columns.max()) >= self._series:
            raise ValueError("the state has seasonal shapes of more series than there are")
        if int(phases.sum()) != len(state["shapes_offsets"]):
            raise ValueError("the seasonal shapes of the state are cut off")

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state that was checked."""
        phases = np.asarray(state["shapes_phases"], dtype=np.int64)
        parts = np.split(np.asarray(state["shapes_offsets"], dtype=float), np.cumsum(phases)[:-1])
        zones = [str(name) for name in state["shapes_zones"]]
        periods = np.asarray(state["shapes_period"], dtype=float)
        zone_of = np.asarray(state["shapes_zone"], dtype=np.int64)
        columns = np.asarray(state["shapes_column"], dtype=np.int64)
        self._lay_out(
            {
                int(column): SeasonalShape(float(period), offsets, zones[zone])
                for column, period, offsets, zone in zip(
                    columns, periods, parts, zone_of, strict=True
                )
            }
            if columns.size
            else {}
        )

    def _lay_out(self, shapes: Mapping[int, SeasonalShape]) -> None:
        columns = sorted(shapes)
        ordered: Sequence[SeasonalShape] = [shapes[column] for column in columns]
        self._zones = sorted({shape.zone for shape in ordered})
        self._column = np.array(columns, dtype=np.int64)
        self._period = np.array([shape.period_seconds for shape in ordered], dtype=float)
        self._phases = np.array([len(shape.offsets) for shape in ordered], dtype=np.int64)
        self._zone = np.array([self._zones.index(s.zone) for s in ordered], dtype=np.int64)
        offsets = [shape.offsets for shape in ordered] or [np.empty(0)]
        self._offsets = np.concatenate(offsets).astype(np.float32)
        self._start = np.cumsum(self._phases) - self._phases
        self._before = np.full(len(columns), np.nan)
        self._first = np.zeros(len(columns))
        self._rise = np.zeros(len(columns))

    def _look_up(self, moved: NDArray[np.int64], before: FloatArray) -> None:
        """Read the two phases around the present time of the shapes whose phase has moved on."""
        start, phases = self._start[moved], self._phases[moved]
        phase = before[moved].astype(np.int64)
        first = self._offsets[start + phase % phases].astype(float)
        second = self._offsets[start + (phase + 1) % phases].astype(float)
        self._before[moved] = before[moved]
        self._first[moved] = first
        self._rise[moved] = second - first

    def _shapes(self) -> dict[int, SeasonalShape]:
        parts = np.split(self._offsets, np.cumsum(self._phases)[:-1])
        return {
            int(column): SeasonalShape(float(period), part.astype(float), self._zones[zone])
            for column, period, part, zone in zip(
                self._column, self._period, parts if len(self) else [], self._zone, strict=True
            )
        }
