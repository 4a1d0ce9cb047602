"""A watch loop in small, for the tests of healing: a fake service, a history, and the real rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor as Workers
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from analysis.findings import (
    Direction,
    Evidence,
    Hypothesis,
    Incident,
    IncidentState,
    Severity,
    Verdict,
)
from analysis.history import History
from analysis.journal import EventKind, Journal
from collectors.contract import Sample, Support
from healing.actions import Action, ActionState, Mode
from healing.executors.contract import Command, ExecutionResult, Outcome
from healing.executors.nothing import NothingExecutor
from healing.healer import Healer
from healing.ledger import Ledger
from healing.policy import Policy
from healing.settings import HealingSettings

SERVICE = "service/llm"

HEALTHY: Mapping[str, float] = {
    "engine_up": 1.0,
    "engine_step_age_seconds": 0.1,
    "canary_success": 1.0,
    "canary_output_match": 1.0,
    "canary_latency_seconds": 0.05,
    "llm_queue_depth": 0.0,
    "llm_requests_per_second": 5.0,
    "llm_error_ratio": 0.0,
    "llm_request_latency_seconds": 0.2,
    "service_degradation_level": 0.0,
}

HUNG: Mapping[str, float] = {
    **HEALTHY,
    "engine_step_age_seconds": 5.2,
    "canary_success": 0.0,
    "llm_queue_depth": 7.0,
}

SURGE: Mapping[str, float] = {
    **HEALTHY,
    "llm_requests_per_second": 100.0,
    "llm_queue_depth": 60.0,
    "canary_latency_seconds": 0.9,
}


class InlineWorkers(Workers):
    """Runs each job at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - a future keeps whatever its job raised
            future.set_exception(error)
        return future


class FakeExecutor:
    """Keeps what it was told, and lets the test say how each operation ends."""

    name = "service"
    operations = frozenset({"restart_engine", "set_degradation_level"})

    def __init__(self, entities: Sequence[str] = (SERVICE,), name: str = "service") -> None:
        self.name = name
        self.entities = list(entities)
        self.done: list[Command] = []
        self.undone: list[tuple[Command, Mapping[str, Any]]] = []
        self.results: dict[str, ExecutionResult] = {}
        self.undo_results: list[ExecutionResult] = []
        self.effects: dict[str, Callable[[Command], None]] = {}
        self.undo_effects: dict[str, Callable[[Mapping[str, Any]], None]] = {}

    def is_supported(self) -> Support:
        return Support(supported=bool(self.entities))

    def controls(self, entity: str) -> str | None:
        for one in self.entities:
            if entity == one or entity.startswith(f"{one}/"):
                return one
        return None

    def snapshot(self, command: Command, deadline_seconds: float) -> Mapping[str, Any]:
        return {"before": f"as it was before {command.operation}"}

    def execute(self, command: Command, deadline_seconds: float) -> ExecutionResult:
        self.done.append(command)
        result = self.results.get(command.operation, ExecutionResult(Outcome.DONE))
        if result.outcome is not Outcome.NOT_DONE and command.operation in self.effects:
            self.effects[command.operation](command)
        return result

    def undo(
        self, command: Command, undo: Mapping[str, Any], deadline_seconds: float
    ) -> ExecutionResult:
        self.undone.append((command, undo))
        if self.undo_results:
            return self.undo_results.pop(0)
        if command.operation in self.undo_effects:
            self.undo_effects[command.operation](undo)
        return ExecutionResult(Outcome.DONE)

    def close(self) -> None:
        pass


def make_evidence(signal: str, direction: Direction = Direction.UP, **changes: Any) -> Evidence:
    fields: dict[str, Any] = {
        "entity": SERVICE,
        "signal": signal,
        "direction": direction,
        "weight": 2.0,
        "statement": f"{signal} is {direction.value}",
    }
    return Evidence.model_validate({**fields, **changes})


HANG_EVIDENCE = (
    make_evidence(
        "engine_step_age_seconds", low=0.0, high=0.3, statement="no progress for 5.2 s", weight=3.0
    ),
    make_evidence("llm_queue_depth", low=0.0, high=2.0, statement="7 requests wait"),
    make_evidence("canary_success", Direction.DOWN, low=1.0, high=1.0),
)
SURGE_EVIDENCE = (
    make_evidence("llm_requests_per_second", low=4.0, high=6.0),
    make_evidence("llm_queue_depth", low=0.0, high=2.0),
    make_evidence("canary_latency_seconds", low=0.0, high=0.1),
)


