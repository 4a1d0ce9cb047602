"""Six hours of a service and a simulated GPU, with three incidents, written into the real stores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.findings import (
    Anomaly,
    Direction,
    Evidence,
    Hypothesis,
    Incident,
    IncidentState,
    Severity,
    Verdict,
)
from analysis.journal import EventKind, Journal
from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesStore
from healing.actions import Action, ActionState, Mode
from healing.ledger import Ledger
from reporting.reports.build import build_report
from reporting.reports.model import Report

START = 1_763_600_400.0  # 2025-11-20 01:00:00 UTC
END = START + 6 * 3600.0
STEP = 10.0
SERVICE, GPU = "service/llm", "host/box1/gpu/0"
HANG, HOT, BUSY = START + 7200.0, START + 4.6 * 3600.0, START + 3.4 * 3600.0
SIMULATED = {"simulated": "true"}


@dataclass
class World:
    journal: Journal
    ledger: Ledger
    store: SqliteSeriesStore

    def report(self, since: float = START, until: float = END, **changes: Any) -> Report:
        fields: dict[str, Any] = {"clock": lambda: END + 5.0, **changes}
        return build_report(
            self.journal,
            self.ledger,
            self.store,
            since_seconds=since,
            until_seconds=until,
            **fields,
        )


def _during(now: float, start: float, seconds: float) -> bool:
    return start <= now < start + seconds


def _samples(index: int, now: float) -> Iterator[Sample]:
    daily = 1.0 + 0.35 * math.sin(2 * math.pi * (now - START) / (5 * 3600.0))
    shake = math.sin(index * 1.7) + math.sin(index * 0.37)
    hang, busy = _during(now, HANG, 60.0), _during(now, BUSY, 600.0)
    heat = max(0.0, min(1.0, (now - HOT) / 1500.0))
    rate = 8.0 * daily + 0.5 * shake + (14.0 if busy else 0.0)
    latency = 0.21 * daily + 0.012 * shake + (1.4 if busy else 0.0) + 0.35 * heat
    service = {
        "llm_requests_per_second": rate,
        "llm_request_latency_seconds": latency + (8.0 if hang else 0.0),
        "llm_error_ratio": 0.95 if hang else 0.0005,
        "llm_rejected_ratio": 0.18 if busy else 0.0,
        "llm_client_error_ratio": 0.004,
        "llm_cancelled_ratio": 0.25 if hang else 0.001,
        "llm_tokens_per_second": 0.0 if hang else 46.0 * rate,
        "llm_queue_depth": (34.0 if hang else 22.0 if busy else 1.0) + abs(shake),
        "engine_step_age_seconds": (now - HANG) if hang else 0.05 + 0.02 * abs(shake),
        "model_version_change": 1.0 if now == START + 3 * 3600.0 else 0.0,
    }
    for signal, value in service.items():
        yield Sample(now, SERVICE, signal, value, {"model": "demo"})
    load = 0.0 if hang else min(100.0, 9.0 * rate)
    gpu = {
        "gpu_utilization_percent": load,
        "gpu_memory_used_ratio": 0.61 + 0.01 * shake,
        "gpu_temperature_celsius": 38.0 + 0.3 * load + shake + 27.0 * heat,
        "gpu_power_usage_watts": 72.0 + 2.3 * load - 60.0 * (heat > 0.8),
        "gpu_throttle_thermal": float(heat > 0.8),
        "gpu_throttle_power": 0.0,
        "gpu_available": 1.0,
        "gpu_xid": 0.0,
        "gpu_ecc_uncorrectable_total": 0.0,
    }
    if not _during(now, START + 5.2 * 3600.0, 1260.0):
        for signal, value in gpu.items():
            yield Sample(now, GPU, signal, value, SIMULATED)
        yield Sample(now, "collector/simulated-gpu", "scrape_success", 1.0)
    yield Sample(now, "collector/service-llm", "scrape_success", 0.0 if hang else 1.0)


def _evidence(signal: str, statement: str, weight: float, **changes: Any) -> Evidence:
    fields: dict[str, Any] = {"entity": SERVICE, "direction": Direction.UP}
    return Evidence(signal=signal, statement=statement, weight=weight, **{**fields, **changes})


def _anomaly(signal: str, at: float, score: float, **changes: Any) -> Anomaly:
    fields: dict[str, Any] = {
        "entity": SERVICE,
        "time_seconds": at + 4.0,
        "onset_seconds": at,
        "direction": Direction.UP,
        "observed": 1.0,
    }
    return Anomaly(signal=signal, score=score, **{**fields, **changes})


def hang_incident() -> Incident:
    return Incident(
        id="inc-hang",
        state=IncidentState.RESOLVED,
        severity=Severity.CRITICAL,
        verdict=Verdict.FAULT,
        title="The engine makes no progress",
        entity=SERVICE,
        onset_seconds=HANG,
        opened_seconds=HANG + 4.0,
        updated_seconds=HANG + 75.0,
        resolved_seconds=HANG + 75.0,
        anomalies=(
            _anomaly("engine_step_age_seconds", HANG, 9.2, low=0.0, high=0.4),
            _anomaly("llm_request_latency_seconds", HANG, 4.1, low=0.12, high=0.42),
            _anomaly("llm_queue_depth", HANG, 3.0, low=0.0, high=5.0),
        ),
        hypotheses=(
            Hypothesis(
                rank=1,
                cause="engine_hang",
                title="The engine hangs",
                entity=SERVICE,
                confidence=0.94,
                log_odds=2.75,
                evidence=(
                    _evidence(
                        "engine_step_age_seconds",
                        "No engine step has finished for 9.6 s while 34 requests wait; normal is "
                        "below 0.4 s.",
                        2.4,
                    ),
                    _evidence(
                        "llm_request_latency_seconds",
                        "p95 latency rose to 8.2 s; normal is 0.12 to 0.42 s.",
                        0.9,
                    ),
                    _evidence("llm_queue_depth", "34 requests wait; normal is 0 to 5.", 0.7),
                ),
                against=(
                    _evidence(
                        "gpu_available",
                        "The GPU answers its driver, so the device itself is there.",
                        -0.4,
                        entity=GPU,
                        simulated=True,
                    ),
                ),
                action="engine_restart",
            ),
            Hypothesis(
                rank=2,
                cause="gpu_driver_hang",
                title="The GPU driver hangs",
                entity=GPU,
                confidence=0.04,
                log_odds=-3.1,
            ),
        ),
    )


def busy_incident() -> Incident:
    return Incident(
        id="inc-busy",
        state=IncidentState.RESOLVED,
        severity=Severity.WARNING,
        verdict=Verdict.NO_FAULT,
        title="More requests than usual",
        entity=SERVICE,
        onset_seconds=BUSY,
        opened_seconds=BUSY + 30.0,
        updated_seconds=BUSY + 660.0,
        resolved_seconds=BUSY + 660.0,
        anomalies=(
            _anomaly("llm_requests_per_second", BUSY, 3.4, low=4.0, high=13.0),
            _anomaly("llm_request_latency_seconds", BUSY, 2.2, low=0.12, high=0.42),
        ),
        hypotheses=(
            Hypothesis(
                rank=1,
                cause="traffic_surge",
                title="A surge of traffic",
                entity=SERVICE,
                confidence=0.81,
                log_odds=1.45,
                evidence=(
                    _evidence(
                        "llm_requests_per_second",
                        "22 requests arrive a second; normal is 4 to 13.",
                        1.8,
                    ),
                ),
            ),
        ),
    )


def hot_incident() -> Incident:
    return Incident(
        id="inc-hot",
        state=IncidentState.OPEN,
        severity=Severity.WARNING,
        verdict=Verdict.FAULT,
        title="GPU temperature climbs towards its slowdown",
        entity=GPU,
        onset_seconds=HOT + 240.0,
        opened_seconds=HOT + 300.0,
        updated_seconds=END - 60.0,
        anomalies=(
            _anomaly(
                "gpu_temperature_celsius",
                HOT + 240.0,
                5.0,
                entity=GPU,
                low=48.0,
                high=72.0,
                simulated=True,
            ),
        ),
        hypotheses=(
            Hypothesis(
                rank=1,
                cause="cooling_degraded",
                title="Cooling is failing",
                entity="host/box1",
                confidence=0.72,
                log_odds=0.94,
                evidence=(
                    _evidence(
                        "gpu_temperature_celsius",
                        "92 °C at the same power that gave 65 °C in the morning.",
                        1.6,
                        entity=GPU,
                        simulated=True,
                    ),
                ),
                against=(
                    _evidence(
                        "gpu_utilization_percent",
                        "Load has not risen: utilization is 71 %, as usual.",
                        -0.2,
                        entity=GPU,
                        simulated=True,
                    ),
                ),
                action="gpu_power_cap",
                next_check="The inlet temperature would tell a warm room from a blocked fan.",
            ),
            Hypothesis(
                rank=2,
                cause="inlet_temperature_high",
                title="The room is too warm",
                entity="host/box1",
                confidence=0.22,
                log_odds=-1.2,
            ),
        ),
        simulated=True,
    )


def _action(**changes: Any) -> Action:
    fields: dict[str, Any] = {
        "id": "a-1",
        "incident_id": "inc-hang",
        "cause": "engine_hang",
        "entity": SERVICE,
        "action": "engine_restart",
        "rung": 0,
        "mode": Mode.AUTO,
        "state": ActionState.INTENT,
        "confidence": 0.94,
        "reason": "The engine hangs (94 %): restart it",
        "idempotency_key": "inc-hang:0",
        "created_seconds": HANG + 6.0,
        "updated_seconds": HANG + 6.0,
    }
    return Action(**{**fields, **changes})


def _heal(ledger: Ledger) -> None:
    ledger.record(_action())
    ledger.transition(
        "a-1",
        {ActionState.INTENT},
        ActionState.EXECUTED,
        now=HANG + 8.0,
        reason="Restarted the engine of llm in 1.9 s",
    )
    ledger.transition(
        "a-1",
        {ActionState.EXECUTED},
        ActionState.CONFIRMED,
        now=HANG + 70.0,
        reason="The restart helped: steps run again",
        proof=[
            "engine_step_age_seconds fell from 9.6 s to 0.05 s (normal: below 0.4 s)",
            "12 of 12 canaries answered",
        ],
    )
    ledger.record(
        _action(
            id="a-2",
            incident_id="inc-busy",
            cause="traffic_surge",
            action="raise_degradation_level",
            state=ActionState.BLOCKED,
            confidence=0.81,
            reason="Not done: confidence 81 % is below the 90 % that this action needs",
            idempotency_key="inc-busy:0",
            created_seconds=BUSY + 35.0,
            updated_seconds=BUSY + 35.0,
        )
    )
    ledger.record(
        _action(
            id="a-3",
            incident_id="inc-hot",
            cause="cooling_degraded",
            entity=GPU,
            action="gpu_power_cap",
            mode=Mode.APPROVE,
            state=ActionState.PROPOSED,
            confidence=0.72,
            risk="medium",
            reason="Cap the power of GPU 0 at 200 W, so that it stays below its slowdown",
            idempotency_key="inc-hot:0",
            created_seconds=HOT + 310.0,
            updated_seconds=HOT + 310.0,
        )
    )


def _tell(journal: Journal) -> None:
    def say(kind: EventKind, at: float, summary: str, incident: str | None, **data: Any) -> None:
        journal.append(
            kind,
            time_seconds=at,
            summary=summary,
            incident_id=incident,
            actor=data.pop("actor", "galen"),
            data=data,
        )

    say(EventKind.STARTED, START + 60.0, "The watch loop started", None)
    say(EventKind.FAULT_INJECTED, HANG - 1.5, "Fault injected: engine_hang", None, actor="drill")
    say(EventKind.INCIDENT_OPENED, HANG + 4.0, "The engine makes no progress", "inc-hang")
    say(EventKind.INCIDENT_RESOLVED, HANG + 75.0, "All signals are normal again", "inc-hang")
    say(
        EventKind.NOTIFICATION_SENT,
        HANG + 106.0,
        "Told slack",
        "inc-hang",
        channel="slack",
        waited_seconds=0.4,
    )
    say(
        EventKind.FEEDBACK_GIVEN,
        HANG + 900.0,
        "The engine hangs: right",
        "inc-hang",
        answer="right",
        actor="ana",
    )
    say(EventKind.INCIDENT_OPENED, BUSY + 30.0, "More requests than usual", "inc-busy")
    say(EventKind.INCIDENT_RESOLVED, BUSY + 660.0, "All signals are normal again", "inc-busy")
    say(EventKind.INCIDENT_OPENED, HOT + 300.0, "GPU temperature climbs", "inc-hot")
    say(
        EventKind.NOTIFICATION_FAILED,
        HOT + 400.0,
        "Could not tell pager",
        "inc-hot",
        channel="pager",
        error="410",
    )


@pytest.fixture(scope="session")
def series_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteSeriesStore]:
    store = SqliteSeriesStore(tmp_path_factory.mktemp("series") / "series.sqlite")
    times = np.arange(START, END, STEP)
    store.write(
        [sample for index, now in enumerate(times) for sample in _samples(index, float(now))]
    )
    yield store
    store.close()


@pytest.fixture
def empty_world(tmp_path: Path) -> Iterator[World]:
    journal = Journal(tmp_path / "journal.sqlite")
    store = SqliteSeriesStore(tmp_path / "series.sqlite")
    yield World(journal, Ledger(journal), store)
    store.close()
    journal.close()


@pytest.fixture(scope="session")
def world(
    tmp_path_factory: pytest.TempPathFactory, series_store: SqliteSeriesStore
) -> Iterator[World]:
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.sqlite")
    for incident in (hang_incident(), busy_incident(), hot_incident()):
        journal.save_incident(incident)
    _tell(journal)
    ledger = Ledger(journal)
    _heal(ledger)
    yield World(journal, ledger, series_store)
    journal.close()


@pytest.fixture(scope="session")
def report(world: World) -> Report:
    return world.report()


@pytest.fixture
def make_world() -> Callable[..., World]:
    return World
