"""`galen prometheus`: history from a server, rules and dashboards for it, a look at its answers."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, ValidationError

from galen.commands.context import (
    ConfigOption,
    JsonOption,
    StateDirOption,
    invocation,
    parse_moment,
    print_json,
    print_line,
    progress,
    progress_bar,
    stop_on_signals,
)
from galen.commands.store import store_writer
from galen.errors import ConfigError, GalenError

if TYPE_CHECKING:
    from collectors.promapi import PrometheusClient
    from collectors.settings import PrometheusTarget
    from galen.config import Settings

prometheus = typer.Typer(
    help="Read history from Prometheus, make rules and dashboards for it, check how it answers."
)

TargetArgument = Annotated[
    str | None,
    typer.Argument(
        help="Name of a collectors.prometheus, or an address.", show_default="the only configured"
    ),
]

_SKEW_WARN_SECONDS = 2.0
_DEADLINE_SECONDS = 60.0


def register(app: typer.Typer) -> None:
    """Add these commands."""
    prometheus.command("backfill")(backfill)
    prometheus.command("check")(check)
    prometheus.command("write")(write)
    app.add_typer(prometheus, name="prometheus")


def write(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Where to write.")],
    config: ConfigOption = None,
) -> None:
    """Write scrape configuration, rules and Grafana dashboards as this configuration asks for them."""
    from galen.telemetry.files import write_telemetry_files

    try:
        written = write_telemetry_files(invocation(config, None).settings, folder)
    except OSError as error:
        raise GalenError(f"{error.filename}: cannot be written: {error.strerror}") from error
    for path in written:
        print_line(str(path))


def backfill(
    target: TargetArgument = None,
    since: Annotated[str, typer.Option(help="From when: 7d, ISO 8601 or epoch seconds.")] = "7d",
    until: Annotated[
        str | None, typer.Option(help="Until when.", show_default="the server's now")
    ] = None,
    step: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds between two samples of a series.")
    ] = 15.0,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Read history into the series store, so that detection knows what is usual here.

    What was read before is not read again: a run that was stopped goes on where it was.
    """
    from collectors.backfill import Backfill, Checkpoint
    from collectors.contract import CollectorError
    from collectors.prometheus import default_queries, own_queries
    from collectors.store.contract import StoreError

    stop = stop_on_signals()
    call = invocation(config, state_dir)
    chosen = prometheus_target(call.settings, target)
    queries = own_queries(chosen)
    with ExitStack() as stack:
        client = prometheus_client(chosen)
        stack.callback(client.close)
        store = stack.enter_context(store_writer(call.paths))
        asked = queries or default_queries()
        run = Backfill(
            client,
            asked,
            exported=not queries,
            write=store.write,
            checkpoint=Checkpoint(
                call.paths.backfill,
                [client.place, f"{step:g}", *(f"{one.signal} {one.promql}" for one in asked)],
            ),
            step_seconds=step,
            lookback_seconds=chosen.max_age_seconds,
        )
        try:
            skew = client.clock_skew_seconds()
            now = time.time()
            _tell_skew(skew)
            start = parse_moment(since, name="--since", now=now)
            # Times in there are the server's: so is the end of them.
            end = now + skew if until is None else parse_moment(until, name="--until", now=now)
            if start >= end:
                raise ConfigError("--since is not before --until", fix="Swap them.")
            _tell_retention(call.settings, now - start)
            with progress_bar("reading history") as told:
                done = run.run(start, end, progress=told, stop=stop)
        except CollectorError as error:
            raise GalenError(str(error), fix=error.fix) from error
        except StoreError as error:
            raise GalenError(str(error)) from error
    if done.resumed_from_seconds is not None:
        progress.print("went on where an earlier run had come to")
    for note in done.notes:
        progress.print(f"incomplete: {note}", markup=False)
    progress.print(f"stored {done.samples} samples", markup=False)
    raise typer.Exit(1 if done.notes or stop.is_set() else 0)


