"""`galen backtest`: live detection replayed over stored history."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galen.commands.context import (
    ConfigOption,
    Invocation,
    JsonOption,
    StateDirOption,
    invocation,
    parse_window,
    print_json,
    print_line,
    progress,
    progress_bar,
    show_moment,
    stop_on_signals,
)
from galen.commands.fleet import (
    ClusterOption,
    WorkersOption,
    chosen_cluster,
    fleet_source,
    replay_fleet,
)
from galen.errors import ConfigError, GalenError

if TYPE_CHECKING:
    from analysis.detection.backtest import Replayed, SeasonPlan
    from analysis.detection.fleet.task import ReplayPlan
    from galen.backtest.findings import Findings
    from galen.backtest.sources import ReplayHistory

_MOST_ALARMS_SHOWN = 50
_MOST_PROPOSALS_SHOWN = 8
_PROMETHEUS = "prometheus:"
_FILES = {".csv", ".parquet"}


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(backtest)


def backtest(
    source: Annotated[
        str | None,
        typer.Option(
            help="A series store, a CSV or Parquet file, or prometheus:NAME-or-URL.",
            show_default="the series store of --state-dir",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            "--since",
            help="From when: 24h, ISO 8601 or epoch seconds.",
            show_default="the first",
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", "--until", help="Until when.", show_default="the last")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="CSV of known faults: start,end and, where known, entity and signal.",
        ),
    ] = None,
    warmup: Annotated[
        float, typer.Option(min=0, help="Seconds from the start whose alarms do not count.")
    ] = 120.0,
    step: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Seconds between two ticks.",
            show_default="the watch loop's own, else the usual distance of samples; 15 of Prometheus",
        ),
    ] = None,
    seasons: Annotated[
        bool,
        typer.Option(
            "--seasons/--no-seasons", help="Fit seasonal shapes on the way, as the watch loop does."
        ),
    ] = True,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="HTML report to write.")] = None,
    json: JsonOption = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Replay live detection over history: what would have alarmed, was it right, what would help?

    The code of the watch loop runs tick by tick and sees no later sample. Two controls are judged by
    the same measure: as many alarms at random, and an alarm for all the time. Changes of policy that
    would have saved false alarms are chosen on the first half of the time and confirmed on the
    second. Ctrl-C ends the replay; what came so far is judged and told. Exit status 1 when there was an
    alarm, or with --labels when a fault was missed or an alarm was false, or when it was stopped.
    """
    from analysis.detection.backtest import judged
    from analysis.detection.fleet.task import ReplayPlan
    from collectors.contract import CollectorError
    from collectors.store.contract import StoreError
    from galen.backtest.findings import Findings
    from galen.backtest.labels import load_faults
    from galen.backtest.page import render_html

    call = invocation(config, state_dir)
    settings = call.settings.analysis.detection
    faults = None if labels is None else load_faults(labels)
    stop = stop_on_signals()
    window = parse_window(since, until)
    replay_plan = ReplayPlan(tuple(faults or ()), _season_plan(call) if seasons else None, warmup)
    chosen = _cluster(call, source, cluster, workers)
    try:
        if chosen is not None:
            name, replayed = _on_cluster(
                call, source, window, step, replay_plan, chosen, workers, stop
            )
        else:
            name, replayed = _here(call, source, window, step, replay_plan, stop)
    except StoreError as error:
        raise GalenError(str(error)) from error
    except CollectorError as error:
        raise GalenError(str(error), fix=error.fix) from error
    except ValueError as error:
        raise ConfigError(str(error), fix="Choose another --from and --to.") from error
    result = judged(replayed, settings, faults or ())
    found = Findings.of(
        result,
        source=name,
        judged=faults is not None,
        nominal_tail_rate=settings.baseline.tail_rate,
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render_html(found), "utf-8")
        progress.print(f"wrote {out}", markup=False)
    if json:
        print_json(found)
    else:
        _print_findings(found)
    raise typer.Exit(0 if found.as_hoped else 1)


