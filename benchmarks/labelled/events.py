"""Events put into quiet stretches of real series, each so many sigma of what the series does by itself.

Sigma is that of the local robust residual: of the distance of each quiet value from the running median
of the 61 values around it, the larger of 1.4826 times the median absolute deviation and of the spread
between the 1st and 99th percentile over 4.65, which a normal distribution makes equal. The second keeps
a series that rests most of the time from having a sigma of nothing. Where both are nothing the series
stands still, and no event is put there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.labelled.fleets import Fleet, FloatArray

SHAPES = ("step", "spike", "drop", "ramp")
SIZES = (6.0, 9.0, 15.0)
_LENGTH = {"step": 30, "spike": 4, "drop": 8, "ramp": 40}
"""Values from onset to end; a ramp takes half of it to rise."""
_APART_SECONDS = 2 * 86_400.0
_MEDIAN_VALUES = 61
_LEAST_VALUES = 60


@dataclass(frozen=True, slots=True)
class Event:
    """One injected event."""

    column: int
    shape: str
    size: float
    start_seconds: float
    end_seconds: float
    step_seconds: float


def inject(fleet: Fleet, seed: int) -> tuple[Fleet, list[Event]]:
    """Return the fleet with events in it, two days apart on every series, and the events."""
    random = np.random.default_rng(seed)
    values = fleet.values.copy()
    events: list[Event] = []
    for column in range(len(fleet.keys)):
        events += _into(fleet, values, column, random)
    changed = Fleet(fleet.name, fleet.times, values, fleet.keys, fleet.quiet, fleet.steps)
    return changed, events


def _into(
    fleet: Fleet, values: FloatArray, column: int, random: np.random.Generator
) -> Sequence[Event]:
    rows = np.flatnonzero(np.isfinite(fleet.values[:, column]))
    series = fleet.values[rows, column]
    times = fleet.times[rows]
    quiet = fleet.quiet[rows, column]
    if not len(rows):
        return []
    residual = series - _running_median(series)
    sigma = _sigma(residual[quiet])
    if sigma <= 0:
        return []
    found = []
    at = times[0] + random.uniform(0, _APART_SECONDS)
    number = int(random.integers(len(SHAPES) * len(SIZES)))
    while at < times[-1]:
        shape = SHAPES[number % len(SHAPES)]
        size = SIZES[number // len(SHAPES) % len(SIZES)]
        length = _LENGTH[shape]
        first = int(np.searchsorted(times, at))
        at += _APART_SECONDS * random.uniform(0.9, 1.1)
        last = first + length
        if last + length >= len(times) or not quiet[first : last + length].all():
            continue
        # Only where values came at their pace: a gap in an event would be another event.
        if times[last - 1] - times[first] > 1.5 * length * fleet.steps[column]:
            continue
        number += 1
        values[rows[first:last], column] += size * sigma * _profile(shape, length)
        found.append(
            Event(
                column,
                shape,
                size,
                float(times[first]),
                float(times[last - 1]),
                float(fleet.steps[column]),
            )
        )
    return found


def _profile(shape: str, length: int) -> FloatArray:
    if shape == "ramp":
        return np.minimum(1.0, np.arange(1, length + 1) / (length / 2))
    return np.full(length, -1.0 if shape == "drop" else 1.0)


def _running_median(values: FloatArray) -> FloatArray:
    half = _MEDIAN_VALUES // 2
    padded = np.pad(values, half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN_VALUES)
    return np.asarray(np.median(windows, axis=1))


def _sigma(residual: FloatArray) -> float:
    if len(residual) < _LEAST_VALUES:
        return 0.0
    low, middle, high = np.quantile(residual, (0.01, 0.5, 0.99))
    spread = 1.4826 * float(np.median(np.abs(residual - middle)))
    return max(spread, float(high - low) / 4.652)
