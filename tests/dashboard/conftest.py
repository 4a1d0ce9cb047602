"""A state directory with a story in it, built with the real store, journal and ledger.

GPU 1 runs hot since eight minutes: an incident is open and a remedy waits for approval. An hour ago
the engine hung and was restarted. The story lies relative to ``now`` so that a browser sees it fresh.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st

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
from dashboard.settings import STATE_DIR_VARIABLE
from healing.actions import Action, ActionState, Mode
from healing.ledger import Ledger

SERVICE = "service/llm"
HOST = "host/box1"
GPU0, GPU1 = f"{HOST}/gpu/0", f"{HOST}/gpu/1"
OPEN_ID, OLD_ID = "inc-20261121-0007", "inc-20261121-0006"
PROPOSAL_ID = "act-0012"
HEAT_SECONDS = 480.0
HANG_SECONDS = 3000.0
HANG_LASTED_SECONDS = 41.0
SIMULATED = {"simulated": "true"}


def samples_at(time_seconds: float, now: float, noise: random.Random) -> list[Sample]:
    """Return one tick of the story."""
    age = now - time_seconds
    heat = min(1.0, max(0.0, (HEAT_SECONDS - age) / 180))
    hung = HANG_SECONDS - HANG_LASTED_SECONDS <= age <= HANG_SECONDS
    load = 1 + 0.18 * math.sin(time_seconds / 400) + noise.gauss(0, 0.04)
    return [
        *_service(time_seconds, load, heat, noise, hung=hung),
        *_gpu(time_seconds, GPU0, load, 0.0, noise),
        *_gpu(time_seconds, GPU1, load, heat, noise),
        *_host(time_seconds, load, noise),
    ]


def _service(
    at: float, load: float, heat: float, noise: random.Random, *, hung: bool
) -> list[Sample]:
    p50 = 0.21 * load * (1 + 1.1 * heat) * (12 if hung else 1)
    values = {
        "llm_requests_per_second": 42 * load,
        "llm_request_latency_p50_seconds": p50,
        "llm_request_latency_seconds": p50 * (1.9 + noise.gauss(0, 0.06)),
        "llm_request_latency_p99_seconds": p50 * (2.6 + noise.gauss(0, 0.2)),
        "llm_time_to_first_token_seconds": p50 * 0.31,
        "llm_error_ratio": 0.31 if hung else max(0.0, noise.gauss(0.001, 0.001)),
        "llm_rejected_ratio": 0.02 * heat,
        "llm_tokens_per_second": 0 if hung else 2650 * load * (1 - 0.42 * heat),
        "llm_queue_depth": 60 if hung else max(0, round(2 * load + 14 * heat + noise.gauss(0, 1))),
        "llm_active_requests": 16,
        "llm_slots": 16,
        "engine_step_age_seconds": 9.0 if hung else abs(noise.gauss(0.02, 0.01)),
        "engine_state": 4 if hung else 1,
        "engine_up": 1,
        "engine_resident_memory_bytes": 2.4e9 + noise.gauss(0, 1e6),
        "service_degradation_level": 1 if heat >= 1 else 0,
        "health_device_ok": 1,
        "health_runtime_ok": 1,
        "health_engine_ok": 0 if hung else 1,
        "health_context_ok": 1,
        "health_canary_ok": 0 if hung else 1,
    }
    return [Sample(at, SERVICE, signal, float(value)) for signal, value in values.items()]


def _gpu(at: float, gpu: str, load: float, heat: float, noise: random.Random) -> list[Sample]:
    temperature = 64 + 6 * (load - 1) + 25 * heat + noise.gauss(0, 0.4)
    values = {
        "gpu_available": 1,
        "gpu_utilization_percent": min(100.0, 71 * load),
        "gpu_memory_used_bytes": 54.2 * 2**30,
        "gpu_memory_total_bytes": 80 * 2**30,
        "gpu_temperature_celsius": temperature,
        "gpu_temperature_margin_celsius": 87 - temperature,
        "gpu_power_usage_watts": 315 * load * (1 - 0.2 * heat),
        "gpu_power_limit_watts": 400,
        "gpu_sm_clock_mhz": 1755 - 610 * heat + noise.gauss(0, 8),
        "gpu_sm_clock_max_mhz": 1980,
        "gpu_throttle_reason": 0x20 if heat > 0.8 else 0,
        "gpu_throttle_thermal": 1 if heat > 0.8 else 0,
        "gpu_throttle_power": 0,
        "gpu_xid": 0,
        "gpu_ecc_uncorrectable_total": 0,
    }
    return [Sample(at, gpu, name, float(value), SIMULATED) for name, value in values.items()]


def _host(at: float, load: float, noise: random.Random) -> list[Sample]:
    up = [
        Sample(at, f"collector/{name}", "scrape_success", 1.0)
        for name in ("host", "service-llm", "gpu", "canary-llm")
    ]
    return [*up, Sample(at, HOST, "host_cpu_percent", 38 * load + noise.gauss(0, 2))]


def write_series(directory: Path, now: float, *, seconds: float, cadence_seconds: float) -> None:
    """Write the story's numbers up to ``now``."""
    noise = random.Random(7)
    store = SqliteSeriesStore(directory / "series.sqlite")
    ticks = int(seconds / cadence_seconds)
    batch: list[Sample] = []
    for tick in range(ticks + 1):
        batch += samples_at(now - (ticks - tick) * cadence_seconds, now, noise)
    store.write(batch)
    store.close()


