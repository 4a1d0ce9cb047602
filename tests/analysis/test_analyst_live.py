"""The analyst with the detection that it really uses, on samples of a service that is well or ill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.analyst import Analyst
from analysis.findings import Verdict
from analysis.history import History
from analysis.incident_changes import ChangeKind, IncidentChange
from analysis.journal import Journal
from analysis.settings import AnalysisSettings
from collectors.contract import Sample, SeriesKey
from collectors.signals import Kind, catalogue

Scenarios = Mapping[str, Callable[[], Any]]

_STEADY = frozenset({"bool", "state", "level", "event", "bitmask", "code", "count"})


class Bench:
    """Feeds an analyst with noisy samples of a world, a second a tick."""

    def __init__(self, folder: Path, normal: Mapping[str, Mapping[str, tuple[float, ...]]]) -> None:
        self.rng = np.random.default_rng(5)
        self.normal = normal
        self.now = 1_700_000_000.0
        self.changes: list[tuple[float, IncidentChange]] = []
        self.analyst = Analyst(
            AnalysisSettings(), Journal(folder / "journal.sqlite"), History(capacity_ticks=400)
        )

    def play(self, world: Any, ticks: int) -> list[IncidentChange]:
        told: list[IncidentChange] = []
        for _ in range(ticks):
            found = self.analyst.tick(self.now, self._samples(world))
            told += found.changes
            self.changes += [(self.now, change) for change in found.changes]
            self.now += 1.0
        return told

    def _samples(self, world: Any) -> list[Sample]:
        samples = []
        for entity, signals in self.normal.items():
            for signal, (middle, low, high) in signals.items():
                given = world.values.get(SeriesKey(entity, signal), middle)
                if given is None:
                    continue
                known = catalogue()[signal]
                value = float(given)
                if known.unit not in _STEADY and known.kind is not Kind.EVENT:
                    value += float(self.rng.normal()) * (high - low) / 12
                    value = max(value, 0.0)
                samples.append(Sample(self.now, entity, signal, value))
        return samples


@pytest.fixture
def bench(tmp_path: Path, normal: Mapping[str, Mapping[str, tuple[float, ...]]]) -> Bench:
    return Bench(tmp_path, normal)


def test_a_quiet_service_is_left_alone(bench: Bench, world: Any) -> None:
    assert bench.play(world, 180) == []


@pytest.mark.parametrize(
    "cause",
    [
        "engine_hang",
        "engine_crash",
        "traffic_surge",
        "client_errors",
        "gpu_thermal_throttle",
        "gpu_xid_fatal",
        "gpu_reset_required",
        "gpu_gone",
        "gpu_hung",
        "gpu_driver_hang",
        "gpu_driver_unusable",
        "gpu_driver_mismatch",
        "gpu_memory_unrepairable",
        "collector_down",
    ],
)
def test_a_fault_is_found_named_and_over(
    cause: str, bench: Bench, world: Any, scenarios: Scenarios
) -> None:
    assert bench.play(world, 110) == []
    start = bench.now
    bench.play(scenarios[cause](), 20)
    assert bench.changes, "nothing was told"
    at, first = bench.changes[0]
    assert first.kind is ChangeKind.OPENED
    assert at - start <= 12
    last = bench.changes[-1][1]
    assert last.data["cause"] == cause
    bench.play(world, 60)
    assert bench.changes[-1][1].kind is ChangeKind.RESOLVED
    assert len({change.incident.id for _, change in bench.changes}) == 1


def test_a_planned_restart_opens_nothing(bench: Bench, world: Any, scenarios: Scenarios) -> None:
    bench.play(world, 110)
    bench.play(scenarios["planned_restart"](), 6)
    told = bench.play(world, 40)
    faults = [each for each in told if each.incident.verdict is Verdict.FAULT]
    assert faults == []
