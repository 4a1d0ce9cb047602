from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from analysis.findings import Direction, Incident, IncidentState, Verdict
from analysis.journal import EventKind
from healing.actions import ActionState, Mode
from healing.executors.contract import ExecutionResult, Outcome
from healing.policy import Policy
from tests.healing.worlds import (
    HEALTHY,
    HUNG,
    SERVICE,
    SURGE,
    SURGE_EVIDENCE,
    World,
    make_evidence,
    make_hypothesis,
    make_incident,
)

NOT_DONE = ExecutionResult(Outcome.NOT_DONE, "409: the restart budget is used up")


def hang(world: World) -> None:
    world.values.update(HUNG)
    world.open(make_incident(onset_seconds=world.now - 3))


def heals(world: World, operation: str) -> None:
    world.service.effects[operation] = lambda command: world.values.update(HEALTHY)


def surge(world: World, incident_id: str = "inc-1", **changes: Any) -> None:
    world.values.update(SURGE)
    lead = make_hypothesis(
        "traffic_surge",
        ("set_degradation_level", "shed_load", "page_human"),
        evidence=SURGE_EVIDENCE,
        **changes,
    )
    world.open(make_incident(lead, incident_id, onset_seconds=world.now - 3))


def test_a_hang_is_restarted_and_proven_within_ten_seconds(world: World) -> None:
    hang(world)
    heals(world, "restart_engine")
    world.run(10)
    (action,) = world.ledger.actions()
    assert (action.action, action.state) == ("restart_engine", ActionState.CONFIRMED)
    assert action.finished_seconds is not None
    assert action.executed_seconds is not None
    assert action.finished_seconds - action.executed_seconds <= 6
    assert any("engine_step_age_seconds" in line for line in action.proof)
    assert len(world.service.done) == 1


def test_each_step_tells_a_person_what_and_why(world: World) -> None:
    hang(world)
    heals(world, "restart_engine")
    world.run(10)
    started, executed, proven = world.journal.events()
    assert started.kind is EventKind.ACTION_STARTED
    assert executed.summary == (
        "Restarted the engine of service/llm because the engine makes no progress "
        "(engine_hang, 97%): no progress for 5.2 s; 7 requests wait"
    )
    assert proven.summary.startswith("Proven after")
    assert proven.data["action_id"] == world.ledger.actions()[0].id


def test_it_waits_until_the_cause_is_stable(world: World) -> None:
    hang(world)
    for second in range(6):
        cause = "engine_hang" if second % 2 else "traffic_surge"
        world.open(make_incident(make_hypothesis(cause)))
        world.run(1)
    assert world.ledger.actions() == []


def test_a_restart_that_fails_climbs_to_rollback_and_then_to_a_person(world: World) -> None:
    hang(world)
    world.run(120)
    assert world.states() == [
        ("restart_engine", "failed"),
        ("rollback_model", "failed"),
        ("page_human", "escalated"),
    ]
    page = world.ledger.actions()[0]
    assert "restart_engine (failed), rollback_model (failed)" in page.reason
    assert world.told().count(EventKind.ESCALATED) == 1
    assert [command.operation for command in world.service.done] == [
        "restart_engine",
        "rollback_model",
    ]


def test_what_is_refused_climbs_at_once(world: World) -> None:
    hang(world)
    world.service.results["restart_engine"] = NOT_DONE
    heals(world, "rollback_model")
    world.run(12)
    assert world.states() == [("restart_engine", "failed"), ("rollback_model", "confirmed")]


def test_an_unclear_answer_is_verified_and_not_repeated(world: World) -> None:
    hang(world)
    heals(world, "restart_engine")
    world.service.results["restart_engine"] = ExecutionResult(Outcome.UNKNOWN, "no answer in 15 s")
    world.run(12)
    assert world.states() == [("restart_engine", "confirmed")]
    assert len(world.service.done) == 1


