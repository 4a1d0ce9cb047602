"""`galen store`, `galen agent` and `galen backtest`: what is kept, sent away and replayed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from pydantic import BaseModel
from rich.progress import Progress, TimeRemainingColumn

from galen.commands.context import (
    ConfigOption,
    JsonOption,
    StateDirOption,
    invocation,
    parse_moment,
    print_json,
    print_line,
    progress,
    stop_on_signals,
)
from galen.errors import ConfigError, GalenError

if TYPE_CHECKING:
    from collectors.store import keeper
    from collectors.store.sqlite import SqliteSeriesStore
    from galen.paths import StatePaths
    from galen.replay import Findings

_MOST_GAPS_SHOWN = 20
_MOST_ALARMS_SHOWN = 50
_OTHER_WAYS_IN = ("token", "token_variable", "username", "password", "password_file")

store = typer.Typer(help="Look into the series store, move samples out and in, and prune it.")

SinceOption = Annotated[
    str | None,
    typer.Option(help="From when: 24h, ISO 8601 or epoch seconds.", show_default="the first"),
]
UntilOption = Annotated[str | None, typer.Option(help="Until when.", show_default="the last")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    store.command("info")(store_info)
    store.command("export")(store_export)
    store.command("import")(store_import)
    store.command("prune")(store_prune)
    app.add_typer(store, name="store")
    app.command()(agent)
    app.command()(backtest)


class _Gap(BaseModel):
    start_seconds: float
    end_seconds: float


class _StoreInfo(BaseModel):
    path: str
    size_bytes: int
    series: int
    samples: int
    first_seconds: float | None
    last_seconds: float | None
    usual_step_seconds: float | None
    gaps: list[_Gap]


def store_info(
    json: JsonOption = False, config: ConfigOption = None, state_dir: StateDirOption = None
) -> None:
    """Say what the store holds: size, series, samples, time range and gaps."""
    from collectors.store.contract import StoreError
    from collectors.store.keeper import summarise
    from collectors.store.sqlite import SqliteSeriesReader

    path = invocation(config, state_dir).paths.series
    reader = SqliteSeriesReader(path)
    try:
        with progress_bar("reading") as told:
            found = summarise(reader, told)
    except StoreError as error:
        raise GalenError(str(error)) from error
    finally:
        reader.close()
    files = [path, Path(f"{path}-wal")]
    info = _StoreInfo(
        path=str(path),
        size_bytes=sum(file.stat().st_size for file in files if file.exists()),
        series=found.series,
        samples=found.samples,
        first_seconds=found.first_seconds,
        last_seconds=found.last_seconds,
        usual_step_seconds=found.usual_step_seconds,
        gaps=[_Gap(start_seconds=start, end_seconds=end) for start, end in found.gaps],
    )
    if json:
        print_json(info)
    else:
        _print_info(info)


def _print_info(info: _StoreInfo) -> None:
    print_line(f"file     {info.path}")
    print_line(f"size     {info.size_bytes / 1e6:.1f} MB")
    print_line(f"series   {info.series}")
    print_line(f"samples  {info.samples}")
    if info.first_seconds is None or info.last_seconds is None:
        return
    print_line(f"from     {_moment(info.first_seconds)}")
    print_line(f"to       {_moment(info.last_seconds)}")
    print_line(f"gaps     {len(info.gaps)}")
    for gap in info.gaps[-_MOST_GAPS_SHOWN:]:
        print_line(
            f"         {_moment(gap.start_seconds)} to {_moment(gap.end_seconds)}, "
            f"{gap.end_seconds - gap.start_seconds:.0f} s"
        )
    if len(info.gaps) > _MOST_GAPS_SHOWN:
        progress.print(f"the last {_MOST_GAPS_SHOWN} gaps are shown; --json lists all")


def store_export(
    out: Annotated[Path, typer.Option(help="File to write, .parquet or .csv.", dir_okay=False)],
    since: SinceOption = None,
    until: UntilOption = None,
    entity: Annotated[list[str] | None, typer.Option(help="Only this entity; repeatable.")] = None,
    signal: Annotated[list[str] | None, typer.Option(help="Only this signal; repeatable.")] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Write samples to a file; exit status 1 when there are none."""
    from collectors.store.contract import StoreError
    from collectors.store.keeper import export_samples
    from collectors.store.sqlite import SqliteSeriesReader
    from collectors.store.tables import TableError

    _check_suffix(out)
    start, end = _window(since, until)
    reader = SqliteSeriesReader(invocation(config, state_dir).paths.series)
    try:
        with progress_bar("exporting") as told:
            moved = export_samples(
                reader, out, start_seconds=start, end_seconds=end,
                entities=entity, signals=signal, progress=told,
            )  # fmt: skip
    except (StoreError, TableError) as error:
        raise GalenError(str(error)) from error
    finally:
        reader.close()
    progress.print(f"wrote {moved.samples} samples to {out}", markup=False)
    raise typer.Exit(0 if moved.samples else 1)


