"""What is wrong with a GPU, told apart; and what must not be blamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from analysis.detection.contract import Detections
from analysis.diagnosis.causes import catalogue
from analysis.diagnosis.ranking import Diagnoser, Diagnosis
from analysis.diagnosis.settings import DiagnosisSettings
from analysis.findings import Verdict
from collectors.contract import SeriesKey
from collectors.gpu.xid import RecommendedAction, Severity, xid_catalogue

Scenarios = Mapping[str, Callable[[], Any]]
HOST, GPU, READER = "host/box1", "host/box1/gpu/0", "collector/gpu-nvml"


def diagnose(detections: Detections) -> Diagnosis:
    scope = {key.entity for key in detections.states}
    return Diagnoser(DiagnosisSettings()).diagnose(1000.0, detections, scope)


def xid(world: Any, **values: float) -> Any:
    return world.set(990.0, GPU, **values)


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        (1, "gpu_reset_required"),
        (2, "gpu_xid_fatal"),
        (3, "gpu_gone"),
        (4, "gpu_unreadable"),
        (5, "gpu_hung"),
    ],
)
def test_each_state_alone_is_told_from_the_others(state: int, cause: str, world: Any) -> None:
    found = diagnose(world.lose_gpu(state).detections())
    assert (found.leading.cause, found.leading.entity) == (cause, GPU)
    assert found.verdict is Verdict.FAULT
    assert any(each.signal == "gpu_state" for each in found.leading.evidence)


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        (1, "gpu_driver_hang"),
        (2, "gpu_driver_unusable"),
        (3, "gpu_driver_unusable"),
        (4, "gpu_driver_mismatch"),
        (5, "gpu_driver_unusable"),
        (6, "gpu_driver_unusable"),
    ],
)
def test_the_driver_as_a_whole(state: int, cause: str, world: Any) -> None:
    """Every device is unread and the collector fails: only the driver's own state tells why."""
    world.lose_gpu(6).set(990.0, READER, scrape_success=0)
    world.set(990.0, HOST, gpu_driver_state=state, gpu_driver_library_mismatch=None)
    found = diagnose(world.detections())
    assert found.leading.cause == cause
    assert found.verdict is Verdict.FAULT
    assert found.hypotheses[1].confidence < 0.3


def test_what_came_with_the_failure_is_evidence_and_what_is_older_is_not(world: Any) -> None:
    world.lose_gpu(5).set(990.0, READER, scrape_success=0).set(990.0, HOST, gpu_driver_state=1)
    found = world.detections()
    leading = diagnose(found).leading
    assert (leading.cause, leading.entity) == ("gpu_hung", GPU)
    assert "gpu_state" in {each.signal for each in leading.evidence}
    old = {
        key: replace(state, age_seconds=8.0) if key == SeriesKey(GPU, "gpu_state") else state
        for key, state in found.states.items()
    }
    told = diagnose(replace(found, states=old))
    assert not any(e.signal == "gpu_state" for h in told.hypotheses for e in h.evidence)


# --- what must not be blamed -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "not_blamed", "wanted"),
    [
        # An application's error is no broken device, whatever else the engine does.
        (lambda w: xid(w, gpu_xid=31, gpu_recommended_action=2).set(engine_crashes=1, engine_up=0,
                                                                    engine_state=5),
         "gpu_xid_fatal", "gpu_xid_application"),
        (lambda w: xid(w, gpu_xid=69, gpu_recommended_action=2).set(engine_crashes=1, engine_up=0),
         "gpu_xid_fatal", "gpu_xid_application"),
        # Errors that were corrected hurt nobody, and nobody is drained for them.
        (lambda w: xid(w, gpu_xid=92, gpu_ecc_correctable_total=500), "gpu_ecc",
         "gpu_ecc_correctable"),
        (lambda w: xid(w, gpu_ecc_correctable_total=500), "gpu_ecc", "gpu_ecc_correctable"),
        # A row that waits for a reset can be repaired.
        (lambda w: xid(w, gpu_row_remap_pending=1, gpu_ecc_uncorrectable_total=1),
         "gpu_memory_unrepairable", "gpu_ecc"),
        # A library that was upgraded hurts nobody yet and is no lost device.
        (lambda w: w.set(990.0, HOST, gpu_driver_library_mismatch=1),
         "gpu_xid_fatal", "gpu_driver_mismatch"),
        # A GPU whose NVLink fails makes codes that a dying GPU makes, too.
        (lambda w: xid(w, gpu_xid=74, gpu_nvlink_errors_total=900, gpu_nvlink_links_active=17),
         "gpu_xid_fatal", "gpu_nvlink_fault"),
        # A GPU off the bus that is listed no more did not go by itself.
        (lambda w: w.lose_gpu(3).set(990.0, GPU, gpu_xid=79, gpu_recommended_action=4),
         "gpu_gone", "gpu_xid_fatal"),
        # The driver's word for a reset stands over a catalogue that would restart an application.
        (lambda w: xid(w, gpu_xid=13, gpu_recovery_action=1, gpu_recommended_action=3),
         "gpu_xid_application", "gpu_reset_required"),
        # Heat slows the clock; the link is whole.
        (lambda w: xid(w, gpu_throttle_thermal=1, gpu_throttle_reason=0x20, gpu_sm_clock_mhz=900,
                       gpu_temperature_margin_celsius=0),
         "gpu_pcie_degraded", "gpu_thermal_throttle"),
    ],
)  # fmt: skip
def test_what_is_not_to_blame(
    change: Callable[[Any], Any], not_blamed: str, wanted: str, world: Any
) -> None:
    found = diagnose(change(world).detections())
    confidence = {each.cause: each.confidence for each in found.hypotheses}
    assert found.leading.cause == wanted
    assert confidence.get(not_blamed, 0.0) < 0.25


