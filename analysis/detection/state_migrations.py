"""Steps that bring a state of detection from one version to the next.

Each step changes the arrays of a file, by part and name, in place. A step that was released is never
edited: files of its version lie on disks. A part that a step leaves out, or that is new, starts anew by
itself, and the others go on; so a step is needed only where a part would otherwise be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.detection.entity_blocks import EntityBlocks
from analysis.detection.entity_layout import Layout
from collectors.contract import SeriesKey

_MANY_VALUES = 1000.0

MutableParts = dict[str, dict[str, NDArray[Any]]]
Migration = Callable[[MutableParts, Sequence[SeriesKey]], None]
"""Takes the parts, and the series in the order of their columns."""


def _count_alarms_of_late(parts: MutableParts, keys: Sequence[SeriesKey]) -> None:
    """From 1: the realised rate of late, taken for that of all time; p-values, not yet known."""
    for name in ("baseline", "mahalanobis", "forest"):
        part = parts.get(name, {})
        if "tail_seen" in part:
            seen = np.maximum(part["tail_seen"], 1.0)
            part["tail_recent"] = part["tail_above"] / seen
    for name in ("last", "held"):
        if name in parts:
            parts[name]["p_value"] = np.full(len(keys), np.nan)


def _lay_shapes_together(parts: MutableParts, keys: Sequence[SeriesKey]) -> None:
    """From 2: seasonal shapes, which had an array each, lie in one; they were all of UTC.

    Trends count the values of a process; those that ran had enough.
    """
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
    if "trend" in parts:
        parts["trend"]["values"] = np.full(len(keys), _MANY_VALUES)
        parts["trend"]["step"] = np.zeros(len(keys))


def _lay_entities_without_padding(parts: MutableParts, keys: Sequence[SeriesKey]) -> None:
    """From 3: what votes know of entities, which had as many slots each as the largest.

    The trees of forests go: their rows stay, and one pass over them makes new ones at once.
    """
    if "covariance" in (part := parts.get("mahalanobis", {})):
        old = {name: part.pop(name) for name in ("covariance", "precision")}
        width = old["covariance"].shape[-1]
        layout = _layout(keys, width)
        for shelf in layout.shelves:
            slots = min(width, shelf.width)
            for name, array in old.items():
                squares = np.tile((name == "precision") * np.eye(shelf.width), (len(shelf), 1, 1))
                squares[:, :slots, :slots] = array[shelf.entities, :slots, :slots]
                part[f"{name}_{shelf.width}"] = squares
        # As many as a vote gathers by default; with other settings it starts anew.
        part["waiting"] = np.zeros((30, len(layout.columns)))
        part["weights"] = np.zeros((30, layout.entities))
    if "kept" in (part := parts.get("forest", {})):
        layout = _layout(keys, part["kept"].shape[-1])
        part["kept"] = part["kept"][:, layout.entity_of, layout.slot_of]
        part["about"] = np.delete(part["about"], 5, axis=1)
        part["about"][:, [0, 3]] = 0.0
        part["clock"] = np.append(part["clock"], -np.inf)
        part["tree_of"] = np.full(layout.entities, -1)
        trees = part["tree_feature"].shape[1]
        for name in [name for name in part if name.startswith(("tree_", "pending_"))]:
            if name != "tree_of":
                del part[name]
        part["tree_feature"] = np.zeros((0, trees, 127), dtype=np.int16)
        part["tree_threshold"] = np.zeros((0, trees, 127), dtype=np.float32)
        part["tree_length"] = np.zeros((0, trees, 128), dtype=np.float32)


def _layout(keys: Sequence[SeriesKey], largest: int) -> Layout:
    blocks = EntityBlocks(memory_seconds=1.0, memory_values=1.0, largest=largest)
    blocks.grow(keys)
    return blocks.layout


MIGRATIONS: Mapping[int, Migration] = MappingProxyType(
    {1: _count_alarms_of_late, 2: _lay_shapes_together, 3: _lay_entities_without_padding}
)
"""The step from each version to the next."""
