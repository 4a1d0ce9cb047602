from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.findings import IncidentState
from healing.actions import ActionState, Mode
from healing.guard import Course, Decision, Guard, GuardReason, Request
from healing.ledger import Ledger
from healing.policy import Policy
from healing.settings import ActionOverride, HealingSettings
from tests.healing.worlds import SERVICE, make_action, make_incident

NOW = 10_000.0
Ask = Callable[..., Decision]


@pytest.fixture
def ask(tmp_path: Path, ledger: Ledger, policy: Policy) -> Ask:
    """Ask a guard; keywords that settings know go there, the rest goes to the request."""

    def asked(action: str = "restart_engine", **given: Any) -> Decision:
        known = HealingSettings.model_fields
        settings = HealingSettings(
            **{"mode": Mode.AUTO, **{name: given.pop(name) for name in known & given.keys()}}
        )
        changed = policy.with_overrides(settings.actions)
        guard = Guard(settings, changed, ledger, tmp_path / "healing.stop")
        request = Request(
            **{
                "incident": make_incident(),
                "remedy": changed.actions[action],
                "entity": SERVICE,
                "confidence": 0.97,
                **given,
            }
        )
        return guard.decide(request, NOW)

    return asked


def did(ledger: Ledger, number: int = 1, *, ago: float = 10.0, **changes: Any) -> None:
    """Put an action into the ledger that was started some seconds ago."""
    fields: dict[str, Any] = {
        "id": f"act-{number}",
        "incident_id": f"old-{number}",
        "state": ActionState.CONFIRMED,
        "started_seconds": NOW - ago,
        "executed_seconds": NOW - ago,
        "created_seconds": NOW - ago,
    }
    ledger.record(make_action(**{**fields, **changes}))


def test_a_sure_action_of_low_risk_is_allowed(ask: Ask) -> None:
    assert ask() == Decision(GuardReason.ALLOWED)
    assert ask().course is Course.ACT


@pytest.mark.parametrize(
    ("given", "reason", "course", "told"),
    [
        ({"incident": make_incident(state=IncidentState.RESOLVED)},
         GuardReason.INCIDENT_CLOSED, Course.STOP, "over"),
        ({"mode": Mode.OFF}, GuardReason.MODE_OFF, Course.SKIP, "off"),
        ({"actions": {"restart_engine": ActionOverride(mode=Mode.OFF)}},
         GuardReason.MODE_OFF, Course.SKIP, "restart_engine is off"),
        ({"entity": None}, GuardReason.NO_EXECUTOR, Course.SKIP, "no service"),
        ({"kill_switch": True}, GuardReason.KILL_SWITCH, Course.WAIT, "healing.kill_switch"),
        ({"missing_parameter": "watts is not known"}, GuardReason.NO_BASELINE, Course.SKIP, "watts"),
        ({"max_actions_per_hour": 0}, GuardReason.RATE_LIMITED, Course.WAIT, "within an hour"),
        ({"max_entities": 0}, GuardReason.BLAST_RADIUS, Course.WAIT, "0 are allowed"),
        ({"stale": "x is old"}, GuardReason.STALE_DATA, Course.WAIT, "x is old"),
        ({"mode": Mode.DRY_RUN}, GuardReason.DRY_RUN, Course.REHEARSE, "rehearsed"),
        ({"blind_spots": ("canary_success",)},
         GuardReason.UNVERIFIABLE, Course.PROPOSE, "canary_success"),
        ({"confidence": 0.69}, GuardReason.LOW_CONFIDENCE, Course.PROPOSE, "needs 70%"),
        ({"minimum_confidence": 0.99}, GuardReason.LOW_CONFIDENCE, Course.PROPOSE, "needs 99%"),
        ({"mode": Mode.APPROVE}, GuardReason.NEEDS_APPROVAL, Course.PROPOSE, "a person's yes"),
        ({"action": "reset_gpu", "entity": "host/box/gpu/0"},
         GuardReason.NEEDS_APPROVAL, Course.PROPOSE, "reset_gpu"),
        ({"not_asked_for": "it is a guess"}, GuardReason.NOT_ASKED_FOR, Course.SKIP, "a guess"),
        ({"approved": True, "not_asked_for": "it is a guess"},
         GuardReason.NOT_ASKED_FOR, Course.SKIP, "a guess"),
        ({"mode": Mode.APPROVE, "approved": True, "confidence": 0.2},
         GuardReason.ALLOWED, Course.ACT, ""),
        ({"approved": True, "blind_spots": ("canary_success",)},
         GuardReason.ALLOWED, Course.ACT, ""),
        ({"approved": True, "kill_switch": True}, GuardReason.KILL_SWITCH, Course.WAIT, "on"),
        ({"approved": True, "stale": "x is old"}, GuardReason.STALE_DATA, Course.WAIT, "old"),
        ({"approved": True, "mode": Mode.DRY_RUN}, GuardReason.DRY_RUN, Course.REHEARSE, ""),
        ({"mode": Mode.DRY_RUN, "confidence": 0.1}, GuardReason.LOW_CONFIDENCE, Course.PROPOSE, ""),
    ],
)  # fmt: skip
def test_reasons(
    ask: Ask, given: dict[str, Any], reason: GuardReason, course: Course, told: str
) -> None:
    decision = ask(**given)
    assert (decision.reason, decision.course) == (reason, course)
    assert told in decision.words


