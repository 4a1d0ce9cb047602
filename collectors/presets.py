"""The exporters that Galen knows: where they listen and how they are recognised; ``presets.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

from collectors.signals import catalogue


class PresetError(ValueError):
    """The table of presets has a fault; the message names the preset."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One kind of exporter."""

    name: str
    title: str
    port: int
    detect: tuple[str, ...]
    """It is there when a metric's name begins with one of these."""
    names: tuple[str, ...]
    """Whose names of the catalogue apply to it, in order."""
    path: str = "/metrics"


def parse_presets(text: str) -> Mapping[str, Preset]:
    """Read presets from TOML.

    Raises:
        PresetError: naming the preset and what is wrong with it.
    """
    presets: dict[str, Preset] = {}
    known = {source for signal in catalogue().values() for source in signal.names}
    for name, row in tomllib.loads(text).items():
        fields = dict(row)
        try:
            detect, names = tuple(fields.pop("detect")), tuple(fields.pop("names"))
            presets[name] = Preset(name=name, detect=detect, names=names, **fields)
        except (KeyError, TypeError) as error:
            raise PresetError(f"presets.toml [{name}]: {error}") from error
        unknown = [source for source in names if source not in known]
        if unknown:
            raise PresetError(f"presets.toml [{name}]: the catalogue has no names of {unknown}")
    return MappingProxyType(presets)


@cache
def presets() -> Mapping[str, Preset]:
    """Return the bundled presets, read once."""
    return parse_presets(resources.files("collectors").joinpath("presets.toml").read_text("utf-8"))


def detect(names: Collection[str]) -> Sequence[str]:
    """Return the presets that a target's metrics belong to; Triton with a vLLM inside is both."""
    return [
        preset.name
        for preset in presets().values()
        if any(name.startswith(preset.detect) for name in names)
    ]


def sources_of(kinds: Collection[str]) -> Sequence[str]:
    """Return whose names of the catalogue apply to a target of these kinds; without a kind all do."""
    if not kinds:
        everyone = (source for signal in catalogue().values() for source in signal.names)
        return list(dict.fromkeys(everyone))
    chosen = [source for kind in kinds for source in presets()[kind].names]
    return list(dict.fromkeys(chosen))