def test_an_nvswitch_explains_the_links_of_its_hosts_gpus(world: Any) -> None:
    found = world.set(990.0, GPU, gpu_nvlink_errors_total=900).detections()
    xid_state = type(world)().set(990.0, GPU, gpu_xid=12028).state(GPU, "gpu_xid")
    key = SeriesKey(f"{HOST}/nvswitch/0000:c1:00", "gpu_sxid")
    told = diagnose(replace(found, states={**found.states, key: replace(xid_state, key=key)}))
    assert told.leading.cause == "gpu_nvlink_fault"
    assert "gpu_sxid" in {each.signal for each in told.leading.evidence}


def test_a_gpu_that_galen_released_is_no_fault(world: Any) -> None:
    found = diagnose(world.lose_gpu(7).detections())
    assert (found.verdict, found.leading.cause) == (Verdict.NO_FAULT, "gpu_released")
    assert found.leading.remedies == ()


def test_a_service_that_hangs_beside_a_healthy_gpu_is_not_the_gpus_fault(
    scenarios: Scenarios,
) -> None:
    found = diagnose(scenarios["engine_hang"]().detections())
    gpu = {h.cause: h.confidence for h in found.hypotheses if h.cause.startswith("gpu_")}
    assert max(gpu.values(), default=0.0) < 0.05


def test_a_state_is_told_in_words(scenarios: Scenarios) -> None:
    lost = diagnose(scenarios["gpu_xid_fatal"]().detections()).leading
    words = {each.signal: each.statement for each in lost.evidence}
    assert words["gpu_state"].startswith("GPU state lost, normally ok")
    assert words["gpu_recommended_action"].startswith("recommended action reboot the node")
    told = " ".join(each.statement for each in (*lost.evidence, *lost.against))
    assert len(told) < 2500


# --- codes and causes agree ----------------------------------------------------------------------


def codes_of(observation: str) -> set[int]:
    level = catalogue().observations[observation].level
    assert level is not None
    return {int(value) for value in level.values}


def test_every_code_that_asks_for_a_restart_of_the_application_is_one_of_an_application() -> None:
    asks = {c for c, x in xid_catalogue().items() if x.action is RecommendedAction.RESTART_APP}
    memory = {94}
    assert asks - memory <= codes_of("xid_application")
    assert not codes_of("xid_application") & (codes_of("xid_fatal") | codes_of("xid_memory"))


def test_every_serious_code_that_asks_for_a_reset_or_a_reboot_is_evidence_of_a_fault() -> None:
    serious = {
        code
        for code, known in xid_catalogue().items()
        if known.action in {RecommendedAction.RESET_GPU, RecommendedAction.REBOOT_NODE}
        and known.severity in {Severity.CRITICAL, Severity.FATAL}
    }
    assert serious <= codes_of("xid_fatal") | codes_of("xid_memory")
    assert codes_of("xid_nvlink") <= codes_of("xid_fatal")
    assert not codes_of("xid_fatal") & codes_of("xid_memory")


def test_nothing_is_reset_or_rebooted_without_a_rung_for_a_person_after_it() -> None:
    for cause in catalogue().causes.values():
        if {"reset_gpu", "reboot_host"} & set(cause.remedies):
            assert cause.remedies[-1] == "page_human", cause.name