class _Checked(BaseModel):
    place: str
    clock_skew_seconds: float
    exported_series: int
    signals: dict[str, int]
    """Entities by canonical signal."""
    missing: list[str]
    """Why answers were incomplete, and queries that were refused."""
    seconds: float


def check(
    target: TargetArgument = None, json: JsonOption = False, config: ConfigOption = None
) -> None:
    """Ask everything once: which signals are there, how far the clock is off, what is missing.

    Exit status 1 when there is no signal, an answer was incomplete, or the clocks differ.
    """
    from collections import Counter

    from collectors.contract import CollectorError
    from collectors.fleet_reader import FleetReader
    from collectors.promapi import Matrix
    from collectors.prometheus import default_queries, own_queries

    chosen = prometheus_target(invocation(config, None).settings, target)
    client = prometheus_client(chosen)
    queries = own_queries(chosen)
    reader = FleetReader(chosen.name, queries or default_queries(), exported=not queries)
    exported = 0

    def fetch(promql: str) -> Matrix:
        nonlocal exported
        found = client.query(promql, lookback_seconds=chosen.max_age_seconds)
        exported += sum("galen_rank" not in one.labels for one in found)
        return [(one.labels, [(one.time_seconds, one.value)]) for one in found]

    started = time.monotonic()
    try:
        skew = client.clock_skew_seconds()
        samples = reader.read(fetch)
    except CollectorError as error:
        raise GalenError(str(error), fix=error.fix) from error
    finally:
        client.close()
    found = _Checked(
        place=client.place,
        clock_skew_seconds=round(skew, 3),
        exported_series=exported,
        signals=dict(sorted(Counter(sample.signal for sample in samples).items())),
        missing=[*client.take_warnings(), *reader.notes()],
        seconds=round(time.monotonic() - started, 3),
    )
    if json:
        print_json(found)
    else:
        for signal, entities in found.signals.items():
            print_line(f"{signal:44} {entities}")
        _tell_skew(skew)
        for reason in found.missing:
            progress.print(f"incomplete: {reason}", markup=False)
        progress.print(f"{len(found.signals)} signals in {found.seconds:.2f} s", markup=False)
    well = found.signals and not found.missing and abs(skew) <= _SKEW_WARN_SECONDS
    raise typer.Exit(0 if well else 1)


def prometheus_target(settings: Settings, given: str | None) -> PrometheusTarget:
    """Return the configured server of a name, the one of an address, or the only configured one.

    Raises:
        ConfigError: when it is none of these.
    """
    from collectors.settings import PrometheusTarget

    configured = {target.name: target for target in settings.collectors.prometheus}
    if given is None:
        if len(configured) == 1:
            return next(iter(configured.values()))
        raise ConfigError(
            f"{len(configured)} Prometheus servers are configured: which one?",
            fix="Give its name, or an address such as http://prometheus:9090.",
        )
    if given in configured:
        return configured[given]
    try:
        return PrometheusTarget(name="given", url=given)
    except ValidationError as error:
        raise ConfigError(
            "this is neither the name of a collectors.prometheus nor an address",
            fix=f"Give one of {', '.join(configured) or 'none'}, or http://prometheus:9090.",
        ) from error


def prometheus_client(target: PrometheusTarget) -> PrometheusClient:
    """Return a client that is patient enough for range queries."""
    from collectors.promapi import PrometheusClient

    deadline = max(target.deadline_seconds, _DEADLINE_SECONDS)
    return PrometheusClient(target.url, access=target, deadline_seconds=deadline)


def _tell_skew(skew: float) -> None:
    if abs(skew) > _SKEW_WARN_SECONDS:
        progress.print(
            f"the server's clock is {skew:+.1f} s from ours: its history is dated by it; "
            "synchronise both (chrony or systemd-timesyncd)"
        )


def _tell_retention(settings: Settings, seconds: float) -> None:
    keeps = settings.collectors.retention_hours
    if seconds > keeps * 3600:
        progress.print(
            f"`galen watch` drops what is older than {keeps:g} hours: raise "
            "collectors.retention_hours to keep all of it",
            markup=False,
        )
