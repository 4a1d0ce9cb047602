"""`galen signals`: the catalogue of canonical signals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel

from galen.commands.context import JsonOption, print_json, print_line, progress
from galen.errors import ConfigError

if TYPE_CHECKING:
    from collectors.signals import Signal


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
    rows = [
        (one.name, one.layer, one.unit, f"bad {one.bad_direction}", ", ".join(_known_to(one)))
        for one in sorted(chosen, key=lambda one: (list(Layer).index(one.layer), one.name))
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    for row in rows:
        print_line("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)))
    progress.print(f"{len(chosen)} signals; docs/signals.md has their names in each exporter")


def _known_to(signal: Signal) -> list[str]:
    return [*signal.names, *(["nvml"] if signal.nvml else [])]
