"""Medians within many small groups at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray


@dataclass(frozen=True, slots=True)
class _Table:
    """Groups of about the same size, one a row."""

    rows: NDArray[np.int64]
    """``[rows]``: the numbers of the groups."""
    width: int
    members: NDArray[np.int64]
    row_of: NDArray[np.int64]
    """``[members]``: their rows in this table."""


class SiblingGroups:
    """Which group each member is in; groups of up to 2, 4, 8, ... members share a table.

    Args:
        group: ``[members]`` the number of each member's group, any numbers.
    """

    def __init__(self, group: NDArray[np.int64]) -> None:
        _, self._group_of, sizes = np.unique(group, return_inverse=True, return_counts=True)
        self._count = len(sizes)
        order = np.argsort(self._group_of, kind="stable")
        self._slot_of = np.empty(len(group), dtype=np.int64)
        firsts = np.cumsum(sizes) - sizes
        self._slot_of[order] = np.arange(len(group)) - np.repeat(firsts, sizes)
        doublings = np.ceil(np.log2(sizes)).astype(np.int64)
        self._tables = [self._table(doublings, int(kind)) for kind in np.unique(doublings)]

    def _table(self, doublings: NDArray[np.int64], kind: int) -> _Table:
        rows = np.flatnonzero(doublings == kind)
        members = np.flatnonzero(doublings[self._group_of] == kind)
        return _Table(rows, 2**kind, members, np.searchsorted(rows, self._group_of[members]))

    def medians(
        self, values: FloatArray, usable: NDArray[np.bool_]
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """Return the median of each member's group ``[members]``, and of how many values it is.

        Args:
            values: ``[members]``.
            usable: ``[members]`` which of them count; the median of none is NaN.
        """
        counts = np.bincount(self._group_of[usable], minlength=self._count)
        medians = np.full(self._count, np.nan)
        for table in self._tables:
            there = usable[table.members]
            members = table.members[there]
            laid = np.full((len(table.rows), table.width), np.inf)
            laid[table.row_of[there], self._slot_of[members]] = values[members]
            laid.sort(axis=1)
            count, every = counts[table.rows], np.arange(len(table.rows))
            low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, table.width - 1)
            with np.errstate(invalid="ignore"):
                middle = 0.5 * (laid[every, low] + laid[every, high])
            medians[table.rows] = np.where(count > 0, middle, np.nan)
        return medians[self._group_of], counts[self._group_of]