def make_hypothesis(
    cause: str = "engine_hang",
    remedies: Sequence[str] = ("restart_engine", "rollback_model", "page_human"),
    **changes: Any,
) -> Hypothesis:
    fields: dict[str, Any] = {
        "rank": 1,
        "cause": cause,
        "title": "The engine makes no progress",
        "entity": SERVICE,
        "confidence": 0.97,
        "log_odds": 3.5,
        "evidence": HANG_EVIDENCE,
        "action": remedies[0] if remedies else None,
        "remedies": tuple(remedies),
    }
    return Hypothesis.model_validate({**fields, **changes})


def make_incident(
    hypothesis: Hypothesis | None = None, incident_id: str = "inc-1", **changes: Any
) -> Incident:
    fields: dict[str, Any] = {
        "id": incident_id,
        "state": IncidentState.OPEN,
        "severity": Severity.CRITICAL,
        "verdict": Verdict.FAULT,
        "title": "Engine makes no progress",
        "entity": SERVICE,
        "onset_seconds": 1000.0,
        "opened_seconds": 1003.0,
        "updated_seconds": 1003.0,
        "hypotheses": (hypothesis or make_hypothesis(),),
    }
    return Incident.model_validate({**fields, **changes})


def make_action(**changes: Any) -> Action:
    fields: dict[str, Any] = {
        "id": "act-1",
        "incident_id": "inc-1",
        "cause": "engine_hang",
        "entity": SERVICE,
        "action": "restart_engine",
        "rung": 0,
        "mode": Mode.AUTO,
        "state": ActionState.PROPOSED,
        "confidence": 0.97,
        "reason": "Proposed: restart the engine",
        "idempotency_key": f"key of {changes.get('id', 'act-1')}",
        "created_seconds": 1000.0,
        "updated_seconds": 1000.0,
    }
    return Action.model_validate({**fields, **changes})


class World:
    """A watch loop in small: history, journal and a healer over a fake service."""

    def __init__(
        self,
        tmp_path: Path,
        policy: Policy,
        *,
        journal: Journal | None = None,
        workers: Workers | None = None,
        **settings: Any,
    ) -> None:
        self.state_dir = tmp_path
        self.policy = policy
        self.settings = HealingSettings(**{"mode": Mode.AUTO, **settings})
        self.journal = journal or Journal(tmp_path / "journal.sqlite")
        self.ledger = Ledger(self.journal)
        self.workers = workers or InlineWorkers()
        self.history = History(capacity_ticks=3600)
        self.service = FakeExecutor()
        self.gpu = FakeExecutor(["host/box/gpu/0"], name="gpu")
        self.values: dict[str, float] = dict(HEALTHY)
        self.now = 900.0
        self.incidents: dict[str, Incident] = {}
        self.healer = self.new_healer()
        self.idle(100)

    def new_healer(self) -> Healer:
        return Healer(
            self.settings,
            self.ledger,
            self.journal,
            {"service": self.service, "gpu": self.gpu, "none": NothingExecutor()},
            policy=self.policy,
            workers=self.workers,
            state_dir=self.state_dir,
        )

    def open(self, incident: Incident) -> Incident:
        self.incidents[incident.id] = incident
        self.journal.save_incident(incident)
        return incident

    def resolve(self, incident_id: str = "inc-1") -> None:
        self.open(
            self.incidents[incident_id].model_copy(
                update={"state": IncidentState.RESOLVED, "resolved_seconds": self.now}
            )
        )

    def idle(self, seconds: int) -> None:
        """Let time pass without the healer."""
        for _ in range(seconds):
            self.now += 1
            self.history.append(
                self.now,
                [Sample(self.now, SERVICE, name, value) for name, value in self.values.items()],
            )

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.idle(1)
            self.healer.tick(self.now, list(self.incidents.values()), self.history)

    def states(self) -> list[tuple[str, str]]:
        """Every action and its state, oldest first."""
        return [(one.action, one.state.value) for one in self.ledger.actions()[::-1]]

    def told(self) -> list[EventKind]:
        return [event.kind for event in self.journal.events()]
