from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from analysis.diagnosis.causes import catalogue
from analysis.diagnosis.memory import EvidenceMemory
from analysis.diagnosis.ranking import Diagnoser
from analysis.diagnosis.settings import DiagnosisSettings, MemorySettings
from analysis.findings import Incident, IncidentState, Severity, Verdict
from analysis.incident_changes import ChangeKind, IncidentChange
from analysis.incidents import IncidentTracker
from analysis.settings import IncidentSettings

Scenarios = Mapping[str, Callable[[], Any]]
GPU = "host/box1/gpu/0"


class Course:
    """Plays worlds tick by tick and keeps what the tracker told."""

    def __init__(self, **settings: float) -> None:
        self.now = 1000.0
        self.changes: list[tuple[float, IncidentChange]] = []
        self.refreshed: list[Incident] = []
        self.tracker = IncidentTracker(
            IncidentSettings.model_validate(settings),
            Diagnoser(DiagnosisSettings()),
            EvidenceMemory(MemorySettings(), catalogue()),
        )

    def play(self, world: Any, ticks: int) -> list[IncidentChange]:
        told: list[IncidentChange] = []
        for _ in range(ticks):
            found = self.tracker.tick(world.detections(self.now))
            told += found.changes
            self.changes += [(self.now, change) for change in found.changes]
            self.refreshed += found.refreshed
            # Whoever writes down what is refreshed after what has changed would open it again.
            still_open = {incident.id for incident in found.incidents}
            assert {incident.id for incident in found.refreshed} <= still_open
            self.now += 1.0
        return told

    @property
    def kinds(self) -> list[ChangeKind]:
        return [change.kind for _, change in self.changes]


def test_an_incident_opens_once_and_ends_once(world: Any, scenarios: Scenarios) -> None:
    course = Course()
    course.play(world, 5)
    opened = course.play(scenarios["engine_hang"](), 20)
    assert [each.kind for each in opened] == [ChangeKind.OPENED]
    assert opened[0].data["cause"] == "engine_hang"
    assert opened[0].data["hypotheses"][0]["cause"] == "engine_hang"
    assert opened[0].incident.severity is Severity.CRITICAL
    assert "queue" in opened[0].summary or "step" in opened[0].summary
    ended = course.play(world, 20)
    assert [each.kind for each in ended] == [ChangeKind.RESOLVED]
    assert ended[0].incident.id == opened[0].incident.id
    assert course.tracker.open_incidents == ()


@pytest.mark.parametrize(
    "cause", ["engine_hang", "engine_crash", "traffic_surge", "client_errors", "collector_down"]
)
def test_an_incident_opens_within_seconds(cause: str, world: Any, scenarios: Scenarios) -> None:
    course = Course()
    course.play(world, 3)
    start = course.now
    course.play(scenarios[cause](), 10)
    assert course.kinds == [ChangeKind.OPENED]
    assert course.changes[0][0] - start <= 4.0


def test_it_ends_only_after_the_symptoms_have_been_gone_for_long_enough(
    world: Any, scenarios: Scenarios
) -> None:
    course = Course()
    course.play(scenarios["engine_slow"](), 5)
    course.play(world, 6)
    course.play(scenarios["engine_slow"](), 1)
    assert course.kinds == [ChangeKind.OPENED]
    course.play(world, 8)
    assert course.kinds == [ChangeKind.OPENED]
    course.play(world, 1)
    assert course.kinds == [ChangeKind.OPENED, ChangeKind.RESOLVED]


@pytest.mark.parametrize("ticks", range(6, 10))
def test_what_is_seen_as_it_ends_does_not_open_it_again(
    ticks: int, world: Any, scenarios: Scenarios
) -> None:
    """A busy host holds no surge open, and is one more anomaly of its incident."""
    course = Course(refresh_seconds=0)
    course.play(scenarios["traffic_surge"](), 5)
    course.play(world, ticks)
    course.play(type(world)().set(990.0, "host/box1", host_load=99), 3)
    course.play(world, 20)
    assert course.kinds == [ChangeKind.OPENED, ChangeKind.RESOLVED]


def test_what_galens_own_remedy_does_does_not_hold_an_incident_open(
    world: Any, scenarios: Scenarios
) -> None:
    """A lower limit cools the GPU and keeps its clock low until it is taken back."""
    gpu = "host/box1/gpu/0"
    cooled = {"gpu_sm_clock_mhz": 1000, "gpu_power_limit_watts": 150, "gpu_throttle_power": 1}
    course = Course()
    course.play(scenarios["gpu_thermal_throttle"](), 5)
    course.play(type(world)().set(990.0, gpu, **cooled), 20)
    assert ChangeKind.RESOLVED not in course.kinds  # nobody says that the low clock is meant
    course.play(type(world)().set(990.0, gpu, **cooled, healing_actions_in_force=1), 10)
    assert course.kinds[-1] is ChangeKind.RESOLVED


