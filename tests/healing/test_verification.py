from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from analysis.findings import Direction, Evidence
from analysis.history import History
from collectors.contract import Sample
from healing.policy import Policy, Verification
from healing.verification import Proof, Subject, VerificationResult, Verifier
from tests.healing.worlds import HEALTHY, HUNG, SERVICE, make_evidence

EXECUTED = 1000.0
ONSET = 990.0
RESTART = Verification(
    required=("engine_up", "canary_success", "evidence"),
    optional=("step_age",),
    settle_seconds=1,
    hold_seconds=3,
    deadline_seconds=20,
)
QUEUE = make_evidence("llm_queue_depth", low=0.0, high=2.0)


class Timeline:
    """A history that a test writes second by second, and asks the verifier about."""

    def __init__(self, policy: Policy) -> None:
        self.verifier = Verifier(policy)
        self.history = History(capacity_ticks=2000)
        self.now = 880.0

    def add(
        self, seconds: int, values: Mapping[str, float], *, every: Mapping[str, int] | None = None
    ) -> Timeline:
        for _ in range(seconds):
            self.now += 1
            self.history.append(
                self.now,
                [
                    Sample(self.now, SERVICE, name, value)
                    for name, value in values.items()
                    if int(self.now) % (every or {}).get(name, 1) == 0
                ],
            )
        return self

    def subject(
        self, evidence: Sequence[Evidence] = (QUEUE,), verification: Verification = RESTART
    ) -> Subject:
        return Subject(SERVICE, verification, evidence, ONSET, EXECUTED, EXECUTED)

    def verify(
        self, evidence: Sequence[Evidence] = (QUEUE,), verification: Verification = RESTART
    ) -> VerificationResult:
        return self.verifier.verify(self.subject(evidence, verification), self.history, self.now)


@pytest.fixture
def hung(policy: Policy) -> Timeline:
    """110 healthy seconds, then a hang of ten up to the moment of the action."""
    return Timeline(policy).add(110, HEALTHY).add(10, HUNG)


def test_it_is_proven_when_all_has_held_for_the_hold_time(hung: Timeline) -> None:
    hung.add(1, HEALTHY)
    verdicts = []
    for _ in range(4):
        verdicts.append(hung.verify().proof)
        hung.add(1, HEALTHY)
    assert verdicts == [Proof.PENDING, Proof.PENDING, Proof.PENDING, Proof.CONFIRMED]
    assert "llm_queue_depth 0 requests (normal up to 2 requests" in "; ".join(
        hung.verify().statements
    )


def test_a_break_starts_the_hold_time_again(hung: Timeline) -> None:
    hung.add(3, HEALTHY).add(1, {**HEALTHY, "canary_success": 0.0}).add(3, HEALTHY)
    assert hung.verify().proof is Proof.PENDING
    hung.add(1, HEALTHY)
    assert hung.verify().proof is Proof.CONFIRMED


def test_a_slow_signal_counts_from_its_first_good_value(hung: Timeline) -> None:
    hung.add(6, HEALTHY, every={"canary_success": 2})
    assert hung.verify().proof is Proof.CONFIRMED


def test_good_values_from_before_the_action_are_no_proof(policy: Policy) -> None:
    timeline = Timeline(policy).add(121, HEALTHY)
    assert timeline.verify().proof is Proof.PENDING


@pytest.mark.parametrize("missing", ["engine_up", "canary_success", "llm_queue_depth"])
def test_missing_data_is_no_proof(hung: Timeline, missing: str) -> None:
    rest = {name: value for name, value in HEALTHY.items() if name != missing}
    hung.add(25, rest)
    result = hung.verify()
    assert result.proof is Proof.FAILED
    assert f"{missing}: no value since the action" in result.missing


def test_a_series_that_falls_silent_is_no_proof(hung: Timeline) -> None:
    hung.add(2, HEALTHY).add(10, {"engine_up": 1.0})
    assert hung.verify().proof is Proof.PENDING
    assert "canary_success" in hung.verify().missing


def test_nothing_at_all_is_no_proof(hung: Timeline) -> None:
    hung.add(25, {})
    assert hung.verify().proof is Proof.FAILED


