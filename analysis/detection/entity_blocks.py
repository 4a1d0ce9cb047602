"""Running location and spread of the series of entities, for detectors that look at whole entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray
from analysis.detection.entity_layout import EMPTY, Layout, Move
from analysis.detection.profiles import SeriesProfiles
from collectors.contract import SeriesKey

_FLOOR_SIGMAS = 4.5
"""The least spread: a deviation of a family's floor is as many standard deviations."""
_FARTHEST = 12.0
"""Standardised values are clipped here, so that one series cannot hide all others."""


class EntityBlocks:
    """Standardises values, and knows which series make up which entity.

    Args:
        memory_seconds: time constant of location and spread.
        memory_values: its lower bound in values.
        largest: series of one entity that take part, in order of first sight.
    """

    def __init__(self, *, memory_seconds: float, memory_values: float, largest: int) -> None:
        self._memory_seconds = memory_seconds
        self._memory_values = memory_values
        self._largest = largest
        self._profiles = SeriesProfiles()
        self._columns = Columns(mean=np.nan, variance=0.0, count=0.0, last_seconds=np.nan, gap=0.0)
        self._entities: dict[str, int] = {}
        self._sizes: list[int] = []
        self._names: list[tuple[str, str]] = []
        self._layout = EMPTY

    @property
    def layout(self) -> Layout:
        """Which series take part, and how they lie."""
        return self._layout

    @property
    def names(self) -> Sequence[tuple[str, str]]:
        """Each entity, with an empty signal, by their numbers."""
        return self._names

    def grow(self, keys: Sequence[SeriesKey]) -> Move:
        """Lay out new series; events, states and what exceeds the largest size stay out."""
        start = len(self._profiles)
        self._profiles.grow(keys)
        self._columns.grow(len(keys))
        before = self._layout
        added = self._enlist(keys, start)
        known = np.stack((before.columns, before.entity_of, before.slot_of))
        self._arrange(np.hstack((known, added)))
        return self._move(before, np.arange(len(self._profiles)), len(self._profiles))

    def keep(self, kept: NDArray[np.bool_]) -> Move:
        """Forget the series where ``kept`` is false; entities are numbered anew, by first sight."""
        self._profiles.keep(kept)
        self._columns.keep(kept)
        self._entities, self._sizes = {}, []
        before = self._layout
        self._arrange(self._enlist(self._profiles.keys, 0))
        return self._move(before, np.flatnonzero(kept), len(kept))

    def _enlist(self, keys: Sequence[SeriesKey], start: int) -> NDArray[np.int64]:
        """Give series their entities and slots; return columns, entities and slots of members."""
        joined: list[tuple[int, int, int]] = []
        takes_part = self._profiles["statistical"]
        for column, key in enumerate(keys, start=start):
            entity = self._entities.setdefault(key.entity, len(self._entities))
            if entity == len(self._sizes):
                self._sizes.append(0)
            if takes_part[column] and self._sizes[entity] < self._largest:
                joined.append((column, entity, self._sizes[entity]))
                self._sizes[entity] += 1
        return np.array(joined, dtype=np.int64).reshape(-1, 3).T

    def _arrange(self, members: NDArray[np.int64]) -> None:
        columns, entity_of, slot_of = members[:, np.lexsort((members[2], members[1]))]
        sizes = np.array(self._sizes, dtype=np.int64)
        self._layout = Layout(columns, entity_of, slot_of, sizes)
        self._names = [(entity, "") for entity in self._entities]

    def _move(self, before: Layout, old_columns: NDArray[np.int64], count: int) -> Move:
        """Say where each member was, from the columns, of ``count``, that the series had."""
        was = np.full(count, -1)
        was[before.columns] = np.arange(len(before.columns))
        return Move(before, self._layout, was[old_columns[self._layout.columns]])

    def position(self, values: FloatArray) -> FloatArray:
        """Take values ``[series]`` into the space in which they are compared."""
        return self._profiles.forward(values)

    def standardise(self, position: FloatArray) -> FloatArray:
        """Return how many standard deviations each member's position is from its mean."""
        columns, profiles = self._columns, self._profiles
        floor = profiles.floor(columns["mean"]) / _FLOOR_SIGMAS
        sigma = np.maximum(np.maximum(np.sqrt(columns["variance"]), floor), 1e-12)
        z = np.clip((position - columns["mean"]) / sigma, -_FARTHEST, _FARTHEST)
        z = z[self._layout.columns]
        return np.where(np.isnan(z), 0.0, z)

    def learning(self, learn: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``[entities]``: whether all members of an entity may be learned from."""
        barred = (~learn[self._layout.columns]).astype(float)
        return self._layout.highest(barred) < 0.5

    def learn(
        self, time_seconds: float, position: FloatArray, learn: NDArray[np.bool_]
    ) -> FloatArray:
        """Move location and spread; return the weight ``[members]`` of the newest value."""
        columns = self._columns
        given = np.isfinite(position) & learn
        position = np.where(given, position, 0.0)
        fresh = given & (columns["count"] == 0)
        columns["mean"][fresh] = position[fresh]
        elapsed = np.fmax(time_seconds - columns["last_seconds"], 0.0)
        gap = columns["gap"]
        gap += np.where(given, 0.1 * (elapsed - gap), 0.0)
        memory = np.maximum(self._memory_seconds, self._memory_values * gap)
        steady = np.minimum(1.0 - np.exp(-elapsed / memory), 0.2)
        rate = np.maximum(steady, 1.0 / (columns["count"] + 1.0))
        rate = np.where(given, rate, 0.0)
        error = np.where(given, position - columns["mean"], 0.0)
        columns["mean"][:] += rate * error
        columns["variance"][:] += rate * ((1 - rate) * error**2 - columns["variance"])
        columns["count"][:] += given
        columns["last_seconds"][given] = time_seconds
        return np.asarray(rate[self._layout.columns])

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        return {f"block_{name}": array for name, array in self._columns.state().items()}

    def check(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise ValueError where a state does not fit."""
        self._columns.check(_without_prefix(state))

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state; raises ValueError and changes nothing where it does not fit."""
        self._columns.restore(_without_prefix(state))


def _without_prefix(state: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    return {
        name.removeprefix("block_"): array
        for name, array in state.items()
        if name.startswith("block_")
    }