@pytest.mark.parametrize("cause", ["no_fault", "planned_restart"])
def test_what_is_no_fault_opens_nothing_and_is_counted(
    cause: str, world: Any, scenarios: Scenarios
) -> None:
    course = Course()
    course.play(scenarios[cause](), 60)
    course.play(world, 20)
    assert course.changes == []
    assert course.tracker.suppressed == 1


def test_a_symptom_without_a_known_cause_is_told_when_it_lasts(
    world: Any, scenarios: Scenarios
) -> None:
    course = Course(unknown_after_seconds=8)
    course.play(scenarios["unknown"](), 4)
    course.play(world, 20)
    assert course.changes == []
    course.play(scenarios["unknown"](), 12)
    assert course.kinds == [ChangeKind.OPENED]
    assert course.changes[0][1].incident.verdict is Verdict.UNKNOWN


def test_a_crash_that_is_over_after_one_tick_is_told(world: Any, scenarios: Scenarios) -> None:
    course = Course()
    course.play(world, 3)
    course.play(scenarios["engine_crash"](), 1)
    course.play(world, 4)
    assert course.kinds == [ChangeKind.OPENED]
    assert course.changes[0][1].data["cause"] == "engine_crash"


def test_an_event_that_lingers_neither_holds_nor_reopens(world: Any, scenarios: Scenarios) -> None:
    course = Course()
    course.play(scenarios["engine_crash"](), 4)
    # Detection keeps an event raised for a minute, so that people see it.
    course.play(type(world)().set(engine_crashes=1), 60)
    course.play(world, 5)
    assert course.kinds == [ChangeKind.OPENED, ChangeKind.RESOLVED]


def test_recovery_by_a_planned_restart_does_not_change_the_cause(
    world: Any, scenarios: Scenarios
) -> None:
    course = Course()
    course.play(scenarios["engine_hang"](), 6)
    course.play(scenarios["planned_restart"](), 6)
    course.play(world, 20)
    assert course.kinds == [ChangeKind.OPENED, ChangeKind.RESOLVED]
    assert course.changes[-1][1].data["cause"] == "engine_hang"


def test_another_fault_replaces_the_cause_when_it_leads_for_long_enough(
    scenarios: Scenarios,
) -> None:
    course = Course(change_ticks=3)
    course.play(scenarios["client_errors"](), 4)
    first = course.tracker.open_incidents[0]
    course.play(scenarios["engine_hang"](), 20)
    causes = [change.data["cause"] for _, change in course.changes]
    assert causes[0] == "client_errors"
    assert causes[-1] == "engine_hang"
    last = course.tracker.open_incidents[0]
    assert last.id == first.id
    assert last.severity is Severity.CRITICAL
    assert len(course.changes) <= 3


def test_a_cause_that_flickers_changes_nothing(scenarios: Scenarios) -> None:
    course = Course()
    course.play(scenarios["engine_slow"](), 5)
    for _ in range(10):
        course.play(scenarios["client_errors"](), 1)
        course.play(scenarios["engine_slow"](), 2)
    assert ChangeKind.UPDATED not in course.kinds


def both(first: Any, second: Any) -> Any:
    first.values |= second.values
    first.onsets |= second.onsets
    return first


def test_a_gpu_fault_and_a_fault_of_the_service_are_two_incidents(
    scenarios: Scenarios, world: Any
) -> None:
    course = Course()
    hot, hung = scenarios["gpu_thermal_throttle"], scenarios["engine_hang"]
    course.play(hot(), 5)
    course.play(both(hot(), hung()), 10)
    opened = [c.incident for _, c in course.changes if c.kind is ChangeKind.OPENED]
    assert [(each.entity, each.leading and each.leading.cause) for each in opened] == [
        (GPU, "gpu_thermal_throttle"),
        ("service/llm", "engine_hang"),
    ]
    ended = course.play(hot(), 15)
    assert [(each.kind, each.incident.id) for each in ended] == [
        (ChangeKind.RESOLVED, opened[1].id)
    ]
    assert course.play(world, 15)[0].incident.id == opened[0].id
    assert course.tracker.open_incidents == ()


