"""How much memory the arrays of detection take, to be printed and watched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from collectors.contract import SeriesKey

_OWN = "analysis.detection."
_CONTAINERS = (list, tuple, set, frozenset)
_PLAIN = (str, bytes, int, float, type(None), SeriesKey)


def array_bytes(*roots: object) -> int:
    """Return the bytes of all arrays that can be reached from some objects of detection.

    An array is counted once, however many views of it there are, with the room that it keeps for
    growing. Python's own objects (names, dictionaries) are not counted.
    """
    seen: set[int] = set()
    waiting: list[object] = list(roots)
    total = 0
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, _PLAIN):
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            if isinstance(item.base, np.ndarray):
                waiting.append(item.base)
            else:
                total += item.nbytes
        else:
            waiting.extend(_parts(item))
    return total


def _parts(item: Any) -> Iterable[object]:
    """Return what an object holds; nothing of those that are not detection's."""
    if isinstance(item, Mapping):
        item = list(item.values())
    if isinstance(item, _CONTAINERS):
        # Names and numbers of series are many and hold no array; only a tuple has parts of many kinds.
        alike = not isinstance(item, tuple)
        return [] if alike and item and isinstance(next(iter(item)), _PLAIN) else item
    if not type(item).__module__.startswith(_OWN):
        return ()
    slots = [getattr(item, name, None) for name in getattr(type(item), "__slots__", ())]
    return [*getattr(item, "__dict__", {}).values(), *slots]
