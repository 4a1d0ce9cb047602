"""The ribbon: entity by time, coloured by the worst incident that touched it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.findings import Incident, Severity
from collectors.contract import SeriesKey
from collectors.entities import FLEET, kind_of
from dashboard.data import Latest
from dashboard.sampling import Line

BINS = 120

NO_DATA, NORMAL = 0, 1
_LEVELS = {Severity.INFO: 2, Severity.WARNING: 3, Severity.CRITICAL: 4}
LEVEL_NAMES = ("no data", "normal", "info", "warning", "critical")

_MAX_ROWS = 12


@dataclass(frozen=True, slots=True)
class Ribbon:
    """``levels[row, bin]`` from 0 (no data) to 4 (critical), with ``edges[bin + 1]`` in seconds."""

    entities: tuple[str, ...]
    edges: NDArray[np.float64]
    levels: NDArray[np.int64]


def witnesses(latest: Latest, incidents: Sequence[Incident]) -> dict[str, SeriesKey | None]:
    """Choose the rows and, for each, the series whose samples show that it was watched.

    Services, hosts and GPUs have a row, and so has whatever else an incident names. The witness is
    the series that has been seen last; an entity without one has only grey behind its incidents.
    """
    touched = {name for incident in incidents for name in _entities(incident)}
    chosen: dict[str, SeriesKey | None] = dict.fromkeys(sorted(touched))
    newest: dict[str, float] = {}
    for key, reading in sorted(latest.readings.items()):
        kept = kind_of(key.entity) in {"service", "host", "gpu"} or key.entity in touched
        if kept and reading.time_seconds > newest.get(key.entity, -np.inf):
            newest[key.entity] = reading.time_seconds
            chosen[key.entity] = key
    order = sorted(chosen, key=lambda name: (name not in touched, name == FLEET, name))
    return {name: chosen[name] for name in sorted(order[:_MAX_ROWS], key=_place)}


def _place(name: str) -> tuple[bool, bool, str]:
    """Sort services first, then hosts with their GPUs, then the rest, then the fleet."""
    return (name == FLEET, not name.startswith("service/"), name)


def _entities(incident: Incident) -> set[str]:
    return {incident.entity, *(anomaly.entity for anomaly in incident.anomalies)}


def ribbon(
    rows: Mapping[str, SeriesKey | None],
    lines: Mapping[SeriesKey, Line],
    incidents: Sequence[Incident],
    start_seconds: float,
    end_seconds: float,
) -> Ribbon:
    """Lay incidents over what was watched, in :data:`BINS` bins."""
    edges = np.linspace(start_seconds, end_seconds, BINS + 1)
    levels = np.full((len(rows), BINS), NO_DATA, dtype=np.int64)
    for row, (name, key) in enumerate(rows.items()):
        line = lines.get(key) if key is not None else None
        if line is not None:
            levels[row, _watched(line, edges)] = NORMAL
        for incident in incidents:
            for begin, end in _spans(incident, name, end_seconds):
                inside = (edges[1:] > begin) & (edges[:-1] <= end)
                levels[row, inside] = np.maximum(levels[row, inside], _LEVELS[incident.severity])
    return Ribbon(tuple(rows), edges, levels)


def _watched(line: Line, edges: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the bins that a line passes through: those with a point, and those that a segment spans."""
    bins = np.zeros(BINS, dtype=np.bool_)
    present = np.isfinite(line.values)
    places = np.clip(np.searchsorted(edges, line.times, side="right") - 1, 0, BINS - 1)
    bins[places[present]] = True
    for left, right in zip(range(len(places) - 1), range(1, len(places)), strict=True):
        if present[left] and present[right]:
            bins[places[left] : places[right]] = True
    return bins


def _spans(incident: Incident, entity: str, end_seconds: float) -> list[tuple[float, float]]:
    end = end_seconds if incident.resolved_seconds is None else incident.resolved_seconds
    spans = [(a.onset_seconds, end) for a in incident.anomalies if a.entity == entity]
    if incident.entity == entity:
        spans.append((incident.onset_seconds, end))
    return spans