def test_a_rollback_that_makes_things_worse_is_taken_back(world: World) -> None:
    wrong = {**HEALTHY, "canary_output_match": 0.0}
    world.values.update(wrong)
    lead = make_hypothesis(
        "corrupt_output",
        ("rollback_model", "page_human"),
        evidence=(make_evidence("canary_output_match", Direction.DOWN, low=1.0, high=1.0),),
    )
    world.open(make_incident(lead))
    world.service.effects["rollback_model"] = lambda command: world.values.update(engine_up=0.0)
    world.run(60)
    assert world.states() == [("rollback_model", "rolled_back"), ("page_human", "escalated")]
    ((_, undo),) = world.service.undone
    assert undo == {"before": "as it was before rollback_model"}
    assert "which held before the action" in "".join(world.ledger.actions()[1].proof)


def test_a_supervisor_that_recovers_by_itself_is_proven(world: World) -> None:
    hang(world)
    ladder = ("await_supervisor", "restart_engine", "page_human")
    world.open(make_incident(make_hypothesis("engine_crash", ladder)))
    world.run(4)
    world.values.update(HEALTHY)
    world.run(6)
    assert world.states() == [("await_supervisor", "confirmed")]
    assert world.service.done == []


def test_a_supervisor_that_does_not_recover_is_helped(world: World) -> None:
    hang(world)
    heals(world, "restart_engine")
    ladder = ("await_supervisor", "restart_engine", "page_human")
    world.open(make_incident(make_hypothesis("engine_crash", ladder)))
    world.run(24)
    assert world.states() == [("await_supervisor", "failed"), ("restart_engine", "confirmed")]


def test_a_surge_is_degraded_and_undone_once_clear(world: World) -> None:
    surge(world)
    world.service.effects["set_degradation_level"] = lambda command: world.values.update(
        llm_queue_depth=5.0, canary_latency_seconds=0.06
    )
    world.run(10)
    assert world.states() == [("set_degradation_level", "confirmed")]
    assert world.service.done[0].parameters == {"level": 2}
    world.run(30)
    assert world.service.undone == []
    world.values.update(HEALTHY)
    world.resolve()
    world.run(19)
    assert world.service.undone == []
    world.run(3)
    assert world.states() == [("set_degradation_level", "undone")]
    assert world.told()[-1] is EventKind.ACTION_UNDONE


def test_degradation_goes_from_level_two_to_three_and_is_undone_in_reverse(world: World) -> None:
    surge(world)
    world.service.effects["set_degradation_level"] = lambda command: (
        world.values.update(llm_queue_depth=5.0, canary_latency_seconds=0.06)
        if command.parameters["level"] == 3
        else None
    )
    world.run(30)
    assert world.states() == [
        ("set_degradation_level", "failed"),
        ("set_degradation_level", "confirmed"),
    ]
    world.resolve()
    world.run(30)
    assert [command.parameters["level"] for command, _ in world.service.undone] == [3, 2]
    assert {state for _, state in world.states()} == {"undone"}


def test_a_relapse_after_undo_is_held_twice_as_long(world: World) -> None:
    world.service.effects["set_degradation_level"] = lambda command: world.values.update(
        llm_queue_depth=1.0, canary_latency_seconds=0.06
    )
    held = []
    for number in range(3):
        surge(world, f"inc-{number}")
        world.run(10)
        world.values.update(HEALTHY)
        world.resolve(f"inc-{number}")
        resolved = world.now
        while len(world.service.undone) <= number:
            world.run(1)
        held.append(round(world.now - resolved))
    assert held == [20, 40, 80]


def test_an_undo_that_fails_is_tried_again_and_a_person_is_told_once(world: World) -> None:
    surge(world)
    world.service.effects["set_degradation_level"] = lambda command: world.values.update(HEALTHY)
    world.service.undo_results = [NOT_DONE] * 4
    world.run(10)
    world.resolve()
    world.run(400)
    assert world.told().count(EventKind.ESCALATED) == 1
    assert world.states() == [("set_degradation_level", "undone")]
    assert len(world.service.undone) == 5


