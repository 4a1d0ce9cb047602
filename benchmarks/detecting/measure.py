"""One measurement in a process of its own, on one core, printed as JSON.

    python -m benchmarks.detecting.measure tick|fit|libraries ...

The caller pins the process and tells the mathematics libraries to use one thread.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import psutil

from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.seasonal_history import fit_shapes
from analysis.detection.settings import DetectionSettings
from analysis.history import History
from benchmarks.detecting.contestants import libraries, series
from benchmarks.detecting.fleet import START, Fleet
from collectors.contract import Sample, SeriesKey
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore

_HISTORY_TICKS = 1800
"""Half an hour by the second, as `[watch] history_minutes` is by default."""


class _Rows:
    """Stands for the history: the pipeline reads names and labels from it, and gets its rows here."""

    layout = 0

    def __init__(self, keys: list[SeriesKey]) -> None:
        self.keys = keys

    def labels(self, key: SeriesKey) -> Mapping[str, str]:  # noqa: ARG002
        return MappingProxyType({})


class _TimedFits(SameThreadExecutor):
    """Fits at once and counts the time apart: beside a watch loop another thread does it.

    While ``short`` it gives every entity of a size the same forest, so that a fleet is warm soon.
    """

    def __init__(self) -> None:
        self.short = True
        self.cpu_seconds = 0.0
        self.fits = 0
        self._known: dict[tuple[int, ...], Any] = {}

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        width = args[0].shape[1:]
        if self.short and width in self._known:
            return super().submit(lambda: self._known[width])
        began = time.process_time()
        future = super().submit(fn, *args, **kwargs)
        self.cpu_seconds += time.process_time() - began
        self.fits += 1
        self._known[width] = future.result()
        return future


def tick(count: int, cadence: float, ticks: int) -> dict[str, float]:
    """Time ticks of a warm pipeline with seasonal shapes and forests everywhere, and weigh it."""
    fleet = Fleet(count)
    keys = fleet.keys
    fleet.row(START)
    before = _resident()
    fits = _TimedFits()
    history = cast(History, _Rows(keys))
    pipeline = DetectionPipeline(DetectionSettings(), history, executor=fits)
    now = START
    pipeline.tick(now, fleet.row(now))
    shapes = fleet.shapes()
    pipeline.adopt_shapes(shapes)
    shaped = len(shapes)
    del shapes
    entities = len({key.entity for key in keys})
    while pipeline.fitted_forests < 0.9 * entities:
        now += cadence
        pipeline.tick(now, fleet.row(now))
        if now - START > 3000 * cadence:
            raise RuntimeError(f"{pipeline.fitted_forests} forests of {entities} after 3000 ticks")
    fits.short, fits.cpu_seconds, fits.fits = False, 0.0, 0
    walls, cpus, anomalies = [], [], 0
    fit_seconds = 0.0
    for _ in range(ticks):
        now += cadence
        row = fleet.row(now)
        fitted = fits.cpu_seconds
        wall, cpu = time.perf_counter(), time.process_time()
        found = pipeline.tick(now, row)
        in_fits = fits.cpu_seconds - fitted
        walls.append(time.perf_counter() - wall - in_fits)
        cpus.append(time.process_time() - cpu - in_fits)
        fit_seconds += in_fits
        anomalies += len(found.anomalies)
    return {
        "series": count,
        "cadence": cadence,
        "entities": entities,
        "shapes": shaped,
        "forests": pipeline.fitted_forests,
        "tick_ms": 1e3 * float(np.median(walls)),
        "tick_p99_ms": 1e3 * float(np.quantile(walls, 0.99)),
        "tick_cpu_ms": 1e3 * float(np.median(cpus)),
        "fit_cpu_ms_a_tick": 1e3 * fit_seconds / ticks,
        "core_share": (float(np.sum(cpus)) + fit_seconds) / (ticks * cadence),
        "anomalies_a_tick": anomalies / ticks,
        "array_bytes_a_series": pipeline.nbytes / count,
        "resident_bytes_a_series": (_resident() - before) / count,
        "history_bytes_a_series": _history_bytes(fleet),
        **_restart(pipeline, history),
    }


def _restart(pipeline: DetectionPipeline, history: History) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detection.npz"
        saved = _seconds(lambda: pipeline.save(path))
        size = path.stat().st_size
        fresh = DetectionPipeline(DetectionSettings(), history, executor=SameThreadExecutor())
        loaded = _seconds(lambda: fresh.load(path))
    return {"save_seconds": saved, "load_seconds": loaded, "state_file_bytes": size}


def _history_bytes(fleet: Fleet) -> float:
    """Return what the ring of half an hour takes a series; it is diagnosis' as well."""
    some = min(len(fleet.keys), 10_000)
    history = History(capacity_ticks=_HISTORY_TICKS)
    history.append(START, [Sample(START, *key, 1.0) for key in fleet.keys[:some]])
    return history.nbytes / some


def fit(count: int, days: int, folder: Path) -> dict[str, float]:
    """Write a store of so many series by the minute, and fit their seasons from it."""
    path = folder / "series.sqlite"
    fleet = Fleet(count)
    ticks = days * 1440
    end = START + 60.0 * ticks
    built = _seconds(lambda: _write(path, fleet, ticks))
    with closing(SqliteSeriesReader(path)) as reader:
        timed = _TimedReader(reader)
        shapes: dict[SeriesKey, object] = {}
        cpu = time.process_time()
        wall = _seconds(lambda: shapes.update(fit_shapes(timed, START, end)))
        cpu = time.process_time() - cpu
    return {
        "series": count,
        "days": days,
        "build_seconds": built,
        "fit_seconds": wall,
        "fit_cpu_seconds": cpu,
        "reading_cpu_seconds": timed.cpu_seconds,
        "shapes": len(shapes),
    }


class _TimedReader:
    """A reader that counts the processor time that it takes."""

    def __init__(self, reader: SqliteSeriesReader) -> None:
        self._reader = reader
        self.cpu_seconds = 0.0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        work = getattr(self._reader, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                self.cpu_seconds += time.process_time() - began

        return timed


def _write(path: Path, fleet: Fleet, ticks: int) -> None:
    with closing(SqliteSeriesStore(path)) as store:
        for start in range(0, ticks, 20):
            samples: list[Sample] = []
            for number in range(start, min(start + 20, ticks)):
                samples += fleet.samples(START + 60.0 * number)
            store.write(samples)
            store.compact(now_seconds=START + 60.0 * number, budget_seconds=5.0)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _resident() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but not given back is nobody's
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("tick", "fit", "libraries"))
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--cadence", type=float, default=1.0)
    parser.add_argument("--ticks", type=int, default=100)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--points", type=int, default=10_080)
    parser.add_argument("--period", type=int, default=1440)
    chosen = parser.parse_args()
    if chosen.what == "tick":
        found: dict[str, float] = tick(chosen.series, chosen.cadence, chosen.ticks)
    elif chosen.what == "fit":
        with tempfile.TemporaryDirectory() as folder:
            found = fit(chosen.series, chosen.days, Path(folder))
    else:
        found = libraries(series(chosen.points, chosen.period), chosen.period)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