def store_import(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Write a file's samples to the store: columns time, entity, signal, value, in seconds and text.

    The whole file is checked first. A sample that the store has already at that time is replaced.
    """
    from collectors.store.contract import StoreError
    from collectors.store.keeper import import_samples
    from collectors.store.tables import TableError

    _check_suffix(file)
    with store_writer(invocation(config, state_dir).paths) as target:
        try:
            with progress_bar("importing") as told:
                moved = import_samples(target, file, told)
        except TableError as error:
            raise ConfigError(str(error)) from error
        except StoreError as error:
            raise GalenError(str(error)) from error
    progress.print(f"imported {moved.samples} samples", markup=False)
    if moved.left_out:
        progress.print(f"{moved.left_out} left out: their value is missing or not finite")
    raise typer.Exit(0 if moved.samples else 1)


def store_prune(
    older_than: Annotated[str, typer.Option(help="Age (24h, 7d) or moment; older samples go.")],
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Delete old samples. The file keeps its size; the space is used again by new samples."""
    from collectors.store.contract import StoreError
    from collectors.store.keeper import prune_in_steps

    before = parse_moment(older_than, name="--older-than")
    if not 0 <= before <= time.time():
        raise ConfigError(f"--older-than: {older_than!r} is not in the past", fix="Give 24h or 7d.")
    paths = invocation(config, state_dir).paths
    if not paths.series.exists():
        raise GalenError(
            f"there is no series store at {paths.series}",
            fix="Point --state-dir at the directory that `galen watch` uses.",
        )
    with store_writer(paths) as target:
        try:
            with progress_bar("pruning") as told:
                gone = prune_in_steps(target, before_seconds=before, progress=told)
        except StoreError as error:
            raise GalenError(str(error)) from error
    progress.print(f"deleted {gone} samples from before {_moment(before)}", markup=False)


@contextmanager
def store_writer(paths: StatePaths) -> Iterator[SqliteSeriesStore]:
    """Hold the writer's seat of the series store.

    Raises:
        GalenError: when a watch loop has it.
    """
    from collectors.store.contract import StoreError
    from collectors.store.sqlite import SqliteSeriesStore

    try:
        target = SqliteSeriesStore(paths.series)
    except StoreError as error:
        raise GalenError(
            str(error),
            fix="Stop `galen watch` (or `galen up`) for this state directory, run this, start it again.",
        ) from error
    try:
        yield target
    finally:
        target.close()


def _check_suffix(path: Path) -> None:
    if path.suffix not in {".parquet", ".csv"}:
        raise ConfigError(f"{path}: the kind is not known", fix="Name it .parquet or .csv.")


def _window(since: str | None, until: str | None) -> tuple[float, float]:
    now = time.time()
    start = float("-inf") if since is None else parse_moment(since, name="--since", now=now)
    end = float("inf") if until is None else parse_moment(until, name="--until", now=now)
    if start >= end:
        raise ConfigError("--since is not before --until", fix="Swap them, or leave --until out.")
    return start, end


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


@contextmanager
def progress_bar(what: str) -> Iterator[keeper.Progress]:
    """Show a bar on standard error while the block runs; nothing where that is no terminal."""
    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
    with Progress(*columns, console=progress, transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def agent(
    push: Annotated[
        str | None, typer.Option(help="Where to, such as http://prometheus:9090/api/v1/write.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token.", dir_okay=False)
    ] = None,
    interval: Annotated[
        float | None, typer.Option(min=1, max=3600, help="Seconds between two polls.")
    ] = None,
    retry_refused: Annotated[
        bool, typer.Option("--retry-refused", help="Send again what the server had refused.")
    ] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Poll this machine and push its samples by Prometheus remote write, through outages, until stopped.

    What cannot be sent waits in a bounded buffer under the state directory and survives restarts.
    """
    from collectors.access import AccessError, read_secret
    from collectors.agent import run_agent
    from collectors.spool import SpoolError

    stop = stop_on_signals()
    call = invocation(config, state_dir)
    given: dict[str, object] = {
        name: value
        for name, value in (("url", push), ("interval_seconds", interval))
        if value is not None
    }
    if token_file is not None:
        # Read once now, so that a wrong path is an error here and not in the log of every request.
        try:
            read_secret(token_file)
        except AccessError as error:
            raise ConfigError(f"--token-file: {error}") from error
        given |= {"token_file": token_file, **dict.fromkeys(_OTHER_WAYS_IN)}
    settings = call.settings.collectors.push.model_copy(update=given)
    if settings.url is None:
        raise ConfigError(
            "there is no address to push to",
            fix="Give --push http://prometheus:9090/api/v1/write, or set collectors.push.url.",
        )
    # Only the host: an address may hold a password.
    where = urlsplit(settings.url).hostname
    progress.print(f"pushing to {where} every {settings.interval_seconds:g} s", markup=False)
    try:
        left = run_agent(
            call.settings.collectors.model_copy(update={"push": settings}),
            state_dir=call.paths.state_dir,
            stop=stop,
            retry_refused=retry_refused,
        )
    except ValueError as error:
        raise ConfigError(f"--push: {error}") from error
    except AccessError as error:
        raise ConfigError(f"collectors.push: {error}") from error
    except SpoolError as error:
        raise GalenError(str(error)) from error
    progress.print(
        f"{left.waiting_samples} samples wait for the next start, {left.parked_samples} were "
        f"refused, {left.dropped_samples} were dropped"
    )


def backtest(
    source: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="CSV or Parquet file.", show_default="series store"
        ),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
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
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="HTML report to write.")] = None,
    json: JsonOption = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Replay live detection over stored history: what would have alarmed, and was it right?

    The code of the watch loop runs tick by tick and sees no later sample. Two controls are judged by
    the same measure: as many alarms at random, and an alarm for all the time. Exit status 1 when
    there was an alarm; with --labels when a fault was missed or an alarm was false.
    """
    from analysis.detection.backtest import backtest as replay_history
    from collectors.store.contract import StoreError
    from galen.replay import Findings, load_faults, load_history, render_html

    call = invocation(config, state_dir)
    faults = None if labels is None else load_faults(labels)
    try:
        history = load_history(source or call.paths.series, *_window(since, until))
        with progress_bar("replaying") as told:
            result = replay_history(
                history.frame,
                call.settings.analysis.detection,
                history.start_seconds,
                history.end_seconds,
                labels=faults,
                tick_times=history.tick_times,
                progress=told,
                warmup_seconds=warmup,
            )
    except StoreError as error:
        raise GalenError(str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error), fix="Choose another --since and --until.") from error
    found = Findings.of(result, source=str(source or call.paths.series), judged=faults is not None)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render_html(found), "utf-8")
        progress.print(f"wrote {out}", markup=False)
    if json:
        print_json(found)
    else:
        _print_findings(found)
    raise typer.Exit(0 if found.as_hoped else 1)


def _print_findings(found: Findings) -> None:
    print_line(
        f"{found.ticks} ticks of {found.series} series, {_moment(found.start_seconds)} to "
        f"{_moment(found.end_seconds)}: {len(found.alarms)} alarms"
    )
    for one in found.alarms[:_MOST_ALARMS_SHOWN]:
        print_line(
            f"  {_moment(one.raised_seconds)}  for {one.last_seconds - one.raised_seconds:>5.0f} s  "
            f"score {one.highest_score:>6.1f}  {one.entity} {one.signal}  "
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
    if not found.judged:
        progress.print("without --labels every alarm counts as false")
