"""Whatever happens, in whatever order: the promises that healing makes hold.

A machine opens and closes incidents, changes causes and confidence, breaks and mends services, answers
proposals, throws the kill switch, crashes Galen and lets jobs run late, and checks after each step.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Executor as Workers
from concurrent.futures import Future
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from analysis.findings import IncidentState, Verdict
from analysis.journal import Journal
from healing.actions import ActionState, Mode
from healing.executors.contract import Command, ExecutionResult, Outcome
from healing.ledger import UNDER_WAY, related
from healing.policy import load_policy
from tests.healing.worlds import (
    HEALTHY,
    HUNG,
    SERVICE,
    SURGE,
    SURGE_EVIDENCE,
    FakeExecutor,
    World,
    make_hypothesis,
    make_incident,
)

CAUSES = {
    "engine_hang": ("restart_engine", "rollback_model", "page_human"),
    "engine_crash": ("await_supervisor", "restart_engine", "rollback_model", "page_human"),
    "traffic_surge": ("set_degradation_level", "shed_load", "page_human"),
    "gpu_ecc": ("drain_service", "page_human"),
    "client_errors": (),
}
ENTITIES = (SERVICE, f"{SERVICE}/replica/0", "service/other")
SECONDS = st.integers(1, 20)
VALUES = st.sampled_from([SURGE, SURGE, HUNG, HEALTHY, {}])


class LateWorkers(Workers):
    """Runs a job only when told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any], str]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs), args[1].entity))
        return future

    def run(self) -> None:
        waiting, self.waiting = self.waiting, []
        for future, job, _ in waiting:
            try:
                future.set_result(job())
            except Exception as error:  # noqa: BLE001 - a future keeps whatever its job raised
                future.set_exception(error)


class Watched(FakeExecutor):
    """Notes what is changed while the kill switch is on, and fails as told."""

    switched_on = False
    outcome = Outcome.DONE
    breaks = False

    def __init__(self) -> None:
        super().__init__([SERVICE, "service/other"])
        self.violations: list[str] = []

    def execute(self, command: Command, deadline_seconds: float) -> ExecutionResult:
        if self.switched_on:
            self.violations.append(f"{command} under the kill switch")
        if self.breaks:
            raise RuntimeError("a fault of the executor")
        self.done.append(command)
        return ExecutionResult(self.outcome)

    def undo(
        self, command: Command, undo: Mapping[str, Any], deadline_seconds: float
    ) -> ExecutionResult:
        if self.switched_on:
            self.violations.append(f"undo of {command} under the kill switch")
        return ExecutionResult(self.outcome)


