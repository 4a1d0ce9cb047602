"""`galen detect prometheus:...`, and `galen backtest` on a cluster: a whole fleet's past."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galen.commands.context import (
    invocation,
    parse_moment,
    parse_span,
    print_json,
    print_line,
    progress,
    progress_bar,
    show_moment,
    stop_on_signals,
)
from galen.errors import ConfigError, GalenError

if TYPE_CHECKING:
    from analysis.detection.backtest import Replayed
    from analysis.detection.fleet.results import FleetResult
    from analysis.detection.fleet.task import ReplayPlan, Window
    from galen.config import Settings
    from galen.fleet import PrometheusSource, StoreSource
    from galen.fleet_findings import FleetFindings

ClusterOption = Annotated[
    str | None,
    typer.Option(
        help="Dask scheduler to compute on, such as tcp://scheduler:8786; `local` for processes "
        "here; `none` for this process.",
        show_default="analysis.scheduler of the configuration",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Processes of a local cluster.", show_default="one a core"),
]
LOCAL, NONE = "local", "none"
_WARMUP_STEPS = 40
"""A baseline of its own takes 30 values, and before it ten that are not scored."""
_MOST_SHOWN = 30


@dataclass(frozen=True, slots=True)
class FleetQuestion:
    """What was asked on the command line."""

    source: str
    begin: str
    end: str | None
    train: str | None
    step: float | None
    cluster: str | None
    workers: int | None


def detect_fleet(
    question: FleetQuestion, *, config: Path | None, out: Path | None, json: bool
) -> int:
    """Score a fleet's past and say what was found; return the exit status."""
    from galen.fleet import list_series, plan, run_tasks
    from galen.fleet_findings import FleetFindings, write_alarms

    stop = stop_on_signals()
    settings = invocation(config, None).settings
    cluster = chosen_cluster(question.cluster, question.workers, settings)
    source = fleet_source(question.source, question.step, settings, config, cluster)
    window = _window(question, source.step_seconds)
    keys = list_series(source, window)
    if not keys:
        raise ConfigError(
            f"{question.source} has no series of Galen's in that time",
            fix="Choose another --from and --to; `galen prometheus check` shows what there is now.",
        )
    tasks = plan(source, keys, window, settings.analysis)
    _say(f"{len(keys)} series, {window.ticks} ticks, {show_moment(window.start_seconds)} to "
         f"{show_moment(window.end_seconds)}")  # fmt: skip
    with progress_bar("detecting") as told:
        result = run_tasks(
            tasks, cluster, workers=question.workers, say=_say, progress=told, stop=stop
        )
    found = FleetFindings.of(result, tasks, source=question.source, window=window)
    if out is not None:
        write_alarms(found.alarms, out)
    if json:
        print_json(found)
    else:
        _print(found)
    _tell_failures(result)
    _tell(found)
    return 1 if found.alarms or not found.whole else 0


def chosen_cluster(given: str | None, workers: int | None, settings: Settings) -> str | None:
    """Return the scheduler's address, ``local``, or None for this process.

    Raises:
        ConfigError: when ``--workers`` is given for a cluster that has its own.
    """
    if given is None and workers is not None:
        return LOCAL
    cluster = settings.analysis.scheduler if given is None else given
    if cluster in {None, NONE}:
        return None
    if cluster != LOCAL:
        if workers is not None:
            raise ConfigError(
                "--workers is for a local cluster", fix="Leave it out, or give --cluster local."
            )
        if "://" not in str(cluster) or "@" in str(cluster):
            raise ConfigError(
                "--cluster is no address of a scheduler",
                fix="Give tcp://scheduler:8786, tls://scheduler:8786, local or none.",
            )
    return cluster


def fleet_source(
    name: str,
    step: float | None,
    settings: Settings,
    config: Path | None,
    cluster: str | None,
) -> PrometheusSource:
    """Return the Prometheus of a name or an address, as workers will find it.

    Raises:
        ConfigError: when there is none of that name here.
    """
    from galen.config import DEFAULT_FILE
    from galen.fleet import PROMETHEUS, PrometheusSource, prometheus_target

    name = name.removeprefix(PROMETHEUS)
    target = prometheus_target(settings, name)
    file = config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    # Workers elsewhere have a configuration of their own; processes here share ours.
    shared = file.absolute() if file is not None and cluster in {None, LOCAL} else None
    return PrometheusSource(name, step or target.every_seconds, shared)


