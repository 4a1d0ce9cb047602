"""What detection knows of a series before it has seen it: its signal's family, as arrays.

Deviations are measured in one of two spaces. Durations, rates and counts act by multiplication, so
they are compared as ``asinh(value / knee)``, which is linear below the knee and logarithmic above.
All others are compared as they are. The sensitivity of each family is in ``profiles.toml``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray
from analysis.detection.settings import SignalOverride
from collectors.contract import SeriesKey
from collectors.signals import Bad, Kind, Layer, Signal, catalogue

_MULTIPLICATIVE_UNITS = frozenset(
    {
        "seconds",
        "requests",
        "requests/second",
        "tokens/second",
        "1/second",
        "bytes/second",
        "tokens",
    }
)
_UNKNOWN_DEADBAND = 1e-9
PEERS: Mapping[str, int] = MappingProxyType({"never": 0, "always": 1, "equal_load": 2})
"""How ``peers`` is told in the column of that name."""
_COUNTING_SUFFIXES = ("_total", "_count", "_sum", "_bucket")
_SERVICE_PREFIXES = ("llm_", "engine_", "dependency_")


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How large and how long a deviation has to be before it can matter."""

    family: str
    log_factor: float
    relative: float
    deadbands: float
    minimum_values: int
    minimum_seconds: float
    leak: bool = False
    drop: bool = False
    least: float | None = None
    """The least deviation that can matter, in the unit of the signal; else ``deadbands`` say."""
    windowed: bool = False
    depletes: bool = False
    """It is a resource that runs out at its physical limit."""
    capacity: str | None = None
    """The signal of the same entity that says the limit, where the catalogue has none."""
    peers: Literal["never", "always", "equal_load"] = "never"
    """Whether siblings show the same, or do so while they are equally busy."""


@cache
def _tables() -> tuple[Mapping[str, Mapping[str, float]], Mapping[str, Mapping[str, object]]]:
    text = resources.files("analysis.detection").joinpath("profiles.toml").read_text("utf-8")
    parsed = tomllib.loads(text)
    return MappingProxyType(parsed["families"]), MappingProxyType(parsed["signals"])


def sensitivity_of(signal: str) -> Sensitivity:
    """Return the sensitivity of a signal; one that is listed nowhere has that of its layer."""
    families, signals = _tables()
    own = dict(signals.get(signal, {}))
    known = catalogue().get(signal)
    family = str(own.pop("family", "unknown" if known is None else "resource"))
    return Sensitivity(**{"family": family, **families[family], **own})  # type: ignore[arg-type]


def listed_signals() -> frozenset[str]:
    """Return the signals that ``profiles.toml`` names."""
    return frozenset(_tables()[1])


def is_multiplicative(signal: Signal) -> bool:
    """Say whether deviations of a signal are compared as factors."""
    return signal.unit in _MULTIPLICATIVE_UNITS and signal.deadband > 0


