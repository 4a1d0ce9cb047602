"""Fits seasonal shapes for the live baseline from stored history; run it beside the watch loop.

shapes = fit_shapes(reader, now - 21 * DAY_SECONDS, now)   # in a thread
pipeline.adopt_shapes(shapes)                              # between two ticks
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from analysis.detection.contract import FloatArray
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.seasonal_fit import SeasonalShape, fit_shape
from analysis.detection.wall_clock import UTC
from collectors.contract import SeriesKey
from collectors.store.contract import SeriesReader

STEP_SECONDS = 300.0
"""Shapes are of days and weeks: medians over five minutes lose nothing and cost little."""


def fit_shapes(
    reader: SeriesReader,
    start_seconds: float,
    end_seconds: float,
    periods_seconds: Sequence[float] = (),
    *,
    zone: str = UTC,
) -> dict[SeriesKey, SeasonalShape]:
    """Fit every stored series, one read each, and return those that have a shape.

    Args:
        reader: of the series store.
        start_seconds: the first time that is read.
        end_seconds: the first time that is not.
        periods_seconds: periods to try; by default a day, a week and the one that the data show.
        zone: whose wall clock days and weeks follow.
    """
    shapes: dict[SeriesKey, SeasonalShape] = {}
    for info in reader.series():
        if not has_season(info.key):
            continue
        frame = reader.read(
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            entities=[info.key.entity],
            signals=[info.key.signal],
        )
        shape = fit_medians(info.key, *_medians(frame), periods_seconds, zone=zone)
        if shape is not None:
            shapes[info.key] = shape
    return shapes


def has_season(key: SeriesKey) -> bool:
    """Say whether a shape is fitted to a series at all: not to counters, states and events."""
    profile = _profile(key.signal)
    return bool(profile["statistical"][0] and not profile["counter"][0])


def fit_medians(
    key: SeriesKey,
    times: FloatArray,
    medians: FloatArray,
    periods_seconds: Sequence[float] = (),
    *,
    zone: str = UTC,
) -> SeasonalShape | None:
    """Fit one series from medians over :data:`STEP_SECONDS`, or return None where no shape helps.

    Args:
        key: the series.
        times: ``[n]`` middles of the steps that have values.
        medians: ``[n]`` their medians, in the unit of the signal.
        periods_seconds: as for :func:`fit_shapes`.
        zone: whose wall clock days and weeks follow.
    """
    if len(times) < 2 or not has_season(key):
        return None
    return fit_shape(times, _profile(key.signal).forward(medians), periods_seconds, zone=zone)


@lru_cache(4096)
def _profile(signal: str) -> SeriesProfiles:
    profile = SeriesProfiles()
    profile.grow([SeriesKey("", signal)])
    return profile


def _medians(frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Return the middle of each step that has values, and their median."""
    slot = np.floor(frame["time"].to_numpy(dtype=float) / STEP_SECONDS).astype(np.int64)
    medians = frame["value"].groupby(slot).median()
    times = (medians.index.to_numpy(dtype=float) + 0.5) * STEP_SECONDS
    return times, medians.to_numpy(dtype=float)