def _cluster(
    call: Invocation, source: str | None, cluster: str | None, workers: int | None
) -> str | None:
    """Return where to compute; the configured scheduler is for servers, not for files here."""
    asked = cluster is not None or workers is not None
    if not asked and not (source or "").startswith(_PROMETHEUS):
        return None
    return chosen_cluster(cluster, workers, call.settings)


def _here(
    call: Invocation,
    source: str | None,
    window: tuple[float, float],
    step: float | None,
    replay_plan: ReplayPlan,
    stop: threading.Event,
) -> tuple[str, Replayed]:
    """Replay in this process; return how the source is called in reports, and what was found."""
    from analysis.detection.backtest import replay

    with (
        _history(call, source, window, step, stop) as (name, history),
        progress_bar("replaying") as told,
    ):
        span = max(history.end_seconds - history.start_seconds, 1.0)
        replayed = replay(
            history.chunks,
            call.settings.analysis.detection,
            history.start_seconds,
            labels=replay_plan.labels,
            tick_seconds=step or history.step_seconds,
            watch_entity=history.watch_entity,
            seasons=replay_plan.seasons,
            warmup_seconds=replay_plan.warmup_seconds,
            progress=lambda now: told(min(1.0, (now - history.start_seconds) / span)),
            stop=stop.is_set,
        )
    return name, replayed


def _on_cluster(
    call: Invocation,
    source: str | None,
    window: tuple[float, float],
    step: float | None,
    replay_plan: ReplayPlan,
    cluster: str,
    workers: int | None,
    stop: threading.Event,
) -> tuple[str, Replayed]:
    """Replay on a cluster; return how the source is called in reports, and what was found."""
    from analysis.detection.fleet.task import Window
    from galen.fleet import PrometheusSource, StoreSource

    start, end = window[0], min(window[1], time.time())
    if start == float("-inf"):
        raise ConfigError("--from is needed on a cluster", fix="Say from when, such as --from 24h.")
    where: PrometheusSource | StoreSource
    if source is not None and source.startswith(_PROMETHEUS):
        where = fleet_source(source, step, call.settings, call.config, cluster)
        steps = where.step_seconds
    else:
        path = call.paths.series if source is None else Path(source).absolute()
        if path.suffix in _FILES:
            raise ConfigError(
                "a CSV or Parquet file is replayed in one process",
                fix="Leave --cluster out, or `galen store import` the file first.",
            )
        if step is None:
            raise ConfigError("a store on a cluster needs --step", fix="Give --step 15.")
        where, steps = StoreSource(path), step
    name = source or str(call.paths.series)
    span = Window(math.ceil(start / steps) * steps, math.ceil(end / steps) * steps, steps)
    replayed = replay_fleet(
        where, span, replay_plan, call.settings, cluster, workers=workers, stop=stop
    )
    return name, replayed


@contextmanager
def _history(
    call: Invocation,
    source: str | None,
    window: tuple[float, float],
    step: float | None,
    stop: threading.Event,
) -> Iterator[tuple[str, ReplayHistory]]:
    """Open what ``--source`` names, and say how it is called in reports."""
    from collectors.store.sqlite import SqliteSeriesReader
    from galen.backtest.sources import from_file, from_store

    if source is not None and source.startswith(_PROMETHEUS):
        with ExitStack() as stack:
            yield _prometheus_history(
                call, source.removeprefix(_PROMETHEUS), window, step, stop, stack
            )
        return
    path = call.paths.series if source is None else Path(source)
    if source is not None and not path.is_file():
        raise ConfigError(
            f"--source: there is no file {source}",
            fix="Give a series store, a CSV or Parquet file, or prometheus:http://host:9090.",
        )
    if path.suffix in _FILES:
        yield str(path), from_file(path, *window)
        return
    reader = SqliteSeriesReader(path)
    try:
        yield str(path), from_store(reader, *window)
    finally:
        reader.close()


