"""The signal catalogue: the vocabulary that every part of Galen shares, read from ``signals.toml``."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from collectors.expressions import Expression, ExpressionError, parse_expression


class Layer(StrEnum):
    """Where in the stack a signal lives."""

    GPU = "gpu"
    HOST = "host"
    ENGINE = "engine"
    SERVICE = "service"
    APPLICATION = "application"
    TRAFFIC = "traffic"
    STORAGE = "storage"
    NETWORK = "network"
    CONFIG = "config"
    SECURITY = "security"
    MONITORING = "monitoring"


class Kind(StrEnum):
    """How a signal behaves."""

    GAUGE = "gauge"
    COUNTER = "counter"
    RATE = "rate"
    RATIO = "ratio"
    HISTOGRAM = "histogram"
    EVENT = "event"
    STATE = "state"


class Bad(StrEnum):
    """The direction in which a signal is bad."""

    UP = "up"
    DOWN = "down"
    BOTH = "both"
    NONE = "none"


class CatalogueError(ValueError):
    """The catalogue has a fault; the message names the signal and the field."""


DEFAULT_QUANTILE = 0.95
"""What a latency histogram is reduced to where the catalogue says nothing else."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One canonical signal. ``low`` and ``high`` are physically possible values in ``unit``."""

    name: str
    unit: str
    layer: Layer
    kind: Kind
    bad_direction: Bad
    description: str
    deadband: float
    low: float | None = None
    high: float | None = None
    limit_source: str = ""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Its names elsewhere, by exporter: ``{"dcgm": ("DCGM_FI_DEV_GPU_TEMP",), ...}``."""
    dcgm_fields: tuple[int, ...] = ()
    """The numbers of its fields in DCGM, whose names have changed."""
    nvml: tuple[str, ...] = ()
    """The calls of NVML that give it."""
    quantile: float = DEFAULT_QUANTILE
    """Which quantile of its histograms it is."""
    zero_is_absent: bool = False
    """Exporters give 0 where there is nothing to measure."""
    sticky: bool = False
    """Exporters repeat the last event for ever: it stands for a while after each change only."""


def parse_catalogue(text: str) -> Mapping[str, Signal]:
    """Read a catalogue from TOML.

    Raises:
        CatalogueError: naming the signal, the field and what is wrong with it.
    """
    try:
        rows = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"signals.toml: {error}") from error
    catalogue = {name: _signal(name, row) for name, row in rows.items()}
    _check_claims(catalogue)
    return MappingProxyType(catalogue)


_NAME = re.compile(r"[a-z][a-z0-9_]*")
_REQUIRED = ("unit", "layer", "kind", "bad_direction", "description", "deadband")
_ENUMS: Mapping[str, type[StrEnum]] = {"layer": Layer, "kind": Kind, "bad_direction": Bad}
_LISTS: Mapping[str, type] = {"dcgm_fields": int, "nvml": str}
_NUMBERS = ("deadband", "low", "high", "quantile")
_TEXTS = ("unit", "description", "limit_source")
_FLAGS = ("zero_is_absent", "sticky")
_FIELDS = {*_REQUIRED, *_LISTS, *_NUMBERS, *_TEXTS, *_FLAGS, "names"}


def _signal(name: str, row: Any) -> Signal:
    if not _NAME.fullmatch(name) or not isinstance(row, dict):
        raise _fault(name, "name", "a signal is a table named in lower case, digits and _")
    for unknown in sorted(row.keys() - _FIELDS):
        raise _fault(name, unknown, f"unknown; there are {', '.join(sorted(_FIELDS))}")
    for needed in _REQUIRED:
        if needed not in row:
            raise _fault(name, needed, "missing")
    values: dict[str, Any] = {}
    for key, value in row.items():
        values[key] = _value(name, key, value)
    signal = Signal(name=name, **values)
    _check_numbers(signal)
    return signal


def _value(name: str, key: str, value: Any) -> Any:
    if key in _ENUMS:
        try:
            return _ENUMS[key](value)
        except ValueError as error:
            allowed = ", ".join(_ENUMS[key])
            raise _fault(name, key, f"{value!r} is none of {allowed}") from error
    if key == "names":
        return _names(name, value)
    if key in _LISTS:
        wanted = _LISTS[key]
        if not isinstance(value, list) or not all(type(one) is wanted for one in value):
            raise _fault(name, key, f"must be a list of {wanted.__name__}")
        return tuple(value)
    if key in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise _fault(name, key, f"{value!r} is not a number")
    if key in _TEXTS and not (isinstance(value, str) and value.strip()):
        raise _fault(name, key, f"{value!r} is not a text")
    if key in _FLAGS and not isinstance(value, bool):
        raise _fault(name, key, f"{value!r} is not true or false")
    return value


def _names(name: str, given: Any) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(given, dict):
        raise _fault(name, "names", "must be a table of lists, by exporter")
    for source, expressions in given.items():
        place = f"names.{source}"
        if not isinstance(expressions, list) or not expressions:
            raise _fault(name, place, "must be a list of names")
        for text in expressions:
            if not isinstance(text, str):
                raise _fault(name, place, f"{text!r} is not a text")
            try:
                parse_expression(text)
            except ExpressionError as error:
                raise _fault(name, place, str(error)) from error
    return MappingProxyType({source: tuple(texts) for source, texts in given.items()})


def _check_numbers(signal: Signal) -> None:
    if not signal.deadband > 0:
        raise _fault(signal.name, "deadband", "must be positive")
    if not 0 < signal.quantile < 1:
        raise _fault(signal.name, "quantile", "must lie between 0 and 1")
    limits = [limit for limit in (signal.low, signal.high) if limit is not None]
    if limits and not signal.limit_source:
        raise _fault(signal.name, "limit_source", "missing: who says that values beyond cannot be?")
    if not all(math.isfinite(limit) for limit in limits) or limits != sorted(set(limits)):
        raise _fault(signal.name, "low", f"must be finite and below high, got {limits}")
    if signal.kind is Kind.RATIO and limits != [0, 1]:
        raise _fault(signal.name, "kind", "a ratio has low = 0 and high = 1")


def _check_claims(catalogue: Mapping[str, Signal]) -> None:
    """Refuse two signals that read the same number of one exporter."""
    claims: dict[tuple[str, Expression, float], str] = {}
    for signal in catalogue.values():
        for source, texts in signal.names.items():
            for text in texts:
                expression = parse_expression(text)
                quantile = signal.quantile if signal.kind is Kind.HISTOGRAM else 0.0
                other = claims.setdefault((source, expression, quantile), signal.name)
                if other != signal.name or texts.count(text) > 1:
                    raise _fault(signal.name, f"names.{source}", f"{text!r} is taken by [{other}]")


def _fault(signal: str, key: str, what: str) -> CatalogueError:
    return CatalogueError(f"signals.toml [{signal}] {key}: {what}")


@cache
def catalogue() -> Mapping[str, Signal]:
    """Return the bundled catalogue, read once."""
    return parse_catalogue(
        resources.files("collectors").joinpath("signals.toml").read_text("utf-8")
    )


def unit_of(signal: str) -> str:
    """Return a signal's unit, or an empty string for one that the catalogue does not know."""
    known = catalogue().get(signal)
    return known.unit if known else ""