def test_an_optional_check_counts_where_it_is_measured(hung: Timeline) -> None:
    without = {n: v for n, v in HEALTHY.items() if n != "engine_step_age_seconds"}
    hung.add(5, without)
    assert hung.verify().proof is Proof.CONFIRMED
    hung.add(5, {**HEALTHY, "engine_step_age_seconds": 9.0})
    assert hung.verify().proof is Proof.PENDING


def test_it_fails_at_the_deadline_and_says_what_is_missing(hung: Timeline) -> None:
    hung.add(19, HUNG)
    assert hung.verify().proof is Proof.PENDING
    hung.add(1, HUNG)
    result = hung.verify()
    assert result.proof is Proof.FAILED
    assert "canary_success 0 % (at least 99 %, not so for" in result.missing
    assert result.worse == ()


def test_what_the_action_broke_is_named(hung: Timeline) -> None:
    hung.add(20, {**HUNG, "engine_up": 0.0})
    (worse,) = hung.verify().worse
    assert worse.startswith("engine_up no (has to be yes")


def test_three_quarters_of_the_evidence_has_to_be_gone(hung: Timeline) -> None:
    small = make_evidence("engine_step_age_seconds", high=0.3, weight=0.6)
    large = make_evidence("llm_queue_depth", high=2.0, weight=2.0)
    only = RESTART.model_copy(update={"required": ("evidence",), "optional": ()})
    hung.add(6, {**HEALTHY, "engine_step_age_seconds": 5.0})
    assert hung.verify([small, large], only).proof is Proof.CONFIRMED
    heavier = small.model_copy(update={"weight": 0.8})
    assert hung.verify([heavier, large], only).proof is Proof.PENDING


@pytest.mark.parametrize(
    "item",
    [
        make_evidence("llm_requests_per_second", high=1.0),
        make_evidence("model_version_change", Direction.EVENT),
        make_evidence("llm_queue_depth", Direction.NORMAL, high=-1.0),
        make_evidence("llm_queue_depth", high=-100.0, weight=-1.0),
    ],
    ids=["demand", "event", "normal", "against"],
)
def test_what_no_action_can_change_is_not_asked_for(hung: Timeline, item: Evidence) -> None:
    hung.add(6, HEALTHY)
    assert hung.verify([QUEUE, item]).proof is Proof.CONFIRMED


def test_only_and_ignored_signals(hung: Timeline) -> None:
    bad = make_evidence("engine_step_age_seconds", high=-10.0, weight=9.0)
    evidence = [QUEUE, bad]
    required = {"required": ("evidence",), "optional": ()}
    hung.add(6, HEALTHY)
    assert hung.verify(evidence, RESTART.model_copy(update=required)).proof is Proof.PENDING
    for changes in (
        {"only_signals": frozenset({"llm_queue_depth"})},
        {"ignore_signals": frozenset({"engine_step_age_seconds"})},
    ):
        wanted = RESTART.model_copy(update={**required, **changes})
        assert hung.verify(evidence, wanted).proof is Proof.CONFIRMED


def test_evidence_of_events_alone_is_no_proof_by_itself(hung: Timeline) -> None:
    only = RESTART.model_copy(update={"required": ("evidence",), "optional": ()})
    hung.add(25, HEALTHY)
    event = make_evidence("model_version_change", Direction.EVENT)
    assert hung.verify([event], only).proof is Proof.FAILED
    assert hung.verify([event]).proof is Proof.CONFIRMED


def test_without_a_band_the_time_before_the_incident_tells_what_is_normal(hung: Timeline) -> None:
    bare = make_evidence("canary_latency_seconds", low=None, high=None, baseline=None)
    hung.add(5, {**HEALTHY, "canary_latency_seconds": 0.5})
    assert hung.verify([bare]).proof is Proof.PENDING
    hung.add(5, HEALTHY)
    assert hung.verify([bare]).proof is Proof.CONFIRMED


def test_what_was_absent_has_to_arrive_again(hung: Timeline) -> None:
    gone = make_evidence("llm_tokens_per_second", Direction.ABSENT)
    hung.add(5, HEALTHY)
    assert hung.verify([gone]).proof is Proof.PENDING
    hung.add(5, {**HEALTHY, "llm_tokens_per_second": 0.0})
    assert hung.verify([gone]).proof is Proof.CONFIRMED


