"""`galen backtest`: live detection replayed over stored history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galen.commands.context import (
    ConfigOption,
    JsonOption,
    SinceOption,
    StateDirOption,
    UntilOption,
    invocation,
    parse_window,
    print_json,
    print_line,
    progress,
    progress_bar,
    show_moment,
)
from galen.errors import ConfigError, GalenError

if TYPE_CHECKING:
    from galen.replay import Findings

_MOST_ALARMS_SHOWN = 50


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(backtest)


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
        history = load_history(source or call.paths.series, *parse_window(since, until))
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
        f"{found.ticks} ticks of {found.series} series, {show_moment(found.start_seconds)} to "
        f"{show_moment(found.end_seconds)}: {len(found.alarms)} alarms"
    )
    for one in found.alarms[:_MOST_ALARMS_SHOWN]:
        print_line(
            f"  {show_moment(one.raised_seconds)}  for {one.last_seconds - one.raised_seconds:>5.0f} s  "
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
