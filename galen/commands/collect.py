"""`galen collect`: one collection from one source."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from galen.commands.context import JsonOption, print_json, progress
from galen.errors import GalenError


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(collect)


class _Sample(BaseModel):
    signal: str
    entity: str
    value: float
    unit: str
    labels: dict[str, str]


class _Collected(BaseModel):
    samples: list[_Sample]
    unrecognised: list[str]
    notes: list[str]
    seconds: float


def collect(
    source: Annotated[
        str,
        typer.Argument(
            help="A URL, a file of exposition text, nvml, xid, host, or prometheus:QUERY."
        ),
    ],
    prometheus_url: Annotated[
        str, typer.Option(help="Where prometheus:QUERY asks.")
    ] = "http://127.0.0.1:9090",
    deadline_seconds: Annotated[
        float, typer.Option("--deadline", min=0.1, help="The longest that the source may take.")
    ] = 10.0,
    json: JsonOption = False,
) -> None:
    """Collect once: canonical samples, what was not recognised, and how long it took."""
    from collectors.contract import CollectorError
    from collectors.sources import collect_source

    try:
        found = collect_source(
            source, prometheus_url=prometheus_url, deadline_seconds=deadline_seconds
        )
    except CollectorError as error:
        raise GalenError(_named(source, error), fix=error.fix) from error
    collected = _Collected(
        samples=[
            _Sample(
                signal=one.signal, entity=one.entity, value=one.value, unit=one.unit,
                labels=dict(one.labels),
            )
            for one in found.samples
        ],
        unrecognised=list(found.unrecognised),
        notes=list(found.notes),
        seconds=round(found.seconds, 4),
    )  # fmt: skip
    if json:
        print_json(collected)
    else:
        _print(collected)
    raise typer.Exit(0 if collected.samples else 1)


def _named(source: str, error: Exception) -> str:
    # A URL is named by the error itself, without what is secret in it.
    return str(error) if "://" in source else f"{source}: {error}"


def _print(collected: _Collected) -> None:
    table = Table("entity", "signal", "value", "unit", box=None)
    for one in sorted(collected.samples, key=lambda one: (one.entity, one.signal)):
        table.add_row(*map(Text, (one.entity, one.signal, f"{one.value:g}", one.unit)))
    Console().print(table)
    progress.print(
        f"{len(collected.samples)} samples in {collected.seconds:.3f} s; "
        f"{len(collected.unrecognised)} names not recognised (--json lists them)"
    )
    for note in collected.notes:
        progress.print(f"note: {note}", markup=False)