def test_a_temporary_action_is_tried_without_even_while_its_incident_stays_open(
    tmp_path: Path, policy: Policy
) -> None:
    world = World(tmp_path, policy, max_temporary_seconds=60)
    surge(world)
    world.service.effects["set_degradation_level"] = lambda command: world.values.update(
        llm_queue_depth=1.0, canary_latency_seconds=0.06
    )
    world.run(50)
    assert world.service.undone == []
    world.run(30)
    assert world.states()[0] == ("set_degradation_level", "undone")


def test_a_symptom_that_comes_back_after_the_proof_climbs_on(world: World) -> None:
    hang(world)
    heals(world, "restart_engine")
    world.run(12)
    world.values.update(HUNG)
    heals(world, "rollback_model")
    world.run(25)
    assert world.states() == [("restart_engine", "confirmed"), ("rollback_model", "confirmed")]


def test_approval_runs_only_after_a_yes(tmp_path: Path, policy: Policy) -> None:
    world = World(tmp_path, policy, mode=Mode.APPROVE)
    hang(world)
    heals(world, "restart_engine")
    world.run(10)
    (proposal,) = world.ledger.actions()
    assert proposal.state is ActionState.PROPOSED
    assert world.service.done == []
    world.ledger.approve(proposal.id, "mia", world.now)
    world.run(8)
    (action,) = world.ledger.actions()
    assert (action.state, action.actor) == (ActionState.CONFIRMED, "mia")
    assert world.told() == [
        EventKind.ACTION_PROPOSED,
        EventKind.ACTION_APPROVED,
        EventKind.ACTION_STARTED,
        EventKind.ACTION_EXECUTED,
        EventKind.ACTION_CONFIRMED,
    ]


def test_a_rejection_leaves_the_incident_to_people(tmp_path: Path, policy: Policy) -> None:
    world = World(tmp_path, policy, mode=Mode.APPROVE)
    hang(world)
    world.run(5)
    world.ledger.reject(world.ledger.actions()[0].id, "mia", "I am on it", world.now)
    world.run(60)
    assert world.states() == [("restart_engine", "rejected")]


def test_a_proposal_that_nobody_answers_calls_a_person(tmp_path: Path, policy: Policy) -> None:
    world = World(tmp_path, policy, mode=Mode.APPROVE, approval_expiry_seconds=30)
    hang(world)
    world.run(40)
    assert world.states() == [("restart_engine", "expired"), ("page_human", "escalated")]


def test_a_proposal_ends_with_its_incident(tmp_path: Path, policy: Policy) -> None:
    world = World(tmp_path, policy, mode=Mode.APPROVE)
    hang(world)
    world.run(5)
    world.resolve()
    world.run(2)
    assert world.states() == [("restart_engine", "expired")]
    assert world.service.done == []


def test_a_proposal_ends_when_another_cause_leads(tmp_path: Path, policy: Policy) -> None:
    world = World(tmp_path, policy, mode=Mode.APPROVE)
    hang(world)
    world.run(5)
    world.open(make_incident(make_hypothesis("model_load_failure", ("rollback_model",))))
    world.run(5)
    assert world.states() == [("restart_engine", "expired"), ("rollback_model", "proposed")]


def test_low_confidence_is_proposed_and_done_once_it_rises(world: World) -> None:
    hang(world)
    heals(world, "restart_engine")
    world.open(make_incident(make_hypothesis(confidence=0.4)))
    world.run(8)
    assert world.ledger.actions() == []
    world.run(5)
    assert world.states() == [("restart_engine", "proposed")]
    assert world.service.done == []
    world.open(make_incident(make_hypothesis(confidence=0.9)))
    world.run(10)
    (action,) = world.ledger.actions()
    assert (action.state, action.confidence) == (ActionState.CONFIRMED, 0.9)


def test_dry_run_says_what_it_would_do_and_touches_nothing(tmp_path: Path, policy: Policy) -> None:
    world = World(tmp_path, policy, mode=Mode.DRY_RUN)
    hang(world)
    world.run(60)
    assert world.states() == [("restart_engine", "dry_run")]
    assert world.service.done == []
    assert world.journal.events()[0].summary.startswith("Would be done: Restart the engine")


