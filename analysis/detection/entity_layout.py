"""Which series belong to which entity, and how rows of entities lie in arrays.

Multivariate detectors look at all series of an entity at once, and entities differ in size. What is
kept per series lies flat, sorted by entity. What is kept per pair of series lies on shelves: all
entities of about the same size share one padded array, so that one entity of 100 series does not make
the squares of 10,000 small ones as large as its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray

WIDTHS = np.array([2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512])
"""Slots of the shelves: little of a row is padding, and there are few arrays to step through."""


@dataclass(frozen=True, eq=False)
class Shelf:
    """The entities whose rows have one width."""

    width: int
    entities: NDArray[np.int64]
    """``[rows]``: their numbers, rising."""
    sizes: NDArray[np.int64]
    """``[rows]``: how many of the slots each uses."""
    members: NDArray[np.int64]
    """``[members of the shelf]``: their place in the order of the layout's members."""
    places: NDArray[np.int64]
    """``[members of the shelf]``: row and slot of each as one number."""

    def __len__(self) -> int:
        return len(self.entities)

    @cached_property
    def slots(self) -> NDArray[np.int64]:
        """``[rows, slots]``: the member in each slot, -1 where it is empty."""
        slots = np.full(len(self) * self.width, -1)
        slots[self.places] = self.members
        return slots.reshape(len(self), self.width)

    def to_blocks(self, values: FloatArray, fill: float = 0.0) -> FloatArray:
        """Lay numbers ``[members]`` into ``[rows, slots]``."""
        blocks = np.full(len(self) * self.width, fill)
        blocks[self.places] = values[self.members]
        return blocks.reshape(len(self), self.width)

    def put(self, target: FloatArray, blocks: FloatArray) -> None:
        """Lay blocks ``[rows, slots]`` back into ``[members]``."""
        target[self.members] = blocks.ravel()[self.places]


@dataclass(frozen=True, eq=False)
class Layout:
    """The order of the series that take part: by entity, and within one by first sight."""

    columns: NDArray[np.int64]
    """``[members]``: the column of each among all series."""
    entity_of: NDArray[np.int64]
    """``[members]``: the number of its entity, rising."""
    slot_of: NDArray[np.int64]
    """``[members]``: its number within the entity."""
    sizes: NDArray[np.int64]
    """``[entities]``: how many members each has."""

    @property
    def entities(self) -> int:
        """How many entities there are, those without members included."""
        return len(self.sizes)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """``[entities]``: the first member of each."""
        return np.asarray(np.cumsum(self.sizes) - self.sizes)

    @cached_property
    def shelf_of(self) -> NDArray[np.int64]:
        """``[entities]``: the number of the width that holds it."""
        return np.searchsorted(WIDTHS, self.sizes)

    @cached_property
    def shelves(self) -> tuple[Shelf, ...]:
        """The shelves that hold something, the narrow ones first."""
        taking = np.flatnonzero(self.sizes > 0)
        return tuple(self._shelf(int(kind)) for kind in np.unique(self.shelf_of[taking]))

    def _shelf(self, kind: int) -> Shelf:
        entities = np.flatnonzero((self.shelf_of == kind) & (self.sizes > 0))
        width = int(WIDTHS[kind])
        row_of = np.zeros(self.entities, dtype=np.int64)
        row_of[entities] = np.arange(len(entities))
        members = np.flatnonzero(self.shelf_of[self.entity_of] == kind)
        places = row_of[self.entity_of[members]] * width + self.slot_of[members]
        return Shelf(width, entities, self.sizes[entities], members, places)

    @cached_property
    def _occupied(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.sizes > 0)

    def highest(self, values: FloatArray) -> FloatArray:
        """Return the highest of each entity's numbers ``[members]``; 0 where it has no member."""
        result = np.zeros(self.entities)
        if len(self.columns):
            starts = self.starts[self._occupied]
            result[self._occupied] = np.maximum.reduceat(values, starts)
        return result

    def to_series(self, values: FloatArray, count: int) -> FloatArray:
        """Lay numbers ``[members]`` into ``[count]`` series, NaN where one takes no part."""
        series = np.full(count, np.nan)
        series[self.columns] = values
        return series


EMPTY = Layout(*(np.empty(0, dtype=np.int64) for _ in range(4)))


@dataclass(frozen=True, eq=False)
class Move:
    """How what was kept under one layout comes to lie under the next."""

    before: Layout
    after: Layout
    came_from: NDArray[np.int64]
    """``[members after]``: the member that each was before, -1 where it is new."""

    @cached_property
    def entity_from(self) -> NDArray[np.int64]:
        """``[entities after]``: the number that each had before, -1 where it is new or empty."""
        result = np.full(self.after.entities, -1)
        known = self.came_from >= 0
        result[self.after.entity_of[known]] = self.before.entity_of[self.came_from[known]]
        return result

    @cached_property
    def slots_stayed(self) -> NDArray[np.bool_]:
        """``[entities after]``: whether all that an entity had before are in the slots they had."""
        known = self.came_from >= 0
        after, was = self.after.entity_of[known], self.came_from[known]
        same = self.after.slot_of[known] == self.before.slot_of[was]
        stayed = np.bincount(after[same], minlength=self.after.entities)
        origin = self.entity_from
        had = np.where(origin >= 0, self.before.sizes[origin], 0) if self.before.entities else 0
        return np.asarray((origin >= 0) & (stayed == had))

    def rows(self, array: FloatArray, fill: float = 0.0) -> FloatArray:
        """Move what is kept per entity, ``[entities, ...]``."""
        moved = np.full((self.after.entities, *array.shape[1:]), fill, dtype=array.dtype)
        known = self.entity_from >= 0
        moved[known] = array[self.entity_from[known]]
        return moved

    def squares(self, arrays: dict[int, FloatArray], diagonal: float) -> dict[int, FloatArray]:
        """Move what is kept per pair on shelves, ``[rows, slots, slots]`` by width.

        Args:
            arrays: by width of the shelf before.
            diagonal: what a new series has with itself; with others it has 0.
        """
        return {shelf.width: self._square(shelf, arrays, diagonal) for shelf in self.after.shelves}

    def _square(self, shelf: Shelf, arrays: dict[int, FloatArray], diagonal: float) -> FloatArray:
        result = np.tile(diagonal * np.eye(shelf.width), (len(shelf), 1, 1))
        was = shelf.to_blocks(self.came_from.astype(float), fill=-1.0).astype(np.int64)
        origin = self.entity_from[shelf.entities]
        for old in self.before.shelves:
            rows = np.flatnonzero(np.isin(origin, old.entities))
            if not rows.size:
                continue
            source = np.searchsorted(old.entities, origin[rows])
            known = was[rows] >= 0
            slots = np.where(known, self.before.slot_of[was[rows]], 0)
            taken = arrays[old.width][source[:, None, None], slots[:, :, None], slots[:, None, :]]
            both = known[:, :, None] & known[:, None, :]
            result[rows] = np.where(both, taken, result[rows])
        return result