@pytest.mark.parametrize("action", ["page_human", "await_supervisor"])
def test_what_touches_nothing_passes_every_brake(ask: Ask, action: str) -> None:
    brakes = {
        "mode": Mode.DRY_RUN,
        "kill_switch": True,
        "max_actions_per_hour": 0,
        "max_entities": 0,
        "minimum_confidence": 1.0,
        "confidence": 0.1,
        "stale": "old",
    }
    assert ask(action, **brakes).reason is GuardReason.ALLOWED


def test_the_kill_switch_file_says_who_threw_it(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "healing.stop").write_text("Stopped by mia at 03:12:\n maintenance", "utf-8")
    assert "Stopped by mia at 03:12: maintenance" in ask().words


def test_a_kill_switch_that_cannot_be_read_counts_as_thrown(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "healing.stop").mkdir()
    assert ask().reason is GuardReason.KILL_SWITCH


def test_a_cooldown_holds_for_the_entity_and_passes(ask: Ask, ledger: Ledger) -> None:
    did(ledger, 1, ago=29, state=ActionState.FAILED)
    assert ask().reason is GuardReason.COOLDOWN
    assert "ends in 1 s" in ask().words
    assert ask(entity="service/other", peers=10).reason is GuardReason.ALLOWED
    assert ask("reload_model").reason is GuardReason.ALLOWED
    override = {"restart_engine": ActionOverride(cooldown_seconds=20)}
    assert ask(actions=override).reason is GuardReason.ALLOWED


def test_attempts_are_capped_in_an_incident(ask: Ask, ledger: Ledger) -> None:
    did(ledger, 1, ago=500, incident_id="inc-1", state=ActionState.FAILED)
    assert ask().reason is GuardReason.ATTEMPTS_EXHAUSTED
    assert ask(actions={"restart_engine": ActionOverride(attempts=2)}).reason is GuardReason.ALLOWED


def test_what_helped_and_was_taken_back_may_be_needed_again(ask: Ask, ledger: Ledger) -> None:
    for number in range(2):
        did(ledger, number, ago=500, incident_id="inc-1", action="set_degradation_level",
            state=ActionState.UNDONE)  # fmt: skip
    assert ask("set_degradation_level").reason is GuardReason.ALLOWED


def test_what_is_needed_again_and_again_does_not_cure(ask: Ask, ledger: Ledger) -> None:
    for number in range(3):
        did(ledger, number, ago=1000.0 * (number + 1))
    assert ask(repeat_limit=4).reason is GuardReason.ALLOWED
    assert ask(repeat_limit=3).reason is GuardReason.REPEATED
    assert ask(repeat_limit=3, repeat_window_seconds=2500).reason is GuardReason.ALLOWED


@pytest.mark.parametrize("busy", [SERVICE, f"{SERVICE}/replica/0"])
@pytest.mark.parametrize("state", [ActionState.INTENT, ActionState.EXECUTED])
def test_an_entity_with_an_action_under_way_is_left_alone(
    ask: Ask, ledger: Ledger, busy: str, state: ActionState
) -> None:
    did(ledger, 1, entity=busy, state=state, action="clear_cache")
    assert ask().reason is GuardReason.ENTITY_BUSY
    assert ask(own_action_id="act-1").reason is GuardReason.ALLOWED


def test_the_rate_counts_what_was_started_within_the_hour(ask: Ask, ledger: Ledger) -> None:
    did(ledger, 1, ago=100, entity="service/a")
    did(ledger, 2, ago=3700, entity="service/b")
    did(ledger, 3, ago=100, entity="service/c", action="await_supervisor")
    did(ledger, 4, ago=100, entity="service/d", state=ActionState.BLOCKED, started_seconds=None)
    assert ask(peers=10, max_actions_per_hour=2).reason is GuardReason.ALLOWED
    assert ask(peers=10, max_actions_per_hour=1).reason is GuardReason.RATE_LIMITED


def test_the_blast_radius_is_a_number_and_a_share(ask: Ask, ledger: Ledger) -> None:
    did(ledger, 1, ago=100, entity="service/a")
    did(ledger, 2, ago=100, entity="service/b")
    many = {"peers": 100}
    assert ask(**many, max_entities=2).reason is GuardReason.BLAST_RADIUS
    assert ask(**many, max_entities=3).reason is GuardReason.ALLOWED
    assert ask(peers=10, max_entities=50, max_entity_share=0.2).reason is GuardReason.BLAST_RADIUS
    assert ask(peers=15, max_entities=50, max_entity_share=0.2).reason is GuardReason.ALLOWED
    assert ask(**many, max_entities=2, blast_radius_window_seconds=50).reason is GuardReason.ALLOWED


def test_an_entity_inside_the_blast_radius_may_be_helped_further(ask: Ask, ledger: Ledger) -> None:
    did(ledger, 1, ago=100, action="clear_cache")
    did(ledger, 2, ago=100, entity="host/box/gpu/0", action="lower_power_limit")
    assert ask(max_entities=1).reason is GuardReason.ALLOWED


def test_one_of_a_kind_is_always_allowed(ask: Ask, ledger: Ledger) -> None:
    did(ledger, 1, ago=100, entity="host/box/gpu/0", action="lower_power_limit")
    assert ask(peers=1, max_entity_share=0.0).reason is GuardReason.ALLOWED


def test_every_reason_leads_somewhere() -> None:
    for reason in GuardReason:
        assert isinstance(Decision(reason).course, Course)