def _prometheus_history(
    call: Invocation,
    target: str,
    window: tuple[float, float],
    step: float | None,
    stop: threading.Event,
    stack: ExitStack,
) -> tuple[str, ReplayHistory]:
    from collectors.prometheus import default_queries, own_queries
    from collectors.prometheus_history import PrometheusHistory
    from galen.backtest.sources import from_prometheus
    from galen.commands.prometheus import prometheus_client, prometheus_target

    start, end = window
    if start == float("-inf"):
        raise ConfigError(
            "--from is needed: how far back Prometheus goes cannot be asked",
            fix="Say from when, such as --from 24h.",
        )
    chosen = prometheus_target(call.settings, target or None)
    client = prometheus_client(chosen)
    stack.callback(client.close)
    queries = own_queries(chosen)
    history = PrometheusHistory(
        "backtest",
        client,
        queries or default_queries(),
        exported=not queries,
        step_seconds=step or chosen.every_seconds,
        lookback_seconds=chosen.max_age_seconds,
    )

    def note(text: str) -> None:
        progress.print(f"incomplete: {text}", markup=False)

    return client.place, from_prometheus(history, start, min(end, time.time()), stop, note)


def _season_plan(call: Invocation) -> SeasonPlan:
    from analysis.detection.backtest import SeasonPlan
    from galen.seasons import FIRST_FIT_SECONDS, FIT_EVERY_SECONDS

    return SeasonPlan(
        FIRST_FIT_SECONDS,
        FIT_EVERY_SECONDS,
        call.settings.collectors.retention_hours * 3600.0,
        call.settings.analysis.detection.baseline.timezone,
    )


def _print_findings(found: Findings) -> None:
    print_line(
        f"{found.ticks} ticks of {found.series} series, {show_moment(found.start_seconds)} to "
        f"{show_moment(found.end_seconds)}: {len(found.alarms)} alarms"
    )
    if not found.whole:
        progress.print("stopped before the end: all that follows is of this time only")
    for one in found.alarms[:_MOST_ALARMS_SHOWN]:
        print_line(
            f"  {show_moment(one.raised_seconds)}  for {one.last_seconds - one.raised_seconds:>5.0f} s  "
            f"score {one.highest_score:>6.1f}  {one.entity} {one.signal} {one.direction}  "
            f"({', '.join(one.detectors)})"
        )
    if len(found.alarms) > _MOST_ALARMS_SHOWN:
        progress.print(f"the first {_MOST_ALARMS_SHOWN} alarms are shown; --json lists all")
    print_line(f"{'':8}{'noticed':>12}{'median delay':>14}{'false':>8}{'a series and day':>18}")
    for each in found.qualities:
        delay = each.median_delay_seconds
        print_line(
            f"{each.name:8}{f'{each.detected} of {each.faults}' if found.judged else '-':>12}"
            f"{'-' if delay is None else f'{delay:.0f} s':>14}{each.false_alarms:>8}"
            f"{each.false_alarms_per_series_day:>18.3g}"
        )
    for fault in found.faults:
        if not fault.detected:
            print_line(f"  missed: {show_moment(fault.start_seconds)}  {' '.join(fault.entities)}")
    if found.faults_outside:
        progress.print(f"{found.faults_outside} labelled faults lie outside of the time judged")
    if not found.judged:
        progress.print("without --labels every alarm counts as false")
    _print_advice(found)


def _print_advice(found: Findings) -> None:
    advice = found.advice
    if not advice.proposals:
        return
    print_line()
    print_line("what would have helped, by the first half of the time:")
    for one in advice.proposals[:_MOST_PROPOSALS_SHOWN]:
        first, second = one.chosen_on, one.confirmed_on
        print_line(
            f"  {'confirmed' if one.confirmed else 'not confirmed':14}{one.signal or 'all signals'}: "
            f"{one.change}: {first.false_alarms_removed} of {first.false_alarms_before} false alarms "
            f"less, {first.faults_lost} faults lost; second half {second.false_alarms_removed} of "
            f"{second.false_alarms_before} and {second.faults_lost}"
        )
    if advice.toml:
        print_line()
        print_line("to append to galen.toml:")
        print_line()
        print_line(advice.toml)
    if not found.judged:
        progress.print(
            "an alarm that was right counts as false here: look at them before you take it"
        )
