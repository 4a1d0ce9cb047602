"""The labelled data sets as fleets that the live pipeline can watch: one clock, a column a series.

No column is in the signal catalogue, and none is mapped onto a canonical signal whose family would suit
it: each is a gauge without family, without unit, of which both directions are bad.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from collectors.contract import SeriesKey

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MARGIN_SECONDS = 3600.0
"""What lies nearer to a labelled fault than this is neither fault-free nor faulty."""
WARMUP_SECONDS = 3 * 86_400.0
"""The first days of a series teach and are not judged, where it is longer than twice that."""
_WEEK_SECONDS = 7 * 86_400.0


@dataclass(frozen=True)
class Fleet:
    """Many series on one clock."""

    name: str
    times: FloatArray
    """``[ticks]`` seconds, rising."""
    values: FloatArray
    """``[ticks, series]``, NaN where there is no value."""
    keys: Sequence[SeriesKey]
    quiet: BoolArray
    """``[ticks, series]``: judged, and no labelled fault within the margin."""
    steps: FloatArray
    """``[series]``: the usual distance of values in seconds."""


def smd_fleet(root: Path, limit: int, days: float) -> Fleet:
    """Eight machines at one minute: training rows teach, test rows are judged."""
    series = []
    for path in sorted((root / "smd").glob("*.npz"))[:limit]:
        with np.load(path) as data:
            train, test, label = data["train"], data["test"], data["label"]
        rows = np.vstack((train, test)).astype(float)
        times = 60.0 * np.arange(len(rows))
        faulty = np.concatenate((np.zeros(len(train), dtype=bool), label.astype(bool)))
        judged = np.arange(len(rows)) >= len(train)
        series += [
            _Series(SeriesKey(f"machine/{path.stem}", f"m{at + 1}"), times, column, faulty, judged)
            for at, column in enumerate(rows.T)
        ]
    return _fleet("smd", series, days)


def kpi_fleet(root: Path, limit: int, days: float) -> Fleet:
    """KPIs of web services at one and five minutes, each with its own label at every value."""
    series = []
    for path in sorted((root / "kpi").glob("*.csv.gz"))[:limit]:
        with gzip.open(path, "rt") as file:
            raw = pd.read_csv(file, names=["timestamp", "value", "label"])
        raw = raw.sort_values("timestamp").drop_duplicates("timestamp")
        times = raw["timestamp"].to_numpy(dtype=float)
        key = SeriesKey(f"kpi/{path.name.partition('.')[0]}", "value")
        faulty = raw["label"].to_numpy(dtype=bool)
        series.append(
            _Series(key, times, raw["value"].to_numpy(dtype=float), faulty, _later(times))
        )
    return _fleet("kpi", series, days)


def nab_fleet(root: Path, limit: int, days: float) -> Fleet:
    """All series of the Numenta benchmark that come from real systems, with its windows."""
    windows = json.loads((root / "nab" / "labels" / "combined_windows.json").read_text())
    series = []
    for name, spans in sorted(windows.items())[:limit]:
        if name.startswith("artificial"):
            continue
        raw = pd.read_csv(root / "nab" / "data" / name)
        at = pd.to_datetime(raw["timestamp"])
        faulty = np.zeros(len(raw), dtype=bool)
        for start, end in spans:
            faulty |= ((at >= pd.Timestamp(start)) & (at <= pd.Timestamp(end))).to_numpy()
        times = (at - pd.Timestamp(0)).dt.total_seconds().to_numpy(dtype=float)
        order = np.argsort(times, kind="stable")
        key = SeriesKey(f"nab/{Path(name).stem}", "value")
        values = raw["value"].to_numpy(dtype=float)[order]
        times, faulty = times[order], faulty[order]
        series.append(_Series(key, times, values, faulty, _later(times)))
    return _fleet("nab", series, days)


FLEETS = {"smd": smd_fleet, "kpi": kpi_fleet, "nab": nab_fleet}


@dataclass(frozen=True)
class _Series:
    key: SeriesKey
    times: FloatArray
    values: FloatArray
    faulty: BoolArray
    judged: BoolArray

    def newest(self, days: float) -> _Series:
        """Return the newest days, of which the first again only teach."""
        kept = self.times >= self.times[-1] - days * 86_400.0
        if kept.all():
            return self
        times = self.times[kept]
        judged = self.judged[kept] & _later(times)
        return _Series(self.key, times, self.values[kept], self.faulty[kept], judged)


def _later(times: FloatArray) -> BoolArray:
    span = times[-1] - times[0]
    return np.asarray(times - times[0] >= min(WARMUP_SECONDS, span / 2))


def _fleet(name: str, whole: Sequence[_Series], days: float) -> Fleet:
    """Lay series onto one clock: moved by whole weeks to begin in the same one, on their own steps."""
    series = [each.newest(days) for each in whole]
    first = min(float(each.times[0]) for each in series)
    placed, steps = [], []
    for each in series:
        step = float(np.median(np.diff(np.unique(each.times))))
        moved = each.times - np.floor((each.times[0] - first) / _WEEK_SECONDS) * _WEEK_SECONDS
        placed.append(np.floor(moved / step) * step)
        steps.append(step)
    times = np.unique(np.concatenate(placed))
    values = np.full((len(times), len(series)), np.nan)
    quiet = np.zeros((len(times), len(series)), dtype=bool)
    for column, (each, at) in enumerate(zip(series, placed, strict=True)):
        rows = np.searchsorted(times, at)
        values[rows, column] = each.values
        quiet[:, column] = _quiet(times, at, each)
    return Fleet(name, times, values, [each.key for each in series], quiet, np.array(steps))


def _quiet(times: FloatArray, at: FloatArray, series: _Series) -> BoolArray:
    """``[ticks]``: judged and away from every fault, between the series' first and last value."""
    judged = at[series.judged]
    quiet = (times >= judged[0]) & (times <= judged[-1])
    edges = np.diff(np.concatenate(([0], series.faulty.astype(int), [0])))
    for start, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        quiet &= (times < at[start] - MARGIN_SECONDS) | (times > at[end - 1] + MARGIN_SECONDS)
    return np.asarray(quiet)