def replay_fleet(
    source: PrometheusSource | StoreSource,
    window: Window,
    replay: ReplayPlan,
    settings: Settings,
    cluster: str,
    *,
    workers: int | None,
    stop: threading.Event,
) -> Replayed:
    """Replay a fleet's past on a cluster, as `galen backtest` does in one process.

    Raises:
        GalenError: when the cluster cannot be used, or no shard was replayed.
    """
    from analysis.detection.backtest import joined
    from galen.fleet import list_series, plan, run_tasks

    tasks = plan(source, list_series(source, window), window, settings.analysis, replay=replay)
    with progress_bar("replaying") as told:
        result = run_tasks(tasks, cluster, workers=workers, say=_say, progress=told, stop=stop)
    _tell_failures(result)
    parts = result.replays()
    if not parts:
        raise GalenError(
            "nothing was replayed", fix="Choose another --from and --to, or see what is said above."
        )
    whole = joined(parts)
    return (
        whole
        if not (result.failed or result.notes() or result.stopped)
        else replace(whole, whole=False)
    )


def _window(question: FleetQuestion, step: float) -> Window:
    from analysis.detection.fleet.task import Window

    now = time.time()
    start = parse_moment(question.begin, name="--from", now=now)
    end = now if question.end is None else parse_moment(question.end, name="--to", now=now)
    if start >= end:
        raise ConfigError("--from is not before --to", fix="Swap them.")
    train = 0.0 if question.train is None else parse_span(question.train, name="--train")
    # On one grid since the epoch, so that two runs look at the same moments.
    return Window(
        start_seconds=math.floor(start / step) * step,
        end_seconds=math.ceil(end / step) * step,
        step_seconds=step,
        train_seconds=math.ceil(train / step) * step,
        warmup_seconds=_WARMUP_STEPS * step,
    )


def _say(text: str) -> None:
    progress.print(text, markup=False)


def _print(found: FleetFindings) -> None:
    noticed = [one for one in found.entities if one.alarms]
    print_line(
        f"{found.series} series of {len(found.entities)} entities: {len(found.alarms)} alarms on "
        f"{len(noticed)} entities"
    )
    if noticed:
        print_line(f"{'alarms':>6} {'highest':>8} {'anomalous':>10}  entity, its worst signal")
    for one in noticed[:_MOST_SHOWN]:
        print_line(
            f"{one.alarms:>6} {one.highest_score:>8.1f} {one.anomalous_share:>10.2%}  "
            f"{one.entity} {one.worst_signal}"
        )
    if len(noticed) > _MOST_SHOWN:
        _say(f"the first {_MOST_SHOWN} entities are shown; --json lists all")


def _tell_failures(result: FleetResult) -> None:
    for fault in result.failed:
        first = fault.entities[0]
        more = f" and {len(fault.entities) - 1} more" if len(fault.entities) > 1 else ""
        _say(f"not scored: {first}{more}: {fault.error}" + (f"; {fault.fix}" if fault.fix else ""))
    for note in result.notes():
        _say(f"incomplete: {note}")
    if result.stopped:
        _say("stopped: what was done until then is shown")
    if result.lost_workers:
        _say(f"{result.lost_workers} workers were lost; others did their shards")


def _tell(found: FleetFindings) -> None:
    spent = found.spent
    total = max(spent.reading + spent.fitting + spent.scoring, 1e-9)
    waiting = max(spent.reading - spent.reading_busy, 0.0)
    _say(
        f"{found.seconds:.1f} s by {max(len(found.workers), 1)} processes: reading "
        f"{spent.reading / total:.0%} ({waiting / total:.0%} waiting for the server), fitting "
        f"{spent.fitting / total:.0%}, scoring {spent.scoring / total:.0%}"
    )