def test_mode_off_does_nothing_at_all(tmp_path: Path, policy: Policy) -> None:
    world = World(tmp_path, policy, mode=Mode.OFF)
    hang(world)
    world.run(200)
    assert world.journal.events() == []


@pytest.mark.parametrize(
    ("cause", "verdict"),
    [
        ("client_errors", Verdict.FAULT),
        ("collector_down", Verdict.FAULT),
        ("planned_restart", Verdict.NO_FAULT),
        ("no_fault", Verdict.NO_FAULT),
        ("unknown", Verdict.UNKNOWN),
    ],
)
def test_a_cause_without_remedy_is_left_alone(world: World, cause: str, verdict: Verdict) -> None:
    world.values.update(HUNG)
    world.open(make_incident(make_hypothesis(cause, ()), verdict=verdict))
    world.run(200)
    assert world.journal.events() == []


def test_no_fault_is_left_alone_even_with_a_ladder(world: World) -> None:
    world.values.update(HUNG)
    world.open(make_incident(verdict=Verdict.NO_FAULT))
    world.run(60)
    assert world.journal.events() == []


def test_an_unknown_cause_calls_a_person_and_touches_nothing(world: World) -> None:
    world.values.update(HUNG)
    lead = make_hypothesis("unknown", ("restart_engine", "page_human"))
    world.open(make_incident(lead, verdict=Verdict.UNKNOWN))
    world.run(29)
    assert world.states() == []
    world.run(40)
    assert world.states() == [("page_human", "escalated")]
    assert world.service.done == []


def test_the_kill_switch_holds_and_a_person_is_told(world: World) -> None:
    (world.state_dir / "healing.stop").touch()
    hang(world)
    heals(world, "restart_engine")
    world.run(60)
    assert world.service.done == []
    assert world.states() == [("restart_engine", "blocked")]
    assert "healing.stop exists" in world.journal.events()[0].summary
    world.run(100)
    assert world.states()[-1] == ("page_human", "escalated")
    assert world.service.done == []


def test_the_kill_switch_is_asked_again_right_before_the_change(world: World) -> None:
    hang(world)
    switch = world.state_dir / "healing.stop"
    reading = world.service.snapshot

    def snapshot(*arguments: Any) -> Any:
        switch.touch()
        return reading(*arguments)

    world.service.snapshot = snapshot  # type: ignore[method-assign]
    lead = make_hypothesis("engine_hang", ("rollback_model", "page_human"))
    world.open(make_incident(lead))
    world.run(10)
    assert world.states()[0] == ("rollback_model", "failed")
    assert world.service.done == []


def test_old_evidence_is_not_acted_upon(world: World) -> None:
    hang(world)
    world.values.clear()  # the collector is down
    world.idle(5)
    world.run(60)
    assert world.service.done == []
    assert world.states()[0] == ("restart_engine", "blocked")
    assert "nobody acts blind" in world.journal.events()[0].summary


def test_a_second_incident_waits_while_the_entity_is_busy(world: World) -> None:
    hang(world)
    lead = make_hypothesis("engine_slow", ("set_degradation_level",), entity=f"{SERVICE}/replica/0")
    world.open(make_incident(lead, "inc-2"))
    world.run(4)
    assert len(world.service.done) == 1
    assert len([a for a in world.ledger.actions() if a.state is ActionState.EXECUTED]) == 1


def test_a_gpu_cause_can_be_eased_at_the_service(world: World) -> None:
    world.values.update(SURGE)
    lead = make_hypothesis(
        "gpu_thermal_throttle", ("shed_load",), entity="host/box/gpu/0", evidence=SURGE_EVIDENCE
    )
    world.open(make_incident(lead, entity="host/box/gpu/0"))
    world.run(4)
    assert world.service.done[0].entity == SERVICE
    assert world.service.done[0].parameters == {"max_queue": 8}


