from __future__ import annotations

import re

import pytest

from analysis.diagnosis.causes import CauseCatalogueError, Level, catalogue, parse_causes

OBSERVATIONS = """
[queue_up]
signal = "llm_queue_depth"
direction = "up"
background = 0.3
group = "queue"
role = "symptom"
label = "queue depth"
"""

PLAIN = """
entity_kind = "any"
prior = 0.1
severity = "info"
title = "t"
description = "d"
rival = "unknown"
next_check = "n"
remedies = []
runbook = "r"
"""

CAUSES = (
    f"[unknown]{PLAIN}verdict = 'unknown'\n[no_fault]{PLAIN}"
    f"[surge]{PLAIN}[surge.expects]\nqueue_up = 0.9\n"
)


def test_the_bundled_catalogue_is_sound_and_complete() -> None:
    found = catalogue()
    wanted = {
        "gpu_overload", "gpu_memory_pressure", "gpu_underutilization", "gpu_thermal_throttle",
        "gpu_power_cap", "gpu_xid_fatal", "gpu_ecc", "engine_hang", "engine_crash", "engine_slow",
        "corrupt_output", "model_load_failure", "traffic_surge", "client_errors",
        "host_cpu_contention", "host_memory_leak", "disk_full", "collector_down",
        "planned_restart", "unknown", "no_fault",
    }  # fmt: skip
    assert wanted <= set(found.causes)


@pytest.mark.parametrize(
    "cause", ["client_errors", "collector_down", "planned_restart", "no_fault"]
)
def test_what_no_action_can_help_has_none(cause: str) -> None:
    assert catalogue().causes[cause].remedies == ()


def test_every_cause_of_a_fault_requires_something() -> None:
    for cause in catalogue().causes.values():
        if cause.name not in {"unknown", "no_fault"}:
            assert cause.requirements, cause.name


@pytest.mark.parametrize(
    ("level", "value", "holds"),
    [
        ("> 2", 2.0, False),
        ("> 2", 2.1, True),
        ("< 0.5", 0.0, True),
        ("== 4", 4.0, True),
        ("& 96", 0x20, True),
        ("& 96", 0x4, False),
        ("in 62 79", 79.0, True),
        ("in 62 79", 13.0, False),
        ("> 2", float("nan"), False),
        ("& 96", float("nan"), False),
    ],
)
def test_levels(level: str, value: float, holds: bool) -> None:
    assert Level.model_validate(level).holds(value) is holds


def test_a_small_catalogue_is_read() -> None:
    found = parse_causes(CAUSES, OBSERVATIONS)
    assert found.causes["surge"].expects == {"queue_up": 0.9}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("queue_up = 0.9", "queue_up = 0.2", "causes.toml [surge] expects.queue_up: 0.2"),
        ("queue_up = 0.9", "queue_top = 0.9", "causes.toml [surge] expects.queue_top: no such"),
        ("prior = 0.1", "prior = 2", "causes.toml [unknown] prior"),
        ("remedies = []", "remedies = ['reboot']", "causes.toml [unknown] remedies: "),
        ("rival = \"unknown\"", "rival = 'x'", "causes.toml [unknown] rival: 'x' is not a cause"),
        ("[unknown]", "[unknown", "causes.toml: not valid TOML"),
        ("[unknown]", "stray = 1\n[unknown]", "causes.toml: 'stray' stands outside a table"),
        ("[no_fault]", "[another]", "the cause 'no_fault' must be there"),
        ("title = \"t\"", "titel = 't'", "causes.toml [unknown]"),
    ],
)  # fmt: skip
def test_a_fault_names_the_entry_and_the_field(old: str, new: str, message: str) -> None:
    assert old in CAUSES
    with pytest.raises(CauseCatalogueError, match=re.escape(message)):
        parse_causes(CAUSES.replace(old, new), OBSERVATIONS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("llm_queue_depth", "llm_queue", "[queue_up] signal: 'llm_queue'"),
        ("background = 0.3", "background = 0.3\nlevel = 'above 2'", "[queue_up] level"),
        ("background = 0.3", "background = 0.3\nlevel = '> 2 3'", "[queue_up] level"),
        ("background = 0.3", "background = 0.3\nalso_deviates = true", "also_deviates"),
    ],
)
def test_a_fault_of_an_observation_names_it(old: str, new: str, message: str) -> None:
    with pytest.raises(CauseCatalogueError, match=re.escape(message)):
        parse_causes(CAUSES, OBSERVATIONS.replace(old, new))


def test_requires_must_be_expected() -> None:
    text = CAUSES.replace("[surge.expects]", "requires = ['other']\n[surge.expects]")
    with pytest.raises(CauseCatalogueError, match="requires: 'other' is not under expects"):
        parse_causes(text, OBSERVATIONS)