def test_what_a_hot_gpu_does_to_the_service_is_part_of_its_incident(scenarios: Scenarios) -> None:
    course = Course()
    course.play(scenarios["gpu_thermal_throttle"](), 5)
    slow = scenarios["gpu_thermal_throttle"]()
    slow.set(llm_time_per_output_token_seconds=0.03, llm_request_latency_seconds=1.4)
    course.play(slow, 20)
    assert course.kinds.count(ChangeKind.OPENED) == 1
    (incident,) = course.tracker.open_incidents
    assert "llm_request_latency_seconds" in {each.signal for each in incident.anomalies}


def test_the_same_trouble_at_once_again_is_the_same_incident(
    world: Any, scenarios: Scenarios
) -> None:
    course = Course(resolve_after_seconds=2, reopen_within_seconds=5)
    course.play(scenarios["engine_slow"](), 4)
    course.play(world, 4)
    course.play(scenarios["engine_slow"](), 4)
    assert course.kinds == [ChangeKind.OPENED, ChangeKind.RESOLVED, ChangeKind.REOPENED]
    assert len({change.incident.id for _, change in course.changes}) == 1
    assert course.tracker.open_incidents[0].state is IncidentState.OPEN
    assert course.tracker.open_incidents[0].resolved_seconds is None


def test_later_it_is_a_new_incident_with_an_identifier_that_sorts(
    world: Any, scenarios: Scenarios
) -> None:
    course = Course()
    course.play(scenarios["engine_slow"](), 4)
    course.play(world, 40)
    course.play(scenarios["engine_slow"](), 4)
    ids = [c.incident.id for _, c in course.changes if c.kind is ChangeKind.OPENED]
    assert len(set(ids)) == 2
    assert ids == sorted(ids)


def test_the_same_course_gives_the_same_identifiers(scenarios: Scenarios) -> None:
    first, second = Course(), Course()
    first.play(scenarios["engine_hang"](), 5)
    second.play(scenarios["engine_hang"](), 5)
    assert first.changes[0][1].incident.id == second.changes[0][1].incident.id


def test_what_nobody_can_see_is_not_over(scenarios: Scenarios, world: Any) -> None:
    course = Course()
    course.play(scenarios["engine_hang"](), 5)
    dark = type(world)().blind("service/llm")
    dark.set(canary_success=None, canary_latency_seconds=None, canary_output_match=None)
    dark.quiet = set(dark.values)
    course.play(dark, 60)
    assert ChangeKind.RESOLVED not in course.kinds


def test_what_is_never_seen_again_is_closed_in_the_end(scenarios: Scenarios, world: Any) -> None:
    course = Course(abandon_after_seconds=60)
    course.play(scenarios["engine_hang"](), 5)
    dark = type(world)().blind("service/llm")
    dark.set(canary_success=None, canary_latency_seconds=None, canary_output_match=None)
    dark.quiet = set(dark.values)
    course.play(dark, 70)
    assert course.kinds[-1] is ChangeKind.RESOLVED
    assert "nothing measures service/llm any more" in course.changes[-1][1].summary


def test_the_worst_is_kept(scenarios: Scenarios, world: Any) -> None:
    course = Course()
    course.play(scenarios["engine_hang"](), 5)
    worst = course.tracker.open_incidents[0]
    course.play(world, 5)
    still = course.tracker.open_incidents[0]
    assert still.leading is not None
    assert worst.leading is not None
    assert still.leading.cause == "engine_hang"
    assert still.leading.confidence >= worst.leading.confidence
    assert len(still.anomalies) >= len(worst.anomalies)


def test_an_incident_keeps_a_bounded_number_of_anomalies(scenarios: Scenarios) -> None:
    course = Course(max_anomalies=5)
    course.play(scenarios["engine_hang"](), 5)
    assert len(course.tracker.open_incidents[0].anomalies) == 5


def test_open_incidents_are_taken_up_again(world: Any, scenarios: Scenarios) -> None:
    before = Course()
    before.play(scenarios["engine_hang"](), 5)
    incident = before.tracker.open_incidents[0]
    after = Course()
    after.tracker.restore([incident])
    after.now = before.now
    assert after.play(scenarios["engine_hang"](), 5) == []
    ended = after.play(world, 12)
    assert [(each.kind, each.incident.id) for each in ended] == [(ChangeKind.RESOLVED, incident.id)]


def test_a_slow_cause_waits_for_its_time(scenarios: Scenarios) -> None:
    course = Course()
    start = course.now
    course.play(scenarios["gpu_underutilization"](), 20)
    least = catalogue().causes["gpu_underutilization"].min_duration_seconds
    assert course.kinds == [ChangeKind.OPENED]
    assert course.changes[0][0] - start >= least