def evidence(
    entity: str,
    signal: str,
    unit: str,
    weight: float,
    statement: str,
    *,
    observed: float | None = None,
    baseline: float | None = None,
    low: float | None = None,
    high: float | None = None,
    onset: float | None = None,
    direction: Direction = Direction.UP,
    simulated: bool = False,
) -> Evidence:
    """Return a piece of evidence."""
    return Evidence(
        entity=entity, signal=signal, unit=unit, weight=weight, statement=statement,
        observed=observed, baseline=baseline, low=low, high=high, onset_seconds=onset,
        direction=direction, simulated=simulated,
    )  # fmt: skip


def _heat_hypotheses(onset: float) -> tuple[Hypothesis, ...]:
    hot = evidence(
        GPU1, "gpu_temperature_celsius", "celsius", 2.31,
        "temperature rose 25 °C above normal before anything else moved",
        baseline=64.2, observed=89.1, low=58.0, high=71.0, onset=onset, simulated=True,
    )  # fmt: skip
    slow = evidence(
        GPU1, "gpu_sm_clock_mhz", "megahertz", 1.72,
        "the SM clock fell by a third while utilisation stayed",
        baseline=1755, observed=1146, low=1690, high=1820, onset=onset + 31,
        direction=Direction.DOWN, simulated=True,
    )  # fmt: skip
    late = evidence(
        SERVICE, "llm_request_latency_seconds", "seconds", 1.18, "p95 latency followed the clock",
        baseline=0.4, observed=0.86, low=0.29, high=0.52, onset=onset + 44,
    )  # fmt: skip
    power = evidence(
        GPU1, "gpu_power_usage_watts", "watts", -0.64,
        "power fell with the clock: the power cap is not what limits",
        baseline=318, observed=252, low=240, high=390, direction=Direction.NORMAL, simulated=True,
    )  # fmt: skip
    steady = evidence(
        SERVICE, "llm_requests_per_second", "requests/second", -1.9, "the request rate is normal",
        baseline=42, observed=43, low=33, high=52, direction=Direction.NORMAL,
    )  # fmt: skip
    return (
        Hypothesis(
            rank=1, cause="gpu_overheating", title="GPU is overheating", entity=GPU1,
            confidence=0.87, log_odds=1.9, evidence=(hot, slow, late), against=(),
            action="lower_power_limit",
            remedies=("lower_power_limit", "set_degradation_level", "page_human"),
            next_check="the inlet temperature of box1, against that of its neighbours",
        ),
        Hypothesis(
            rank=2, cause="gpu_power_capped", title="GPU is held at its power cap", entity=GPU1,
            confidence=0.08, log_odds=-2.4, evidence=(slow,), against=(power,),
        ),
        Hypothesis(
            rank=3, cause="traffic_surge", title="More requests than the service can take",
            entity=SERVICE, confidence=0.03, log_odds=-3.5, evidence=(late,), against=(steady,),
        ),
    )  # fmt: skip


