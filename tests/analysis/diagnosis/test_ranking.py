from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.detection.contract import SignalState
from analysis.diagnosis.causes import CauseCatalogue, Observation, Role, catalogue
from analysis.diagnosis.evidence import Observed
from analysis.diagnosis.ranking import Diagnoser, Diagnosis
from analysis.diagnosis.settings import DiagnosisSettings
from analysis.findings import Direction, Severity, Verdict
from collectors.contract import SeriesKey

Scenarios = Mapping[str, Callable[[], Any]]
CAUSES = sorted(catalogue().causes)


def diagnose(world: Any, causes: CauseCatalogue | None = None) -> Diagnosis:
    detections = world.detections()
    scope = {key.entity for key in detections.states}
    return Diagnoser(DiagnosisSettings(), causes).diagnose(1000.0, detections, scope)


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_ranks_first_in_its_scenario(cause: str, scenarios: Scenarios) -> None:
    found = diagnose(scenarios[cause]())
    assert found.leading.cause == cause
    assert found.verdict is catalogue().causes[cause].verdict
    assert len(found.hypotheses) >= 5
    confidences = [each.confidence for each in found.hypotheses]
    assert confidences == sorted(confidences, reverse=True)
    assert found.margin == pytest.approx(confidences[0] - confidences[1])
    assert [each.rank for each in found.hypotheses] == list(range(1, len(confidences) + 1))


@pytest.mark.parametrize("towards_half", [0.0, 0.15, 0.33])
def test_ranking_does_not_hang_on_the_exact_probabilities(
    towards_half: float, scenarios: Scenarios
) -> None:
    """Every probability of the catalogue moved towards one half, by up to a third of the way."""

    def moved(probability: float, floor: float = 0.0) -> float:
        log_odds = math.log(probability / (1 - probability)) * (1 - towards_half)
        return max(floor, 1 / (1 + math.exp(-log_odds)))

    bundled = catalogue()
    weakened = CauseCatalogue(
        observations={
            name: each.model_copy(update={"background": moved(each.background)})
            for name, each in bundled.observations.items()
        },
        causes={
            name: cause.model_copy(
                update={
                    "expects": {key: moved(value) for key, value in cause.expects.items()},
                    "counters": {key: moved(value) for key, value in cause.counters.items()},
                }
            )
            for name, cause in bundled.causes.items()
        },
    )
    ranks = {
        name: next((h.rank for h in diagnose(make(), weakened).hypotheses if h.cause == name), 99)
        for name, make in scenarios.items()
    }
    assert [name for name, rank in ranks.items() if rank > 2] == []
    first = sum(rank == 1 for rank in ranks.values()) / len(ranks)
    assert first >= 0.85


def test_an_ordinary_day_is_no_fault(world: Any) -> None:
    found = diagnose(world)
    assert found.verdict is Verdict.NO_FAULT
    assert found.leading.cause == "no_fault"


@pytest.mark.parametrize("factor", [0.2, 0.5, 1.5, 2.5])
def test_load_that_changes_without_symptoms_is_no_fault(world: Any, factor: float) -> None:
    world.set(
        llm_requests_per_second=12 * factor,
        llm_tokens_per_second=600 * factor,
        llm_active_requests=4 * factor,
    )
    assert diagnose(world).verdict is Verdict.NO_FAULT


def test_client_errors_ask_for_no_action(scenarios: Scenarios) -> None:
    leading = diagnose(scenarios["client_errors"]()).leading
    assert leading.action is None
    assert leading.remedies == ()


@pytest.mark.parametrize(
    ("base", "changes", "wanted"),
    [
        # A hang under a surge is still a hang: steps stopped.
        ("traffic_surge", {"engine_step_age_seconds": 8, "engine_state": 4,
                           "engine_steps_per_second": 0, "llm_tokens_per_second": 0}, "engine_hang"),
        # The supervisor killed the worker: why it did, not that it did.
        ("engine_hang", {"engine_hang_kills": 1, "engine_up": 0, "engine_state": 5}, "engine_hang"),
        # A crash whose requests wait for the new worker has an old step too.
        ("engine_crash", {"engine_step_age_seconds": 4, "llm_queue_depth": 20}, "engine_crash"),
        # A worker that dies because the model does not load.
        ("engine_crash", {"engine_load_failures": 1}, "model_load_failure"),
        # More requests with normal steps against the same queue with slow steps.
        ("engine_slow", {"llm_queue_depth": 25, "llm_slot_usage_ratio": 1.0}, "engine_slow"),
        # A slow engine lets requests fail; that alone is not a crash.
        ("engine_slow", {"llm_error_ratio": 0.1}, "engine_slow"),
        # Corruption that makes a step fail its requests.
        ("corrupt_output", {"llm_error_ratio": 0.2}, "corrupt_output"),
    ],
)  # fmt: skip
def test_hard_pairs(
    base: str, changes: dict[str, float], wanted: str, scenarios: Scenarios
) -> None:
    assert diagnose(scenarios[base]().set(**changes)).leading.cause == wanted


def test_a_hot_gpu_with_a_lowered_limit_is_a_cap_only_without_the_thermal_bit(
    scenarios: Scenarios,
) -> None:
    hot = diagnose(scenarios["gpu_thermal_throttle"]())
    capped = diagnose(scenarios["gpu_power_cap"]())
    assert (hot.leading.cause, capped.leading.cause) == ("gpu_thermal_throttle", "gpu_power_cap")
    assert hot.leading.entity == capped.leading.entity == "host/box1/gpu/0"


def test_absent_metrics_are_unknown_and_not_healthy(scenarios: Scenarios) -> None:
    found = diagnose(scenarios["collector_down"]())
    assert found.leading.entity == "collector/service-llm"
    told = {each.signal for h in found.hypotheses for each in (*h.evidence, *h.against)}
    assert not any(signal.startswith(("llm_", "engine_")) for signal in told)


