from __future__ import annotations

import pytest

from analysis.findings import Direction, Evidence
from analysis.history import History
from collectors.contract import Sample
from healing.actions import ActionState
from healing.planning import Step, identity, make_plan, open_steps, stale_evidence
from healing.policy import Policy
from healing.wording import because_words, done_words, plan_words
from tests.healing.worlds import (
    SERVICE,
    FakeExecutor,
    make_action,
    make_evidence,
    make_hypothesis,
    make_incident,
)

GPU = "host/box/gpu/0"
NOW = 1000.0


def history(**last_seen: float) -> History:
    """A history in which each signal of the service was last seen at a time."""
    made = History(capacity_ticks=200)
    for second in range(950, int(NOW) + 1):
        made.append(
            float(second),
            [Sample(second, SERVICE, name, 2.0) for name, at in last_seen.items() if second <= at],
        )
    return made


def steps(policy: Policy, *past: tuple[str, ActionState], ladder: tuple[str, ...]) -> list[str]:
    rows = [
        make_action(id=f"act-{number}", action=name, state=state, started_seconds=1.0)
        for number, (name, state) in enumerate(past)
    ]
    return [
        f"{step.remedy.name}#{step.attempt}@{step.rung}"
        for step in open_steps(policy, make_hypothesis("x", ladder), rows)
    ]


def test_rungs_that_were_tried_are_left_behind(policy: Policy) -> None:
    ladder = ("restart_engine", "set_degradation_level", "page_human")
    failed, undone = ActionState.FAILED, ActionState.UNDONE
    assert steps(policy, ladder=ladder) == ["restart_engine#1@0", "set_degradation_level#1@1"]
    tried = ("restart_engine", failed)
    assert steps(policy, tried, ladder=ladder) == ["set_degradation_level#1@1"]
    once = ("set_degradation_level", failed)
    assert steps(policy, tried, once, ladder=ladder) == ["set_degradation_level#2@1"]
    assert steps(policy, tried, once, once, ladder=ladder) == []
    back = ("set_degradation_level", undone)
    assert steps(policy, tried, back, back, ladder=ladder) == ["set_degradation_level#1@1"]


def test_nothing_follows_the_call_for_a_person_or_an_unknown_remedy(policy: Policy) -> None:
    assert steps(policy, ladder=("page_human", "restart_engine")) == []
    assert steps(policy, ladder=("exorcise", "restart_engine")) == []


def test_the_cause_is_acted_on_where_it_lives_or_where_it_shows(policy: Policy) -> None:
    step = Step(policy.actions["restart_engine"], 0, 1)
    service = FakeExecutor([SERVICE, "service/other"])

    def target(entity: str, incident_entity: str, *evidence: Evidence) -> str | None:
        lead = make_hypothesis(entity=entity, evidence=evidence)
        incident = make_incident(lead, entity=incident_entity)
        return make_plan(step, lead, incident, {"service": service}, history()).entity

    assert target("service/other/replica/1", SERVICE) == "service/other"
    assert target(GPU, SERVICE) == SERVICE
    assert target(GPU, GPU, make_evidence("llm_queue_depth")) == SERVICE
    assert target(GPU, GPU) is None
    service.entities = [SERVICE]
    assert target(GPU, GPU) == SERVICE
    service.entities = []
    assert target(SERVICE, SERVICE) is None


def test_a_limit_follows_the_draw_of_now(policy: Policy) -> None:
    made = History(capacity_ticks=100)
    for second in range(950, 1001):
        watts = 300.0 if second < 990 else 180.0
        made.append(second, [Sample(second, GPU, "gpu_power_usage_watts", watts)])
    lead = make_hypothesis("gpu_thermal_throttle", entity=GPU)
    step = Step(policy.actions["lower_power_limit"], 0, 1)
    executors = {"gpu": FakeExecutor([GPU], name="gpu")}
    plan = make_plan(step, lead, make_incident(lead, onset_seconds=990), executors, made)
    assert plan.parameters == {"watts": 90.0}
    assert plan.missing_parameter == ""
    blind = make_plan(step, lead, make_incident(lead), executors, history())
    assert "gpu_power_usage_watts, whose present value is not known" in blind.missing_parameter
    words = plan_words(step.remedy, GPU, blind.parameters)
    assert words == f"Lower the power limit of {GPU} to an unknown number of W"


@pytest.mark.parametrize(
    ("evidence", "seen", "stale"),
    [
        ([make_evidence("engine_up")], {"engine_up": NOW}, False),
        ([make_evidence("engine_up")], {"engine_up": NOW - 5}, False),
        ([make_evidence("engine_up")], {"engine_up": NOW - 6}, True),
        ([make_evidence("engine_up")], {}, True),
        ([], {"engine_up": NOW}, True),
        ([make_evidence("engine_up", weight=-1.0)], {"engine_up": NOW}, True),
        # A ratio exists only while users ask: what counts is whether its source still delivers.
        ([make_evidence("llm_error_ratio")], {"engine_up": NOW}, False),
        ([make_evidence("llm_error_ratio")], {"engine_up": NOW - 9}, True),
        ([make_evidence("llm_error_ratio")], {"canary_success": NOW}, True),
        ([make_evidence("engine_up", Direction.ABSENT)], {"llm_queue_depth": NOW}, False),
        ([make_evidence("engine_up", Direction.ABSENT)], {}, True),
        # Half of the weight has to be fresh.
        ([make_evidence("engine_up", weight=1.0), make_evidence("llm_queue_depth", weight=1.0)],
         {"engine_up": NOW}, False),
        ([make_evidence("engine_up", weight=0.9), make_evidence("llm_queue_depth", weight=1.0)],
         {"engine_up": NOW}, True),
    ],
)  # fmt: skip
def test_nobody_acts_on_old_evidence(
    evidence: list[Evidence], seen: dict[str, float], stale: bool
) -> None:
    told = stale_evidence(evidence, history(**seen), NOW, 5.0)
    assert bool(told) is stale


def test_words_are_plain_and_short() -> None:
    statement = "first\nline \x1b[31m" + "x" * 400
    lead = make_hypothesis(
        title="  KV cache\nis full ", evidence=(make_evidence("engine_up", statement=statement),)
    )
    words = because_words(lead)
    assert words.startswith("because KV cache is full (engine_hang, 97%): first line")
    assert "\n" not in words
    assert "\x1b" not in words
    assert len(words) < 250


def test_parameters_are_shown(policy: Policy) -> None:
    remedy = policy.actions["set_degradation_level"]
    assert done_words(remedy, SERVICE, {"level": 2}) == f"Set {SERVICE} to degradation level 2"
    odd = policy.actions["restart_engine"]
    assert plan_words(odd, "$level", {}) == "Restart the engine of $level"


def test_an_identity_follows_from_its_key() -> None:
    assert identity("a") == identity("a") != identity("b")
