"""A made-up fleet: hosts of eight GPUs with a service each, as their exporters describe them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from analysis.detection.limits import bundled_limits
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.seasonal_fit import DAY_SECONDS, SeasonalShape
from collectors.contract import Sample, SeriesKey
from collectors.entities import top_of
from collectors.signals import Kind, catalogue

START = 1_800_000_000.0
GPUS = 8
_OF_HOST, _OF_GPU, _OF_SERVICE = 30, 24, 40
_PREFIXES = {"host": ("host_",), "gpu": ("gpu_",), "service": ("llm_", "engine_", "health_")}
_USUAL_BY_UNIT = {
    "ratio": 0.4, "percent": 40.0, "seconds": 0.2, "bytes": 4e9, "celsius": 60.0, "watts": 300.0,
    "mhz": 1500.0,
}  # fmt: skip
_DEVIATING = 0.0005
"""Share of the values that are far out, so that the alert policy has something to do."""


def keys_of(count: int) -> list[SeriesKey]:
    """Return so many series, host by host."""
    return list(itertools.islice(_endless(), count))


def _endless() -> Iterator[SeriesKey]:
    signals = {
        kind: [name for name in catalogue() if name.startswith(prefixes)]
        for kind, prefixes in _PREFIXES.items()
    }
    for number in itertools.count():
        host = f"host/box{number}"
        yield from (SeriesKey(host, name) for name in signals["host"][:_OF_HOST])
        for gpu in range(GPUS):
            entity = f"{host}/gpu/{gpu}"
            yield from (SeriesKey(entity, name) for name in signals["gpu"][:_OF_GPU])
        service = f"service/llm{number}"
        yield from (SeriesKey(service, name) for name in signals["service"][:_OF_SERVICE])
        for name in ("scrape_success", "scrape_duration_seconds"):
            yield SeriesKey(f"collector/box{number}", name)


class Fleet:
    """Values of all series, one row a tick: levels with noise and a day, and now and then a fault."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        self.keys = keys_of(count)
        self._random = np.random.default_rng(seed)
        self._usual = np.array([_usual(key.signal) for key in self.keys])
        kinds = [catalogue()[key.signal].kind for key in self.keys]
        rests = [kind in {Kind.EVENT, Kind.STATE, Kind.COUNTER} for kind in kinds]
        self._moves = ~np.array(rests) & np.array(
            [key.signal not in bundled_limits() for key in self.keys]
        )
        # All of a host are busy at the same time, as siblings are.
        names = dict.fromkeys(top_of(key.entity) for key in self.keys)
        tops = {top: number for number, top in enumerate(names)}
        phases = self._random.uniform(0, 0.5, len(tops))
        self._phase = phases[[tops[top_of(key.entity)] for key in self.keys]]

    def row(self, time_seconds: float) -> NDArray[np.float64]:
        """Return the values ``[series]`` of one tick."""
        count = len(self.keys)
        day = np.sin(2 * np.pi * (time_seconds / DAY_SECONDS + self._phase))
        noise = self._random.normal(0, 0.03, count)
        far = np.where(self._random.random(count) < _DEVIATING, 3.0, 1.0)
        return np.where(self._moves, self._usual * (1 + 0.3 * day + noise) * far, self._usual)

    def samples(self, time_seconds: float) -> list[Sample]:
        """Return the same as samples."""
        values = self.row(time_seconds).tolist()
        return [
            Sample(time_seconds, key.entity, key.signal, value)
            for key, value in zip(self.keys, values, strict=True)
        ]

    def shapes(self, phases: int = 288) -> dict[SeriesKey, SeasonalShape]:
        """Return the daily shape of every series that moves."""
        times = (np.arange(phases) + 0.5) / phases
        profile = SeriesProfiles()
        profile.grow(self.keys)
        rows = []
        for time in times:
            day = np.sin(2 * np.pi * (time + self._phase))
            rows.append(profile.forward(self._usual * (1 + 0.3 * day)).astype(np.float32))
        positions = np.array(rows)
        offsets = np.ascontiguousarray((positions - np.median(positions, axis=0)).T)
        return {
            key: SeasonalShape(DAY_SECONDS, offsets[column])
            for column, key in enumerate(self.keys)
            if self._moves[column]
        }


def _usual(name: str) -> float:
    signal = catalogue()[name]
    rule = bundled_limits().get(name)
    if signal.kind in {Kind.EVENT, Kind.STATE, Kind.COUNTER} or rule is not None:
        return 1.0 if rule is not None and rule.below is not None else 0.0
    usual = _USUAL_BY_UNIT.get(signal.unit, 50.0)
    return min(usual, 0.6 * signal.high) if signal.high is not None else usual
