"""Rows of one entity: from columns of series to blocks ``[entity, slot]``, standardised.

Multivariate detectors look at all series of an entity at once. Entities differ in size, so their rows
are laid into one padded array, which lets every step run over all entities together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray
from analysis.detection.profiles import SeriesProfiles
from collectors.contract import SeriesKey

_FLOOR_SIGMAS = 4.5
"""The least spread: a deviation of a family's floor is as many standard deviations."""
_FARTHEST = 12.0
"""Standardised values are clipped here, so that one series cannot hide all others."""


class EntityBlocks:
    """Running location and spread of every series, and the layout of entities."""

    def __init__(self, *, memory_seconds: float, memory_values: float, largest: int) -> None:
        self._memory_seconds = memory_seconds
        self._memory_values = memory_values
        self._largest = largest
        self._profiles = SeriesProfiles()
        self._columns = Columns(mean=np.nan, variance=0.0, count=0.0, last_seconds=np.nan, gap=0.0)
        self._entities: dict[str, int] = {}
        self._sizes: list[int] = []
        self._entity_of: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._slot_of: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._member: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def entities(self) -> int:
        """How many entities there are."""
        return len(self._sizes)

    @property
    def names(self) -> Sequence[tuple[str, str]]:
        """Each entity, with an empty signal, in their order."""
        return [(entity, "") for entity in self._entities]

    @property
    def width(self) -> int:
        """The slots of the largest entity."""
        return max(self._sizes, default=0)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """``[entities]``: how many series of each take part."""
        return np.array(self._sizes, dtype=np.int64)

    @property
    def mean(self) -> FloatArray:
        """``[series]``: the running location in the unit of the signal; NaN before the first value."""
        return self._profiles.inverse(self._columns["mean"])

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Lay out new series; events, states and what exceeds the largest size stay out."""
        start = len(self._profiles)
        self._profiles.grow(keys)
        self._columns.grow(len(keys))
        added: list[tuple[int, int, int]] = []
        for column, key in enumerate(keys, start=start):
            entity = self._entities.setdefault(key.entity, len(self._entities))
            if entity == len(self._sizes):
                self._sizes.append(0)
            if self._profiles["statistical"][column] and self._sizes[entity] < self._largest:
                added.append((column, entity, self._sizes[entity]))
                self._sizes[entity] += 1
        columns, entities, slots = np.array(added, dtype=np.int64).reshape(-1, 3).T
        self._member = np.append(self._member, columns)
        self._entity_of = np.append(self._entity_of, entities)
        self._slot_of = np.append(self._slot_of, slots)

    def to_blocks(self, values: FloatArray, fill: float = 0.0) -> FloatArray:
        """Lay numbers ``[series]`` into ``[entity, slot]``."""
        blocks = np.full((self.entities, self.width), fill)
        blocks[self._entity_of, self._slot_of] = values[self._member]
        return blocks

    def to_series(self, blocks: FloatArray) -> FloatArray:
        """Lay blocks ``[entity, slot]`` back into ``[series]``, NaN where a series has no slot."""
        values = np.full(len(self._columns), np.nan)
        values[self._member] = blocks[self._entity_of, self._slot_of]
        return values

    def learning(self, learn: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``[entities]``: whether all series of an entity may be learned from."""
        return np.asarray(self.to_blocks(learn.astype(float), fill=1.0).min(axis=1) > 0.5)

    def standardise(self, values: FloatArray) -> FloatArray:
        """Return the distance of ``[series]`` values from their mean in standard deviations."""
        columns, profiles = self._columns, self._profiles
        position = profiles.forward(values)
        floor = profiles.floor(columns["mean"]) / _FLOOR_SIGMAS
        sigma = np.maximum(np.maximum(np.sqrt(columns["variance"]), floor), 1e-12)
        z = np.clip((position - columns["mean"]) / sigma, -_FARTHEST, _FARTHEST)
        return np.asarray(np.nan_to_num(z))

    def learn(
        self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]
    ) -> FloatArray:
        """Move location and spread; return the weight ``[series]`` of the newest value."""
        columns = self._columns
        given = np.isfinite(values) & learn
        position = np.where(given, self._profiles.forward(values), 0.0)
        fresh = given & (columns["count"] == 0)
        columns["mean"][fresh] = position[fresh]
        elapsed = np.nan_to_num(time_seconds - columns["last_seconds"])
        columns["gap"][given] += (0.1 * (elapsed - columns["gap"]))[given]
        memory = np.maximum(self._memory_seconds, self._memory_values * columns["gap"])
        steady = np.minimum(1.0 - np.exp(-elapsed / memory), 0.2)
        rate = np.maximum(steady, 1.0 / (columns["count"] + 1.0))
        error = np.where(given, position - columns["mean"], 0.0)
        columns["mean"][given] += (rate * error)[given]
        columns["variance"][given] += (rate * ((1 - rate) * error**2 - columns["variance"]))[given]
        columns["count"][given] += 1.0
        columns["last_seconds"][given] = time_seconds
        return np.where(given, rate, 0.0)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        return {f"block_{name}": array for name, array in self._columns.state().items()}

    def check(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise ValueError where a state does not fit."""
        self._columns.check({name.removeprefix("block_"): array for name, array in state.items()})

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state; raises ValueError and changes nothing where it does not fit."""
        self._columns.restore({name.removeprefix("block_"): array for name, array in state.items()})