def test_a_limit_follows_from_the_traffic_before_the_incident(world: World) -> None:
    surge(world)
    lead = make_hypothesis("gpu_memory_pressure", ("limit_requests",), evidence=SURGE_EVIDENCE)
    world.open(make_incident(lead, onset_seconds=world.now - 1))
    world.run(4)
    assert world.service.done[0].parameters == {"requests_per_second": 6.0}


def test_galen_does_not_heal_what_it_did_itself(world: World) -> None:
    gpu = {"gpu_power_usage_watts": 200.0, "gpu_available": 1.0, "gpu_throttle_thermal": 1.0}
    evidence = (make_evidence("gpu_throttle_thermal", low=0.0, high=0.0),)
    world.values.update(gpu)
    hot = make_hypothesis(
        "gpu_thermal_throttle", ("lower_power_limit",), entity="host/box/gpu/0", evidence=evidence
    )
    # The fake history has one entity only, so the GPU is a part of it here.
    world.gpu.entities = [f"{SERVICE}/gpu/0"]
    hot = hot.model_copy(update={"entity": f"{SERVICE}/gpu/0"})
    world.open(make_incident(hot, entity=f"{SERVICE}/gpu/0"))
    world.gpu.effects["lower_power_limit"] = lambda command: world.values.update(
        gpu_throttle_thermal=0.0
    )
    world.run(10)
    assert world.states() == [("lower_power_limit", "confirmed")]
    assert world.gpu.done[0].parameters == {"watts": 100.0}
    cap = hot.model_copy(update={"cause": "gpu_power_cap", "remedies": ("restore_power_limit",)})
    world.open(make_incident(cap, "inc-2", entity=f"{SERVICE}/gpu/0"))
    world.run(60)
    assert world.states() == [
        ("lower_power_limit", "confirmed"),
        ("restore_power_limit", "blocked"),
    ]
    world.resolve("inc-1")
    world.run(70)  # the incident that only mirrors the action does not keep it standing
    assert world.states()[0] == ("lower_power_limit", "undone")


def test_an_unknown_remedy_is_for_a_person(world: World) -> None:
    hang(world)
    world.open(make_incident(make_hypothesis("mystery", ("exorcise", "restart_engine"))))
    world.run(10)
    assert world.states() == [("page_human", "escalated")]


def test_recovery_verifies_a_young_intent_and_does_not_repeat_it(world: World) -> None:
    hang(world)
    heals(world, "restart_engine")
    world.healer._runner._workers = Stuck()  # the process dies between intent and execution
    world.run(4)
    assert world.states() == [("restart_engine", "intent")]
    world.healer = world.new_healer()
    world.run(1)
    assert world.states() == [("restart_engine", "executed")]
    assert "may or may not have happened" in world.journal.events()[-1].summary
    world.values.update(HEALTHY)  # it did happen
    world.run(8)
    assert world.states() == [("restart_engine", "confirmed")]
    assert world.service.done == []


def test_recovery_gives_up_an_old_intent(world: World) -> None:
    hang(world)
    world.healer._runner._workers = Stuck()
    world.run(4)
    world.resolve()
    world.idle(300)
    world.healer = world.new_healer()
    world.run(2)
    assert world.states() == [("restart_engine", "failed")]
    assert "Given up" in world.journal.events()[-1].summary
    assert world.service.done == []


def test_one_broken_incident_does_not_keep_another_from_being_healed(world: World) -> None:
    hang(world)
    heals(world, "restart_engine")
    broken = Incident.model_construct(
        id="inc-0", state=IncidentState.OPEN, hypotheses=("not a hypothesis",), entity=SERVICE
    )
    world.incidents = {"inc-0": broken, **world.incidents}
    world.run(12)
    assert ("restart_engine", "confirmed") in world.states()


class Stuck:
    """Workers whose process ends before the job begins."""

    def submit(self, *_: Any, **__: Any) -> Any:
        return Future()

    def shutdown(self, **_: Any) -> None:
        pass
