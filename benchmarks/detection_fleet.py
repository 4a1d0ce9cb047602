"""Times detection over a fleet's day: one worker process against two.

    python -m benchmarks.detection_fleet [--quick] [--json] [--series 20000] [--hours 24]

A real server (VictoriaMetrics) is filled with the past of services of 20 series each, a sample a minute;
the workers read it themselves, fit seasons on the eight hours before the day and run the live pipeline
over the day, as `galen detect prometheus:URL --workers N` does. Printed for each: seconds, samples a
second, and what the workers' time went into. The server runs on the same machine, and its own processor
time is printed beside: with two workers on two cores all three share them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from analysis.detection.fleet.build import this_build
from analysis.detection.fleet.cluster import LOCAL, check_workers, cluster_client, run_on_cluster
from analysis.detection.fleet.task import Window
from analysis.settings import AnalysisSettings
from benchmarks.fleet.history import USUAL, HistoryServer, Past, history_server
from galen.fleet import PrometheusSource, list_series, plan

_START_SECONDS = 1_700_006_400.0
_STEP_SECONDS = 60.0
_TRAIN_SECONDS = 8 * 3600.0


@dataclass(frozen=True)
class Measured:
    workers: int
    seconds: float
    series: int
    ticks: int
    samples_a_second: float
    alarms: int
    shapes: int
    reading_share: float
    waiting_share: float
    fitting_share: float
    scoring_share: float
    worker_seconds: float
    server_cpu_seconds: float
    digest: str


def measure(server: HistoryServer, window: Window, workers: int) -> Measured:
    """Detect over the window with some worker processes."""
    source = PrometheusSource(server.url, window.step_seconds)
    tasks = plan(source, list_series(source, window), window, AnalysisSettings())
    with cluster_client(LOCAL, workers=workers, connect_seconds=120) as client:
        check_workers(client, this_build(), wait_seconds=120)
        before = server.cpu_seconds()
        result = run_on_cluster(client, tasks, progress=lambda share: _tell(workers, share))
        cpu = server.cpu_seconds() - before
    if result.failed:
        raise SystemExit(f"a shard failed: {result.failed[0].error}")
    spent = result.spent
    series = sum(1 for _ in result.series())
    values = sum(one.values for one in result.series())
    return Measured(
        workers=workers,
        seconds=result.seconds,
        series=series,
        ticks=result.ticks,
        samples_a_second=values / result.seconds,
        alarms=len(result.alarms()),
        shapes=sum(one.shapes for one in result.done),
        reading_share=spent.reading / spent.total,
        waiting_share=max(spent.reading - spent.reading_busy, 0.0) / spent.total,
        fitting_share=spent.fitting / spent.total,
        scoring_share=spent.scoring / spent.total,
        worker_seconds=spent.total,
        server_cpu_seconds=cpu,
        digest=result.digest(),
    )


def _tell(workers: int, share: float) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{workers} workers: {share:6.1%} ")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="2,000 series, three hours")
    options.add_argument("--json", action="store_true", help="print one JSON document")
    options.add_argument("--series", type=int, default=20_000)
    options.add_argument("--hours", type=float, default=24.0)
    given = options.parse_args()
    series, hours = (2_000, 3.0) if given.quick else (given.series, given.hours)
    end = _START_SECONDS + _TRAIN_SECONDS + hours * 3600.0
    past = Past(max(1, series // len(USUAL)), _START_SECONDS, end, _STEP_SECONDS)
    window = Window(
        _START_SECONDS + _TRAIN_SECONDS, end, _STEP_SECONDS, train_seconds=_TRAIN_SECONDS
    )
    with tempfile.TemporaryDirectory() as folder, history_server(Path(folder)) as server:
        filled = server.fill(past)
        measured = [measure(server, window, workers) for workers in (1, 2)]
    one, two = measured
    same = one.digest == two.digest
    if given.json:
        document = {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "samples_stored": past.samples,
            "filling_seconds": filled,
            "runs": [asdict(run) for run in measured],
            "speedup": one.seconds / two.seconds,
            "same_scores": same,
        }
        print(json.dumps(document, indent=2))
    else:
        _print(measured, past, filled)
        print(f"\n{one.seconds / two.seconds:.2f} times as fast; scores equal bit for bit: {same}")
    if not same:
        raise SystemExit("the scores differ")


def _print(measured: list[Measured], past: Past, filled: float) -> None:
    one = measured[0]
    print(
        f"{one.series} series, {one.ticks} ticks of {past.step_seconds:g} s, {os.cpu_count()} cores; "
        f"{past.samples / 1e6:.1f} M samples stored in {filled:.0f} s; {one.shapes} seasonal shapes, "
        f"{one.alarms} alarms\n"
    )
    print(
        f"{'workers':>7} {'seconds':>8} {'samples/s':>10} {'reading':>8} {'(waiting)':>9} "
        f"{'fitting':>8} {'scoring':>8} {'worker s':>9} {'server CPU s':>13}"
    )
    for run in measured:
        print(
            f"{run.workers:>7} {run.seconds:>8.1f} {run.samples_a_second:>10,.0f} "
            f"{run.reading_share:>8.0%} {run.waiting_share:>9.0%} {run.fitting_share:>8.0%} "
            f"{run.scoring_share:>8.0%} {run.worker_seconds:>9.1f} {run.server_cpu_seconds:>13.1f}"
        )


if __name__ == "__main__":
    main()
