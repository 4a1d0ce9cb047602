"""SLA report: a production trace at 60% of the service's capacity, and beside it at 150%.

``python -m benchmarks sla_replay -- --seconds 180 [--data DIRECTORY]``

The arrivals are those of the Azure LLM inference trace 2023 (Patel et al., Splitwise, ISCA 2024;
github.com/Azure/AzurePublicDataset, CC-BY-4.0): an hour of a conversation service, which asks for chat
answers here, and of a code service, whose short answers stand for classification. Their own gaps are
kept and squeezed, so bursts stay bursts; lengths are a quarter, for a model with 256 tokens of context.

First the capacity for this mix is measured, with twice as many clients as slots that ask without a
pause. Then the trace is replayed open loop at a share of it: a latency counts from the moment at which
a request should have left, and a refusal is an error. The agreement: P95 within 1.5 s for each task,
less than 1% errors. The control at 150% has to fail it, or the report could not.

Exit 0 if the agreement is kept and the control fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.resilience.replay import Arrival, Replayer, TaskFigures, read_trace, segment
from benchmarks.resilience.service import SETTINGS, serve
from benchmarks.serving import tables

TARGET_SECONDS = 1.5
TARGET_ERROR_SHARE = 0.01
SHARE, CONTROL_SHARE = 0.6, 1.5
_CAPACITY_SECONDS = 15.0
# Of the trace on both sides of its middle, where the replayed part lies, for the mix of lengths.
_MIX_ROWS = 3000


def main() -> int:
    """Measure, print the report, and judge it."""
    options = _options()
    trace = read_trace(options.data, options.seed)
    sys.stdout.write(f"{tables.circumstances()}\n\n")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seconds = min(_CAPACITY_SECONDS, options.seconds / 4)
        capacity = _capacity(root / "capacity", trace, seconds)
        sys.stdout.write(f"Capacity for this mix: {capacity:.0f} requests/s.\n")
        runs = {
            share: _replay(root / f"at-{share}", trace, capacity * share, length, degrade=degrade)
            for share, length, degrade in (
                (SHARE, options.seconds, True),
                # Degradation raises the capacity on purpose; a control has to be without it.
                (CONTROL_SHARE, options.seconds / 3, False),
            )
        }
    for share, run in runs.items():
        sys.stdout.write(_report(share, run))
    if options.json:
        document = {"capacity": capacity, "runs": {str(k): _figures(v) for k, v in runs.items()}}
        options.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    kept, control = (_kept(run) for run in runs.values())
    sys.stdout.write(f"\nThe agreement is {'kept' if kept else 'BROKEN'}; ")
    sys.stdout.write(
        f"the control {'is kept too: it proves nothing' if control else 'breaks it'}.\n"
    )
    return 0 if kept and not control else 1


class Run:
    """One replay."""

    def __init__(self, replayer: Replayer, rate: float, seconds: float) -> None:
        self.tasks: Mapping[str, TaskFigures] = replayer.figures
        self.client_late_seconds = replayer.latest_start
        self.rate = rate
        self.seconds = seconds


def _capacity(folder: Path, trace: list[Arrival], seconds: float) -> float:
    with serve(folder, automatic_degradation=False) as service:
        centre = len(trace) // 2
        middle = trace[centre - _MIX_ROWS : centre + _MIX_ROWS]
        asyncio.run(Replayer(service.port).saturate(middle, SETTINGS["slots"], seconds / 5))
        clients = 2 * SETTINGS["slots"]
        return asyncio.run(Replayer(service.port).saturate(middle, clients, seconds))


def _replay(
    folder: Path, trace: list[Arrival], rate: float, seconds: float, *, degrade: bool
) -> Run:
    with serve(folder, automatic_degradation=degrade) as service:
        replayer = Replayer(service.port)
        asyncio.run(replayer.replay(segment(trace, rate, seconds)))
    return Run(replayer, rate, seconds)


def _kept(run: Run) -> bool:
    total = sum(figures.total for figures in run.tasks.values())
    errors = sum(figures.error_share * figures.total for figures in run.tasks.values())
    slow = any(figures.percentile(95) > TARGET_SECONDS for figures in run.tasks.values())
    return not slow and errors < TARGET_ERROR_SHARE * total


def _report(share: float, run: Run) -> str:
    head = ("task", "requests", "P50 ms", "P95 ms", "P99 ms", "errors", "goodput/s", "degraded",
            "outcomes")  # fmt: skip
    rows = []
    for task, figures in run.tasks.items():
        outcomes = ", ".join(f"{name} {n}" for name, n in figures.outcomes.most_common())
        times = [tables.milliseconds(1000 * figures.percentile(p)) for p in (50, 95, 99)]
        goodput = tables.count(figures.within(TARGET_SECONDS) / run.seconds)
        rows.append((task, str(figures.total), *times, f"{figures.error_share:.2%}", goodput,
                     str(figures.degraded), outcomes))  # fmt: skip
    name = "SLA report" if share == SHARE else "Control"
    return (
        f"\n## {name}: {share:.0%} of the capacity, {run.rate:.0f} requests/s for {run.seconds:.0f} s"
        f" ({'kept' if _kept(run) else 'broken'})\n\n{tables.markdown(head, rows)}"
        f"\nThe client itself was late by at most {1000 * run.client_late_seconds:.0f} ms.\n"
    )


def _figures(run: Run) -> dict[str, Any]:
    return {
        "rate": run.rate,
        "seconds": run.seconds,
        "kept": _kept(run),
        "client_late_seconds": run.client_late_seconds,
        "tasks": {
            task: {
                "requests": figures.total,
                **{f"p{p}_seconds": figures.percentile(p) for p in (50, 95, 99)},
                "error_share": figures.error_share,
                "goodput": figures.within(TARGET_SECONDS) / run.seconds,
                "degraded": figures.degraded,
                "outcomes": dict(figures.outcomes),
            }
            for task, figures in run.tasks.items()
        },
    }


def _options() -> argparse.Namespace:
    default = Path(os.environ.get("GALEN_DATA", "../shared/data")) / "azure_llm" / "data"
    parser = argparse.ArgumentParser(prog="sla_replay")
    parser.add_argument(
        "--data", type=Path, default=default, help="folder of the trace's CSV files"
    )
    parser.add_argument("--seconds", type=float, default=180.0, help="of the replay at 60%%")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
