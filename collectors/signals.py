"""The signal catalogue: the vocabulary that every part of Galen shares, read from ``signals.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import resources
from types import MappingProxyType


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


def parse_catalogue(text: str) -> Mapping[str, Signal]:
    """Read a catalogue from TOML.

    Raises:
        CatalogueError: naming the signal and what is wrong with it.
    """
    catalogue: dict[str, Signal] = {}
    for name, row in tomllib.loads(text).items():
        try:
            fields = dict(row)
            names = {source: tuple(given) for source, given in fields.pop("names", {}).items()}
            catalogue[name] = Signal(
                name=name,
                layer=Layer(fields.pop("layer")),
                kind=Kind(fields.pop("kind")),
                bad_direction=Bad(fields.pop("bad_direction")),
                names=MappingProxyType(names),
                **fields,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CatalogueError(f"signals.toml [{name}]: {error}") from error
    return MappingProxyType(catalogue)


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
