"""Arrays with one column a series, which grow together and are kept over a restart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPARE = 64


class Columns:
    """Named arrays ``[series]``; the type of a fill value is the type of its array.

    Views are handed out, so that detectors update them in place; a view is valid until the next
    :meth:`grow`, :meth:`keep` or :meth:`move`.
    """

    def __init__(self, **fills: float | bool | int) -> None:
        self._fills = fills
        self._count = 0
        self._arrays: dict[str, NDArray[Any]] = {
            name: np.full(_SPARE, fill) for name, fill in fills.items()
        }

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name][: self._count]

    def grow(self, count: int) -> None:
        """Add ``count`` columns with the fill values."""
        self._count += count
        for name, fill in self._fills.items():
            array = self._arrays[name]
            if self._count > len(array):
                # Room for a quarter more: a fleet grows by a host at a time, not by itself again.
                grown = np.full(max(self._count, len(array) + len(array) // 4), fill)
                grown[: len(array)] = array
                self._arrays[name] = grown

    def put(self, name: str, values: NDArray[Any] | float, where: NDArray[np.bool_]) -> None:
        """Replace one array's numbers where ``where`` is true."""
        np.copyto(self[name], values, where=where)

    def add(self, name: str, change: NDArray[Any] | float, where: NDArray[np.bool_]) -> None:
        """Add to one array where ``where`` is true."""
        own = self[name]
        np.add(own, change, out=own, where=where)

    def reset(self, columns: NDArray[np.bool_]) -> None:
        """Give the columns where ``columns`` is true their fill values again."""
        for name, fill in self._fills.items():
            self[name][columns] = fill

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the columns where ``kept`` is false; the others move together and give back memory."""
        self.move(np.flatnonzero(kept))

    def move(self, came_from: NDArray[np.int64]) -> None:
        """Let column ``i`` be the one that was ``came_from[i]``; a new one, where that is -1."""
        known = came_from >= 0
        for name, fill in self._fills.items():
            moved = np.full(max(len(came_from), _SPARE), fill)
            moved[: len(came_from)][known] = self[name][came_from[known]]
            self._arrays[name] = moved
        self._count = len(came_from)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of all arrays."""
        return {name: self[name].copy() for name in self._fills}

    def check(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Raise where a state does not fit.

        Raises:
            ValueError: naming the array that is missing or has another shape.
        """
        for name in self._fills:
            if name not in state:
                raise ValueError(f"the state has no array {name!r}; it is of another version")
            if state[name].shape != (self._count,):
                raise ValueError(
                    f"the array {name!r} of the state has shape {state[name].shape}, "
                    f"expected ({self._count},)"
                )

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up arrays that :meth:`state` returned.

        Raises:
            ValueError: when they do not fit; nothing is changed then.
        """
        self.check(state)
        for name in self._fills:
            self[name][:] = state[name]
