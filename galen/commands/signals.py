"""`galen signals`: the catalogue of canonical signals."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from galen.commands.context import JsonOption, print_json, print_line, progress
from galen.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(signals)


class _Signal(BaseModel):
    signal: str
    unit: str
    layer: str
    kind: str
    bad_direction: str
    description: str
    deadband: float
    low: float | None
    high: float | None
    limit_source: str
    names: dict[str, list[str]]
    dcgm_fields: list[int]
    nvml: list[str]


class _Signals(BaseModel):
    signals: list[_Signal]


def signals(
    layer: Annotated[
        str | None, typer.Option(help="Only this layer: gpu, host, engine, service, ...")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page docs/signals.md.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the signals: unit, layer, kind, bad direction, limits, and their names in each exporter."""
    from collectors.signals import Layer, catalogue
    from collectors.signals_page import signals_page

    if markdown:
        print_line(signals_page().rstrip("\n"))
        return
    if layer is not None and layer not in set(Layer):
        raise ConfigError(f"there is no layer {layer!r}", fix=f"one of {', '.join(Layer)}")
    chosen = [one for one in catalogue().values() if layer in {None, one.layer}]
    if json:
        print_json(_Signals(signals=[_Signal(
            signal=one.name, unit=one.unit, layer=one.layer, kind=one.kind,
            bad_direction=one.bad_direction, description=one.description, deadband=one.deadband,
            low=one.low, high=one.high, limit_source=one.limit_source,
            names={source: list(names) for source, names in one.names.items()},
            dcgm_fields=list(one.dcgm_fields), nvml=list(one.nvml),
        ) for one in chosen]))  # fmt: skip
        return
    table = Table("signal", "unit", "layer", "bad", "known to", box=None)
    for one in chosen:
        known = ", ".join([*one.names, *(["nvml"] if one.nvml else [])])
        table.add_row(*map(Text, (one.name, one.unit, one.layer, one.bad_direction, known)))
    Console().print(table)
    progress.print(f"{len(chosen)} signals; docs/signals.md has their names in each exporter")