def open_incident(now: float) -> Incident:
    """Return the incident of the hot GPU."""
    onset = now - HEAT_SECONDS + 60
    anomalies = tuple(
        Anomaly(
            entity=entity, signal=signal, time_seconds=now - 5, onset_seconds=onset + after,
            score=3.2, direction=Direction.UP, observed=1.0, simulated=entity != SERVICE,
        )
        for entity, signal, after in (
            (GPU1, "gpu_temperature_celsius", 0),
            (GPU1, "gpu_sm_clock_mhz", 31),
            (SERVICE, "llm_request_latency_seconds", 44),
            (SERVICE, "llm_queue_depth", 60),
        )
    )  # fmt: skip
    return Incident(
        id=OPEN_ID, state=IncidentState.OPEN, severity=Severity.CRITICAL, verdict=Verdict.FAULT,
        title="GPU 1 throttles and the service slows down", entity=GPU1, onset_seconds=onset,
        opened_seconds=onset + 12, updated_seconds=now - 5, anomalies=anomalies,
        hypotheses=_heat_hypotheses(onset), simulated=True,
    )  # fmt: skip


def old_incident(now: float) -> Incident:
    """Return the incident of the hung engine, which is over."""
    onset = now - HANG_SECONDS
    end = onset + HANG_LASTED_SECONDS
    hang = evidence(
        SERVICE, "engine_step_age_seconds", "seconds", 3.4,
        "no step finished for 9 s while requests waited",
        baseline=0.02, observed=9.0, low=0.0, high=0.5, onset=onset,
    )  # fmt: skip
    anomaly = Anomaly(
        entity=SERVICE, signal="engine_step_age_seconds", unit="seconds", time_seconds=onset + 4,
        onset_seconds=onset, score=18.0, direction=Direction.UP, observed=9.0,
    )  # fmt: skip
    return Incident(
        id=OLD_ID, state=IncidentState.RESOLVED, severity=Severity.CRITICAL,
        verdict=Verdict.FAULT, title="The engine of llm hangs", entity=SERVICE,
        onset_seconds=onset, opened_seconds=onset + 3, updated_seconds=end, resolved_seconds=end,
        anomalies=(anomaly,),
        hypotheses=(
            Hypothesis(
                rank=1, cause="engine_hang", title="Engine hang", entity=SERVICE, confidence=0.97,
                log_odds=3.4, evidence=(hang,), action="restart_engine",
                remedies=("restart_engine", "page_human"),
            ),
        ),
    )  # fmt: skip


def _action(identity: str, incident: Incident, **changes: object) -> Action:
    leading = incident.leading
    assert leading is not None
    created = incident.opened_seconds + 8
    fields: dict[str, object] = {
        "id": identity, "incident_id": incident.id, "cause": leading.cause,
        "entity": leading.entity, "action": leading.action, "rung": 0, "mode": Mode.AUTO,
        "state": ActionState.PROPOSED, "confidence": leading.confidence,
        "idempotency_key": identity, "created_seconds": created, "updated_seconds": created,
    }  # fmt: skip
    return Action.model_validate({**fields, **changes})