class Safety(RuleBasedStateMachine):
    """The machine."""

    @initialize(mode=st.sampled_from([Mode.AUTO] * 5 + [Mode.APPROVE]))
    def build(self, mode: Mode) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.workers = LateWorkers()
        self.world = World(
            Path(self.directory.name),
            load_policy(),
            journal=Journal("sqlite://"),
            workers=self.workers,
            mode=mode,
            approval_expiry_seconds=60,
            patience_seconds=40,
            max_entities=10,
            max_entity_share=1.0,
        )
        self.service = self.world.service = Watched()
        self.world.healer = self.world.new_healer()
        self.switch = Path(self.directory.name) / "healing.stop"

    def passes(self, seconds: int, values: Mapping[str, float]) -> None:
        self.world.values = dict(values)
        self.world.run(seconds)

    @rule(late=st.booleans(), seconds=SECONDS, values=VALUES)
    def time_passes(self, late: bool, seconds: int, values: Mapping[str, float]) -> None:
        self.passes(seconds, values)
        if not late:
            self.workers.run()
            self.passes(2, values)

    @rule(
        cause=st.sampled_from(sorted(CAUSES)),
        entity=st.sampled_from(ENTITIES),
        confidence=st.sampled_from([0.99, 0.99, 0.72, 0.65, 0.3]),
        verdict=st.sampled_from([Verdict.FAULT] * 6 + [Verdict.UNKNOWN, Verdict.NO_FAULT]),
        which=st.integers(0, 3),
        seconds=SECONDS,
        values=VALUES,
    )
    def incident_opens_or_changes(
        self,
        cause: str,
        entity: str,
        confidence: float,
        verdict: Verdict,
        which: int,
        seconds: int,
        values: Mapping[str, float],
    ) -> None:
        lead = make_hypothesis(
            cause, CAUSES[cause], entity=entity, confidence=confidence, evidence=SURGE_EVIDENCE
        )
        self.world.open(
            make_incident(
                lead,
                f"inc-{which}",
                entity=entity,
                verdict=verdict,
                onset_seconds=self.world.now - 3,
                opened_seconds=self.world.now,
            )
        )
        self.passes(seconds, values)

    @rule(which=st.integers(0, 3), seconds=SECONDS)
    def incident_ends(self, which: int, seconds: int) -> None:
        incident = self.world.incidents.get(f"inc-{which}")
        if incident is not None and incident.state is IncidentState.OPEN:
            self.world.resolve(incident.id)
        self.passes(seconds, HEALTHY)

    @rule(yes=st.booleans(), seconds=SECONDS, values=VALUES)
    def person_answers(self, yes: bool, seconds: int, values: Mapping[str, float]) -> None:
        for action in self.world.ledger.actions(states={ActionState.PROPOSED}):
            if yes:
                self.world.ledger.approve(action.id, "mia", self.world.now)
            else:
                self.world.ledger.reject(action.id, "mia", "no", self.world.now)
        self.passes(seconds, values)

    @rule(before=st.booleans(), seconds=SECONDS)
    def kill_switch_for_a_while(self, before: bool, seconds: int) -> None:
        if before:
            self.workers.run()
        self.switch.touch()
        self.service.switched_on = True
        self.passes(seconds, SURGE)
        self.workers.run()
        self.passes(2, SURGE)
        self.switch.unlink()
        self.service.switched_on = False

    @rule(outcome=st.sampled_from(Outcome), breaks=st.booleans(), seconds=SECONDS)
    def executor_changes(self, outcome: Outcome, breaks: bool, seconds: int) -> None:
        self.service.outcome = outcome
        self.service.breaks = breaks
        self.passes(seconds, SURGE)

    @rule(away=st.integers(0, 200), values=VALUES)
    def galen_crashes(self, away: int, values: Mapping[str, float]) -> None:
        self.workers.waiting.clear()
        self.world.idle(away)
        self.world.healer = self.world.new_healer()
        self.passes(3, values)

    @invariant()
    def one_action_at_a_time_on_an_entity(self) -> None:
        live = self.world.ledger.actions(states=UNDER_WAY)
        assert not [pair for pair in combinations((a.entity for a in live), 2) if related(*pair)]
        jobs = [entity for _, _, entity in self.workers.waiting]
        assert not [pair for pair in combinations(jobs, 2) if related(*pair)]

    @invariant()
    def attempts_are_bounded(self) -> None:
        tried = Counter(
            (action.incident_id, action.action, action.entity)
            for action in self.world.ledger.actions()
            if action.started_seconds is not None and action.state is not ActionState.UNDONE
        )
        for (_, name, _), count in tried.items():
            assert count <= self.world.policy.actions[name].attempts

    @invariant()
    def nothing_starts_unsure_or_unasked(self) -> None:
        for action in self.world.ledger.actions():
            remedy = self.world.policy.actions[action.action]
            if action.started_seconds is None or not remedy.touches or action.actor == "mia":
                continue
            assert action.mode is Mode.AUTO
            assert action.confidence >= max(0.6, remedy.minimum_confidence)

    @invariant()
    def cooldowns_are_kept(self) -> None:
        started: dict[tuple[str, str], list[float]] = {}
        for action in self.world.ledger.actions():
            if action.started_seconds is not None:
                key = (action.action, action.entity)
                started.setdefault(key, []).append(action.started_seconds)
        for (name, _), times in started.items():
            cooldown = self.world.policy.actions[name].cooldown_seconds
            assert all(later - earlier >= cooldown for earlier, later in pairwise(sorted(times)))

    @invariant()
    def the_kill_switch_is_kept(self) -> None:
        assert self.service.violations == []

    @invariant()
    def a_person_is_called_at_most_once_an_incident(self) -> None:
        pages = Counter(
            action.incident_id
            for action in self.world.ledger.actions(states={ActionState.ESCALATED})
        )
        assert all(count == 1 for count in pages.values())

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.switch.unlink(missing_ok=True)
        self.service.switched_on = self.service.breaks = False
        self.service.outcome = Outcome.DONE
        for name in self.world.incidents:
            if self.world.incidents[name].state is IncidentState.OPEN:
                self.world.resolve(name)
        # Nothing is left behind: what was under way ends, and what was temporary is taken back.
        for _ in range(2):
            self.world.run(2)
            self.workers.run()
            self.world.run(65)  # longer than any verification
        assert self.world.ledger.actions(states=UNDER_WAY | {ActionState.PROPOSED}) == []
        assert self.world.journal.broken_links() == []
        self.world.journal.close()
        self.directory.cleanup()


TestSafety = Safety.TestCase
TestSafety.settings = settings(
    max_examples=15,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