def test_a_sliding_window_does_not_count_until_it_has_passed(hung: Timeline) -> None:
    lagging = make_evidence("llm_request_latency_seconds", high=0.5, weight=9.0)
    slow = {**HEALTHY, "llm_request_latency_seconds": 5.0}
    hung.add(5, slow)
    assert hung.verify([QUEUE, lagging]).proof is Proof.CONFIRMED
    hung.add(9, slow)
    assert hung.verify([QUEUE, lagging]).proof is Proof.PENDING


def test_a_sliding_window_alone_is_waited_for(hung: Timeline) -> None:
    lagging = make_evidence("llm_request_latency_seconds", high=0.5)
    hung.add(11, HEALTHY)
    assert hung.verify([lagging]).proof is Proof.PENDING
    hung.add(5, HEALTHY)
    assert hung.verify([lagging]).proof is Proof.CONFIRMED


def test_under_little_traffic_the_window_is_the_wide_one(hung: Timeline) -> None:
    lagging = make_evidence("llm_request_latency_seconds", high=0.5, weight=9.0)
    hung.add(18, {**HEALTHY, "llm_requests_per_second": 0.1, "llm_request_latency_seconds": 5.0})
    assert hung.verify([QUEUE, lagging]).proof is Proof.CONFIRMED


def test_a_ratio_that_nobody_asks_for_is_not_missed(hung: Timeline) -> None:
    ratio = make_evidence("llm_error_ratio", high=0.01, weight=9.0)
    quiet = {n: v for n, v in HEALTHY.items() if n != "llm_error_ratio"}
    hung.add(15, quiet)
    assert hung.verify([QUEUE, ratio]).proof is Proof.CONFIRMED


def test_relief_is_a_share_of_the_excess(policy: Policy) -> None:
    timeline = Timeline(policy).add(110, HEALTHY).add(10, {**HEALTHY, "llm_queue_depth": 62.0})
    wanted = RESTART.model_copy(
        update={"required": ("evidence",), "optional": (), "relief_share": 0.5}
    )
    timeline.add(5, {**HEALTHY, "llm_queue_depth": 40.0})
    assert timeline.verify([QUEUE], wanted).proof is Proof.PENDING
    timeline.add(5, {**HEALTHY, "llm_queue_depth": 32.0})
    assert timeline.verify([QUEUE], wanted).proof is Proof.CONFIRMED


def test_one_of_several_replicas_that_is_not_well_spoils_the_proof(hung: Timeline) -> None:
    for _ in range(6):
        hung.now += 1
        samples = [Sample(hung.now, SERVICE, name, value) for name, value in HEALTHY.items()]
        samples.append(Sample(hung.now, f"{SERVICE}/replica/1", "engine_up", 0.0))
        hung.history.append(hung.now, samples)
    assert hung.verify().proof is Proof.PENDING


def test_a_relapse_is_a_failure_that_lasts(hung: Timeline) -> None:
    hung.add(6, HEALTHY)
    hung.add(9, HUNG)
    assert not hung.verifier.is_relapse(hung.subject(), hung.history, hung.now)
    hung.add(2, HUNG)
    assert hung.verifier.is_relapse(hung.subject(), hung.history, hung.now)
    hung.add(1, HEALTHY)
    assert not hung.verifier.is_relapse(hung.subject(), hung.history, hung.now)


def test_blind_spots_are_the_required_checks_without_data(hung: Timeline) -> None:
    assert hung.verifier.blind_spots(SERVICE, RESTART, hung.history) == ()
    assert hung.verifier.blind_spots("service/other", RESTART, hung.history) == (
        "engine_up",
        "canary_success",
    )
    hung.add(10, {"engine_up": 1.0})
    assert hung.verifier.blind_spots(SERVICE, RESTART, hung.history) == ("canary_success",)


def test_not_a_number_is_missing(hung: Timeline) -> None:
    hung.add(25, {**HEALTHY, "canary_success": np.nan})
    assert hung.verify().proof is Proof.FAILED