def write_journal(directory: Path, now: float) -> None:
    """Write the story's incidents, events and actions."""
    journal = Journal(directory / "journal.sqlite")
    ledger = Ledger(journal)
    journal.append(
        EventKind.STARTED, time_seconds=now - 7000, summary="the watch loop started",
        data={"healing_mode": "approve"},
    )  # fmt: skip
    old = old_incident(now)
    _open(journal, old)
    act = ledger.record(
        _action(
            "act-0011", old, state=ActionState.INTENT,
            reason="restart the engine: it makes no progress while requests wait",
        )
    )  # fmt: skip
    at = act.created_seconds
    ledger.transition(
        act.id, {ActionState.INTENT}, ActionState.EXECUTED, now=at + 1,
        reason="restart engine was done on service/llm",
    )  # fmt: skip
    ledger.transition(
        act.id, {ActionState.EXECUTED}, ActionState.CONFIRMED, now=at + 25,
        reason="restart engine helped", proof=["step age 9.0 s → 0.02 s, held for 15 s"],
    )  # fmt: skip
    journal.append(
        EventKind.INCIDENT_RESOLVED, time_seconds=old.resolved_seconds or now,
        incident_id=old.id, summary="the engine of llm makes progress again after 41 s",
    )  # fmt: skip
    hot = open_incident(now)
    _open(journal, hot)
    ledger.record(
        _action(
            "act-0010", hot, state=ActionState.BLOCKED, action="set_degradation_level", rung=1,
            entity=SERVICE, reason="cooldown: the same action ran 4 min ago and waits 10 min",
            created_seconds=hot.opened_seconds + 4, updated_seconds=hot.opened_seconds + 4,
        )
    )  # fmt: skip
    ledger.record(
        _action(
            PROPOSAL_ID, hot, mode=Mode.APPROVE, risk="medium", parameters={"watts": 280},
            reason="lower the power limit of GPU 1 from 400 W to 280 W, so that it cools",
        )
    )  # fmt: skip
    journal.append(
        EventKind.NOTIFICATION_SENT, time_seconds=hot.opened_seconds + 9, incident_id=hot.id,
        summary="Slack #oncall was told", actor="alerts",
    )  # fmt: skip
    journal.close()


def _open(journal: Journal, incident: Incident) -> None:
    journal.save_incident(incident)
    journal.append(
        EventKind.INCIDENT_OPENED, time_seconds=incident.opened_seconds, incident_id=incident.id,
        summary=f"{incident.title} ({incident.severity.value})",
    )  # fmt: skip


def write_reports(directory: Path) -> None:
    """Write an archive with one report of each format; the HTML one tries to run a script."""
    reports = directory / "reports"
    reports.mkdir()
    (reports / "2026-11-20.md").write_text("# Galen, 20 November\n\n2 incidents, 1 action.\n")
    (reports / "2026-11-20.json").write_text('{"incidents": 2}')
    (reports / "2026-11-20.html").write_text(
        "<h1>Galen, 20 November</h1><p>2 incidents, 1 action.</p>"
        "<script>parent.parent.document.title = 'taken over'; document.title = 'ran'</script>"
    )


def build_state(
    directory: Path, now: float, *, seconds: float = 3600, cadence_seconds: float = 10
) -> Path:
    """Write the whole story into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    write_series(directory, now, seconds=seconds, cadence_seconds=cadence_seconds)
    write_journal(directory, now)
    write_reports(directory)
    return directory


@pytest.fixture(scope="session")
def now() -> float:
    """One moment for the whole session."""
    return float(int(time.time()))


@pytest.fixture(scope="session")
def build() -> Callable[..., Path]:
    """The builder itself, for fixtures that live longer than a test."""
    return build_state


@pytest.fixture
def state_dir(tmp_path: Path, now: float) -> Path:
    """A state directory with the story."""
    return build_state(tmp_path / "var", now, seconds=1200, cadence_seconds=20)


@pytest.fixture
def dashboard_at(
    monkeypatch: pytest.MonkeyPatch, now: float
) -> Iterator[Callable[[Path, float], None]]:
    """Point the pages at a state directory and stop their clock."""

    def point(directory: Path, seconds_later: float = 0.0) -> None:
        monkeypatch.setenv(STATE_DIR_VARIABLE, str(directory))
        monkeypatch.setattr("dashboard.context.clock", lambda: now + seconds_later)
        st.cache_data.clear()

    yield point
    st.cache_data.clear()
    st.cache_resource.clear()
