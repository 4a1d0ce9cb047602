from __future__ import annotations

from collections.abc import Mapping

import pytest

from analysis.findings import Incident, IncidentState, Severity, Verdict
from collectors.contract import SeriesKey
from dashboard import status
from dashboard.data import Latest, Reading
from dashboard.palette import Tone

NOW = 1000.0
GPU = "host/box1/gpu/0"


def is_stale(time_seconds: float | None) -> bool:
    return time_seconds is None or NOW - time_seconds > 30


def latest(values: Mapping[tuple[str, str], float], *, at: float = NOW) -> Latest:
    return Latest({SeriesKey(*key): Reading(value, at) for key, value in values.items()})


def incident(severity: Severity = Severity.CRITICAL, entity: str = GPU) -> Incident:
    return Incident(
        id="i", state=IncidentState.OPEN, severity=severity, verdict=Verdict.UNKNOWN,
        title="It burns", entity=entity, onset_seconds=NOW - 90, opened_seconds=NOW - 80,
        updated_seconds=NOW,
    )  # fmt: skip


def gpu(values: Mapping[str, float], *incidents: Incident, at: float = NOW) -> status.Gpu:
    seen = latest({(GPU, signal): value for signal, value in values.items()}, at=at)
    [found] = status.gpus(seen, incidents, is_stale, NOW)
    return found


def test_a_silent_collector_is_not_up() -> None:
    seen = Latest(
        {
            SeriesKey("collector/a", "scrape_success"): Reading(1.0, NOW),
            SeriesKey("collector/b", "scrape_success"): Reading(1.0, NOW - 31),
            SeriesKey("collector/c", "scrape_success"): Reading(0.0, NOW),
        }
    )
    counted = status.collectors(seen, is_stale)
    assert (counted.up, counted.total, counted.down) == (1, 3, ("b", "c"))
    assert counted.badge.tone is Tone.WARNING
    assert status.collectors(Latest(), is_stale).badge.tone is Tone.UNKNOWN


@pytest.mark.parametrize(
    ("values", "tone", "text"),
    [
        ({"gpu_available": 1, "gpu_xid": 0, "gpu_throttle_reason": 0x1}, Tone.OK, None),
        ({"gpu_throttle_reason": 0x4}, Tone.OK, "power cap"),
        ({"gpu_throttle_reason": 0x20 | 0x4}, Tone.WARNING, "SW thermal"),
        ({"gpu_throttle_thermal": 1}, Tone.WARNING, "thermal throttle"),
        ({"gpu_xid": 79}, Tone.CRITICAL, "XID 79: GPU fell off the bus"),
        ({"gpu_xid": 13}, Tone.WARNING, "XID 13: Graphics engine exception"),
        ({"gpu_xid": 9999}, Tone.WARNING, "XID 9999"),
        ({"gpu_ecc_uncorrectable_total": 2}, Tone.CRITICAL, "ECC uncorrectable 2"),
    ],
)
def test_a_gpu_has_the_tone_of_what_the_device_says(
    values: Mapping[str, float], tone: Tone, text: str | None
) -> None:
    found = gpu(values)
    assert found.tone is tone
    assert [badge.text for badge in found.badges][:1] == ([text] if text else [])


def test_a_lost_gpu_is_critical_and_a_silent_one_unknown() -> None:
    assert gpu({"gpu_available": 0}).state == "lost"
    silent = gpu({"gpu_available": 1, "gpu_utilization_percent": 50}, at=NOW - 60)
    assert (silent.tone, silent.values["gpu_utilization_percent"]) == (Tone.UNKNOWN, None)


@pytest.mark.parametrize(
    ("state", "tone", "word"),
    [
        (1, Tone.CRITICAL, "needs a reset"),
        (2, Tone.CRITICAL, "lost"),
        (3, Tone.CRITICAL, "gone"),
        (4, Tone.CRITICAL, "unreadable"),
        (5, Tone.CRITICAL, "hung"),
        (7, Tone.UNKNOWN, "released for a reset"),
        (6, Tone.UNKNOWN, "unknown"),
        (99, Tone.CRITICAL, "unreadable"),
    ],
)
def test_a_gpu_that_cannot_be_read_says_why(state: float, tone: Tone, word: str) -> None:
    found = gpu({"gpu_state": state, "gpu_xid": 0})
    assert (found.tone, found.state) == (tone, word)


def test_what_others_tell_of_a_silent_gpu_is_no_sign_of_health() -> None:
    # The kernel log goes on when NVML has fallen silent.
    values = {"gpu_xid": 0.0, "gpu_xid_events_total": 0.0, "gpu_recommended_action": 0.0}
    assert gpu(values).tone is Tone.UNKNOWN
    assert gpu(values | {"gpu_xid": 119.0}).tone is Tone.CRITICAL
    assert gpu(values | {"gpu_state": 6.0, "gpu_xid": 119.0}).tone is Tone.CRITICAL


def test_an_incident_colours_its_gpu_and_no_other() -> None:
    values = {("host/box1/gpu/1", "gpu_available"): 1.0, (GPU, "gpu_available"): 1.0}
    found = status.gpus(latest(values), [incident(entity="host/box1/gpu/1")], is_stale, NOW)
    assert [(one.entity[-1], one.tone) for one in found] == [("1", Tone.CRITICAL), ("0", Tone.OK)]


def verdict(**changes: object) -> status.Verdict:
    facts: dict[str, object] = {
        "newest_seconds": NOW, "now_seconds": NOW, "is_stale": is_stale, "incidents": [],
        "waiting": [], "collectors": status.Collectors(3, 3, ()), "gpus": [], "stopped": False,
    }  # fmt: skip
    return status.verdict(**{**facts, **changes})  # type: ignore[arg-type]


def test_all_is_well_only_when_all_is_known() -> None:
    assert verdict().tone is Tone.OK
    assert verdict(gpus=[gpu({"gpu_available": 1})]).sentence.endswith("1 GPU is healthy.")
    assert verdict(collectors=status.Collectors(2, 3, ("gpu",))).tone is Tone.WARNING
    assert verdict(collectors=status.Collectors(0, 0, ())).tone is Tone.WARNING
    assert verdict(gpus=[gpu({"gpu_available": 1}, at=0)]).tone is Tone.WARNING
    assert verdict(stopped=True).tone is Tone.WARNING
    assert verdict(newest_seconds=None).tone is Tone.UNKNOWN


def test_old_data_comes_before_open_incidents() -> None:
    said = verdict(newest_seconds=NOW - 300, incidents=[incident()])
    assert said.tone is Tone.CRITICAL
    assert "unknown" in said.sentence
    assert "5 min old" in said.sentence
    assert "1 incident stood open" in said.detail


def test_the_worst_incident_leads_the_verdict() -> None:
    mild = incident(Severity.INFO).model_copy(update={"title": "Traffic is high"})
    said = verdict(incidents=[mild, incident()])
    assert said.tone is Tone.CRITICAL
    assert said.sentence == "It burns (box1 / gpu 0, open for 1 min 30 s), and 1 more incident."
    assert "No cause is known yet" in said.detail


def test_health_layers_without_a_word_are_unknown() -> None:
    seen = latest({("service/llm", "health_engine_ok"): 0, ("service/llm", "health_device_ok"): 1})
    tones = {b.text: b.tone for b in status.health_badges(seen, "service/llm", is_stale)}
    assert tones == {
        "device": Tone.OK,
        "runtime": Tone.UNKNOWN,
        "engine": Tone.CRITICAL,
        "context": Tone.UNKNOWN,
        "canary": Tone.UNKNOWN,
    }
