"""Steps that bring a state of detection from one version to the next.

Each step changes the arrays of a file, by part and name, in place. A step that was released is never
edited: files of its version lie on disks. A part that a step leaves out, or that is new, starts anew by
itself, and the others go on; so a step is needed only where a part would otherwise be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

MutableParts = dict[str, dict[str, NDArray[Any]]]
Migration = Callable[[MutableParts, int], None]
"""Takes the parts, and the number of series."""


def _count_alarms_of_late(parts: MutableParts, series: int) -> None:
    """From 1: the realised rate of late, taken for that of all time; p-values, not yet known."""
    for name in ("baseline", "mahalanobis", "forest"):
        part = parts.get(name, {})
        if "tail_seen" in part:
            seen = np.maximum(part["tail_seen"], 1.0)
            part["tail_recent"] = part["tail_above"] / seen
    for name in ("last", "held"):
        if name in parts:
            parts[name]["p_value"] = np.full(series, np.nan)


def _lay_shapes_together(parts: MutableParts, series: int) -> None:  # noqa: ARG001
    """From 2: seasonal shapes, which had an array each, lie in one; they were all of UTC."""
    part = parts.get("baseline", {})
    old = {
        int(name.removeprefix("shape_")): part.pop(name)
        for name in sorted(part)
        if name.startswith("shape_")
    }
    columns = sorted(old)
    offsets = [old[column][1:] for column in columns] or [np.empty(0)]
    part["shapes_column"] = np.array(columns, dtype=np.int64)
    part["shapes_period"] = np.array([old[column][0] for column in columns], dtype=float)
    part["shapes_phases"] = np.array([len(old[column]) - 1 for column in columns], dtype=np.int64)
    part["shapes_offsets"] = np.concatenate(offsets).astype(np.float32)
    part["shapes_zone"] = np.zeros(len(columns), dtype=np.int64)
    part["shapes_zones"] = np.array(["UTC"] if columns else [], dtype=str)


MIGRATIONS: Mapping[int, Migration] = MappingProxyType(
    {1: _count_alarms_of_late, 2: _lay_shapes_together}
)
"""The step from each version to the next."""
