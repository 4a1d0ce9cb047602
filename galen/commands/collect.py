"""`galen collect`: one collection from one source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from galen.commands.context import JsonOption, print_json, print_line, progress
from galen.errors import GalenError

_MOST_NAMES = 10
_LARGEST_WHOLE = 1e15


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
    kinds: list[str]
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
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token of Prometheus.", dir_okay=False)
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(help="Authorities to trust instead of the system's, PEM.", dir_okay=False),
    ] = None,
    deadline_seconds: Annotated[
        float, typer.Option("--deadline", min=0.1, help="The longest that the source may take.")
    ] = 10.0,
    json: JsonOption = False,
) -> None:
    """Collect once: canonical samples, what was not recognised, and how long it took."""
    from collectors.access import HttpAccess
    from collectors.contract import CollectorError
    from collectors.sources import collect_source

    try:
        found = collect_source(
            source,
            prometheus_url=prometheus_url,
            prometheus_access=HttpAccess(token_file=token_file, ca_file=ca_file),
            deadline_seconds=deadline_seconds,
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
        kinds=list(found.kinds),
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
    rows = [
        (one.entity, one.signal, _number(one.value), _unit(one))
        for one in sorted(collected.samples, key=lambda one: (one.entity, one.signal))
    ]
    # Plain text without a width: names must survive a narrow terminal and a pipe.
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for entity, signal, value, unit in rows:
        print_line(f"{entity:<{widths[0]}}  {signal:<{widths[1]}}  {value:>{widths[2]}}  {unit}")
    known = f" of {', '.join(collected.kinds)}" if collected.kinds else ""
    _tell(f"{len(rows)} samples{known} in {collected.seconds:.3f} s")
    if collected.unrecognised:
        some = ", ".join(collected.unrecognised[:_MOST_NAMES])
        more = len(collected.unrecognised) - _MOST_NAMES
        rest = f" and {more} more (--json lists them)" if more > 0 else ""
        _tell(f"not recognised: {some}{rest}")
    for note in collected.notes:
        _tell(f"note: {note}")


def _tell(text: str) -> None:
    progress.print(text, markup=False, soft_wrap=True)


def _number(value: float) -> str:
    whole = value.is_integer() and abs(value) < _LARGEST_WHOLE
    return f"{value:.0f}" if whole else f"{value:.6g}"


def _unit(one: _Sample) -> str:
    if "cumulative" in one.labels:
        return f"{one.unit} since its start"
    quantile = one.labels.get("quantile")
    if "window" in one.labels:
        return (
            f"{one.unit} (p{float(quantile) * 100:g} of its life)"
            if quantile
            else (f"{one.unit} (over its life)")
        )
    return one.unit