def test_weights_add_up_to_the_log_odds_where_all_is_measured(scenarios: Scenarios) -> None:
    settings = DiagnosisSettings(listed_weight_nats=0.0)
    diagnoser = Diagnoser(settings)
    detections = scenarios["engine_hang"]().detections()
    scope = {key.entity for key in detections.states}
    leading = diagnoser.diagnose(1000.0, detections, scope).leading
    told = sum(each.weight for each in (*leading.evidence, *leading.against))
    prior = diagnoser.causes.log_prior(leading.cause)
    # The reasons "this is as it should be" are listed three at most and capped as a whole.
    gap = leading.log_odds - prior - told
    assert 0 <= gap <= settings.absent_counter_cap_nats


def test_an_outage_is_critical_whatever_leads(scenarios: Scenarios) -> None:
    assert diagnose(scenarios["client_errors"]()).severity is Severity.WARNING
    outage = scenarios["client_errors"]().set(canary_success=0)
    assert diagnose(outage).severity is Severity.CRITICAL


def test_evidence_speaks_in_words(scenarios: Scenarios) -> None:
    leading = diagnose(scenarios["engine_hang"]()).leading
    words = {each.signal: each.statement for each in leading.evidence}
    assert (
        words["llm_queue_depth"]
        == "queue depth 31 requests, normally 0 to 4 requests, since 00:16:30"
    )
    assert words["engine_state"].startswith("engine state stalled")


def test_a_change_that_comes_long_after_the_symptom_weighs_less(world: Any) -> None:
    def log_odds(internal_onset: float) -> float:
        made = type(world)().set(990.0, llm_request_latency_seconds=4.0)
        made.set(internal_onset, engine_step_seconds=0.08)
        found = diagnose(made)
        return next(h.log_odds for h in found.hypotheses if h.cause == "engine_slow")

    together, soon, late = log_odds(990.0), log_odds(992.0), log_odds(1040.0)
    assert together == soon > late


def test_the_gpu_that_fails_is_named(world: Any) -> None:
    detections = world.set(990.0, "host/box1/gpu/0", gpu_xid=79, gpu_available=0).detections()
    other = {
        SeriesKey("host/box1/gpu/1", key.signal): replace(
            world.__class__().state(key.entity, key.signal),
            key=SeriesKey("host/box1/gpu/1", key.signal),
        )
        for key in detections.states
        if key.entity == "host/box1/gpu/0"
    }
    both = replace(detections, states={**other, **detections.states})
    scope = {key.entity for key in both.states}
    found = Diagnoser(DiagnosisSettings()).diagnose(1000.0, both, scope)
    assert (found.leading.cause, found.leading.entity) == ("gpu_xid_fatal", "host/box1/gpu/0")


# --- properties ------------------------------------------------------------------------------------

OBSERVATION_NAMES = sorted(catalogue().observations)


def observed(observation: Observation, strength: float | None) -> Observed:
    if strength is None:
        return Observed(observation, None)
    key = SeriesKey("service/llm", observation.signal)
    state = SignalState(
        key, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0, Direction.UP, 1000.0, True, True
    )  # fmt: skip
    return Observed(observation, strength, state)


strengths = st.one_of(st.none(), st.floats(0, 1))


@given(
    cause=st.sampled_from([name for name in CAUSES if catalogue().causes[name].expects]),
    given_strengths=st.lists(
        strengths, min_size=len(OBSERVATION_NAMES), max_size=len(OBSERVATION_NAMES)
    ),
    data=st.data(),
)
def test_more_support_never_lowers_a_cause(
    cause: str, given_strengths: list[float | None], data: st.DataObject
) -> None:
    bundled = catalogue()
    entry = bundled.causes[cause]
    answers = {
        name: observed(bundled.observations[name], strength)
        for name, strength in zip(OBSERVATION_NAMES, given_strengths, strict=True)
    }
    name = data.draw(st.sampled_from(sorted(entry.expects)))
    before = answers[name].strength
    stronger = data.draw(st.floats(before or 0.0, 1.0)) if before is not None else 1.0
    more = {**answers, name: observed(bundled.observations[name], stronger)}
    diagnoser = Diagnoser(DiagnosisSettings())
    first_symptom = 1000.0
    low = diagnoser.score(entry, answers, first_symptom=first_symptom).log_odds
    high = diagnoser.score(entry, more, first_symptom=first_symptom).log_odds
    assert high >= low - 1e-9


@given(
    cause=st.sampled_from([name for name in CAUSES if catalogue().causes[name].counters]),
    given_strengths=st.lists(
        strengths, min_size=len(OBSERVATION_NAMES), max_size=len(OBSERVATION_NAMES)
    ),
    data=st.data(),
)
def test_more_that_speaks_against_never_raises_a_cause(
    cause: str, given_strengths: list[float | None], data: st.DataObject
) -> None:
    bundled = catalogue()
    entry = bundled.causes[cause]
    answers = {
        name: observed(bundled.observations[name], strength)
        for name, strength in zip(OBSERVATION_NAMES, given_strengths, strict=True)
    }
    name = data.draw(st.sampled_from(sorted(entry.counters)))
    more = {**answers, name: observed(bundled.observations[name], 1.0)}
    diagnoser = Diagnoser(DiagnosisSettings())
    low = diagnoser.score(entry, more).log_odds
    high = diagnoser.score(entry, answers).log_odds
    assert low <= high + 1e-9


def test_roles_are_those_that_grouping_relies_on() -> None:
    assert catalogue().observations["queue_up"].role is Role.SYMPTOM
    assert catalogue().observations["requests_up"].role is Role.LOAD