class SeriesProfiles:
    """The profile of every series as arrays ``[series]``."""

    def __init__(self, overrides: Sequence[SignalOverride] = ()) -> None:
        """Start without series.

        Args:
            overrides: of the settings; of several that match a series the last one wins.
        """
        self._overrides = tuple(overrides)
        self._columns = Columns(
            multiplicative=False,
            statistical=True,
            counter=False,
            event=False,
            conditional=False,
            follows_load=False,
            leak=False,
            drop=False,
            depletes=False,
            peers=0,
            moves=True,
            shifts=True,
            bad_up=True,
            bad_down=True,
            deadband=_UNKNOWN_DEADBAND,
            knee=1.0,
            least=0.0,
            log_floor=0.0,
            relative=0.0,
            minimum_values=3,
            minimum_seconds=3.0,
            raised=True,
            lowest=-np.inf,
            highest=np.inf,
        )
        self._keys: list[SeriesKey] = []
        self._note_factors()

    @property
    def keys(self) -> Sequence[SeriesKey]:
        """The series in column order."""
        return self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Look up series that are new."""
        start = len(self._keys)
        self._keys.extend(keys)
        self._columns.grow(len(keys))
        by_signal: dict[str, list[int]] = {}
        for column, key in enumerate(keys, start=start):
            by_signal.setdefault(key.signal, []).append(column)
        for signal, columns in by_signal.items():
            self._describe(np.array(columns), signal)
        for override in self._overrides:
            for column, key in enumerate(keys, start=start):
                if override.covers(key.entity, key.signal):
                    self._override(column, override)
        self._note_factors()

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        self._columns.keep(kept)
        self._note_factors()
        self._keys = [key for key, stays in zip(self._keys, kept, strict=True) if stays]

    def _note_factors(self) -> None:
        """Find the series that are compared as factors: only for them there is something to compute."""
        multiplicative = self._columns["multiplicative"]
        self._factors: NDArray[np.int64] | slice = np.flatnonzero(multiplicative)
        if len(multiplicative) == 1 and multiplicative[0]:
            self._factors = slice(None)
        self._knees = self._columns["knee"][self._factors]

    def forward(self, values: FloatArray) -> FloatArray:
        """Take values ``[series]`` into the space in which deviations are measured.

        The profile of one series takes any number of its values.
        """
        factors, result = self._factors, np.array(values, dtype=float)
        result[factors] = np.arcsinh(result[factors] / self._knees)
        return result

    def inverse(self, positions: FloatArray) -> FloatArray:
        """Bring positions back into the unit of the signal."""
        factors, result = self._factors, np.array(positions, dtype=float)
        result[factors] = np.sinh(np.clip(result[factors], -60.0, 60.0)) * self._knees
        return result

    def floor(self, level: FloatArray) -> FloatArray:
        """Return the least threshold of each series around a level, in the measuring space."""
        linear = np.maximum(self._columns["least"], self._columns["relative"] * np.abs(level))
        return np.where(self._columns["multiplicative"], self._columns["log_floor"], linear)

    def _override(self, column: int, own: SignalOverride) -> None:
        columns = self._columns
        columns["raised"][column] = own.enabled
        if own.least is not None:
            columns["least"][column] = own.least
        if own.minimum_values is not None:
            columns["minimum_values"][column] = own.minimum_values
        if own.minimum_seconds is not None:
            columns["minimum_seconds"][column] = own.minimum_seconds
        if own.bad_direction is not None:
            columns["bad_up"][column] = own.bad_direction in {"up", "both"}
            columns["bad_down"][column] = own.bad_direction in {"down", "both"}

    def _describe(self, column: NDArray[np.int64], name: str) -> None:
        """Fill the columns of the series of one signal."""
        columns = self._columns
        own = sensitivity_of(name)
        columns["relative"][column] = own.relative
        columns["log_floor"][column] = np.log(own.log_factor)
        columns["minimum_values"][column] = own.minimum_values
        columns["minimum_seconds"][column] = own.minimum_seconds
        columns["follows_load"][column] = own.family in {"load", "ambient"}
        columns["shifts"][column] = own.family in {"load", "unknown"}
        columns["leak"][column] = own.leak
        columns["drop"][column] = own.drop
        columns["depletes"][column] = own.depletes
        columns["peers"][column] = PEERS[own.peers]
        signal = catalogue().get(name)
        if signal is None:
            columns["least"][column] = _UNKNOWN_DEADBAND
            # What only counts stands still while nothing happens.
            columns["moves"][column] = not name.endswith(_COUNTING_SUFFIXES)
            return
        columns["deadband"][column] = max(signal.deadband, _UNKNOWN_DEADBAND)
        least = own.deadbands * signal.deadband if own.least is None else own.least
        columns["least"][column] = least
        # Below a quarter of the least deviation that matters, a factor says nothing.
        columns["knee"][column] = max(min(signal.deadband, 0.25 * least), _UNKNOWN_DEADBAND)
        columns["multiplicative"][column] = is_multiplicative(signal)
        columns["counter"][column] = signal.kind is Kind.COUNTER
        columns["event"][column] = signal.kind is Kind.EVENT
        columns["statistical"][column] = signal.kind not in {Kind.EVENT, Kind.STATE}
        columns["bad_up"][column] = signal.bad_direction in {Bad.UP, Bad.BOTH}
        columns["bad_down"][column] = signal.bad_direction in {Bad.DOWN, Bad.BOTH}
        by_kind = signal.kind in {Kind.HISTOGRAM, Kind.RATIO} and name.startswith(_SERVICE_PREFIXES)
        columns["conditional"][column] = own.windowed or by_kind or signal.kind is Kind.EVENT
        # Without traffic all that a service counts stands still, and without use all that fills up.
        may_rest = name.startswith(_SERVICE_PREFIXES) or signal.layer is Layer.TRAFFIC
        may_rest |= own.family == "resource"
        columns["moves"][column] = signal.kind in {Kind.GAUGE, Kind.RATE} and not may_rest
        columns["lowest"][column] = -np.inf if signal.low is None else signal.low
        columns["highest"][column] = np.inf if signal.high is None else signal.high
