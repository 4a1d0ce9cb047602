"""Fits seasonal shapes for the live baseline from stored history; run it beside the watch loop.

shapes = fit_shapes(reader, now - 21 * DAY_SECONDS, now)   # in a thread
pipeline.adopt_shapes(shapes)                              # between two ticks
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import structlog

from analysis.detection.contract import FloatArray
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.seasonal_fit import SeasonalShape, fit_shape
from analysis.detection.zones import UTC
from collectors.contract import SeriesKey
from collectors.store.contract import MINUTE_SECONDS, SeriesInfo, SeriesReader

_log = structlog.get_logger(__name__)

STEP_SECONDS = 300.0
"""Shapes are of days and weeks: medians over five minutes lose nothing and cost little."""
_MOST_ROWS = 1_300_000
"""Minutes of all series that are read at a time, such as a week of 128 series: some 100 MB."""


def fit_shapes(
    reader: SeriesReader,
    start_seconds: float,
    end_seconds: float,
    periods_seconds: Sequence[float] = (),
    *,
    zone: str = UTC,
) -> dict[SeriesKey, SeasonalShape]:
    """Fit every stored series and return those that have a shape.

    Roll-ups of a minute are read, some entities at a time: they outlive the samples, which are kept for
    too few days to show three, and weeks of them fit into memory.

    Args:
        reader: of the series store.
        start_seconds: the first time that is read.
        end_seconds: the first time that is not.
        periods_seconds: periods to try; by default a day, a week and the one that the data show.
        zone: whose wall clock days and weeks follow.
    """
    shapes: dict[SeriesKey, SeasonalShape] = {}
    minutes = max(1.0, (end_seconds - start_seconds) / MINUTE_SECONDS)
    for batch in _batches(reader.series(), int(_MOST_ROWS / minutes)):
        frame = reader.read_rollup(
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            entities={key.entity for key in batch},
            signals={key.signal for key in batch},
        )
        for key, times, medians in _medians(frame):
            shape = fit_medians(key, times, medians, periods_seconds, zone=zone)
            if shape is not None:
                shapes[key] = shape
    return shapes


def _batches(series: Iterable[SeriesInfo], most: int) -> Iterator[list[SeriesKey]]:
    """Yield the series that can have a season, entity by entity, some at a time."""
    wanted = sorted(info.key for info in series if has_season(info.key))
    batch: list[SeriesKey] = []
    for _, keys in itertools.groupby(wanted, key=lambda key: key.entity):
        batch.extend(keys)
        if len(batch) >= most:
            yield batch
            batch = []
    if batch:
        yield batch


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
    positions = _profile(key.signal).forward(medians)
    try:
        return fit_shape(times, positions, periods_seconds, zone=zone)
    # Raised by the libraries that decompose: one series must not cost the others their seasons.
    except (ValueError, ArithmeticError, np.linalg.LinAlgError):
        _log.exception("season_not_fitted", entity=key.entity, signal=key.signal, steps=len(times))
        return None


@lru_cache(4096)
def _profile(signal: str) -> SeriesProfiles:
    profile = SeriesProfiles()
    profile.grow([SeriesKey("", signal)])
    return profile


def _medians(frame: pd.DataFrame) -> Iterator[tuple[SeriesKey, FloatArray, FloatArray]]:
    """Yield each series with the middles of the steps that have values, and their medians.

    The median is of the means of the minutes of a step.
    """
    if frame.empty:
        return
    per_step = int(STEP_SECONDS / MINUTE_SECONDS)
    minute = (frame["time"].to_numpy(dtype=float) // MINUTE_SECONDS).astype(np.int64)
    first = int(minute.min()) // per_step
    steps = int(minute.max()) // per_step - first + 1
    entity_of, entities = pd.factorize(frame["entity"])
    signal_of, signals = pd.factorize(frame["signal"])
    series_of, pairs = pd.factorize(entity_of * len(signals) + signal_of)
    table = np.full((len(pairs), steps * per_step), np.nan)
    table[series_of, minute - first * per_step] = frame["mean"].to_numpy(dtype=float)
    ordered = np.sort(table.reshape(len(pairs), steps, per_step), axis=2)  # NaN comes last
    count = np.isfinite(ordered).sum(axis=2, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=2)
    high = np.take_along_axis(ordered, np.minimum(count // 2, per_step - 1), axis=2)
    medians, there = (0.5 * (low + high))[:, :, 0], count[:, :, 0] > 0
    middles = (first + np.arange(steps) + 0.5) * STEP_SECONDS
    for number, pair in enumerate(pairs.tolist()):
        key = SeriesKey(str(entities[pair // len(signals)]), str(signals[pair % len(signals)]))
        yield key, middles[there[number]], medians[number, there[number]]
