from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.diagnosis.causes import catalogue
from healing.actions import Mode
from healing.errors import PolicyError
from healing.executors.gpu import GpuExecutor
from healing.executors.nothing import NothingExecutor
from healing.executors.service import ServiceExecutor
from healing.policy import PAGE_HUMAN, Policy, Risk, load_policy, parse_policy
from healing.settings import ActionOverride


@pytest.fixture(scope="session")
def text() -> str:
    return resources.files("healing").joinpath("policy.toml").read_text("utf-8")


def test_every_remedy_of_the_cause_catalogue_is_in_the_policy(policy: Policy) -> None:
    for cause in catalogue().causes.values():
        assert set(cause.remedies) <= policy.actions.keys(), cause


def test_every_operation_is_known_to_its_executor(policy: Policy) -> None:
    executors = {"service": ServiceExecutor, "gpu": GpuExecutor, "none": NothingExecutor}
    for remedy in policy.actions.values():
        assert remedy.operation in executors[remedy.executor].operations, remedy.name


def test_what_is_risky_or_cannot_be_taken_back_needs_a_person(policy: Policy) -> None:
    for remedy in policy.actions.values():
        if remedy.risk is Risk.HIGH:
            assert remedy.mode is Mode.APPROVE, remedy.name


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "cooldown_seconds = 30",
            "cooldown_seconds = -1",
            "actions.restart_engine.cooldown_seconds",
        ),
        ('mode = "auto"', 'mode = "yes"', "actions.await_supervisor.mode"),
        ('risk = "low"\n', "", "actions.await_supervisor.risk: Field required"),
        ("attempts = 2", "attempts = 3", "attempts must be 2, one for each of the steps"),
        ("level $level", "level $lvl", "$lvl is neither $entity nor a parameter"),
        ("engine of $entity", "engine of $", "a lone '$'"),
        ('"evidence"]', '"evidense"]', "no check is called 'evidense'"),
        ('"canary_success"\nat_least = 0.99', '"canary_success"', "exactly one of at_least"),
        ('signal = "engine_up"', 'signal = "engine_upp"', "is not in the signal catalogue"),
        ("deadline_seconds = 12", "deadline_seconds = 4", "must be more than settle_seconds"),
        ("timeout_seconds = 15", "timeout_secs = 15", "actions.restart_engine.timeout_secs"),
        ("undo_after_seconds = 20", "undo_after_seconds = 0", "undo_after_seconds"),
        ("[actions.page_human]", "[actions.page_hooman]", "verification is missing"),
        ("[checks.latency]", "[checks.evidence]", "checks.evidence is built in"),
        ("[checks.latency]", "[checks.latency", "not valid TOML"),
    ],
)
def test_a_fault_is_named_with_its_place(text: str, old: str, new: str, told: str) -> None:
    assert old in text
    with pytest.raises(PolicyError, match="policy") as caught:
        parse_policy(text.replace(old, new, 1))
    assert told in str(caught.value)


def test_an_action_that_cannot_be_taken_back_has_no_rollback(text: str) -> None:
    with pytest.raises(PolicyError, match=r"restart_engine.*needs reversible = true"):
        parse_policy(
            _in_action(text, "restart_engine", 'rollback = "never"', 'rollback = "failed"')
        )


def test_the_call_for_a_person_cannot_be_missing(text: str) -> None:
    start = text.index("[actions.page_human]")
    end = text.index("[actions.restart_engine]")
    with pytest.raises(PolicyError, match=r"actions\.page_human .* is missing"):
        parse_policy(text[:start] + text[end:])


def test_an_action_without_proof_is_refused(text: str) -> None:
    start = text.index("[actions.clear_cache.verification]")
    end = text.index("[actions.drain_service]")
    with pytest.raises(PolicyError, match=r"clear_cache.*verification is missing"):
        parse_policy(text[:start] + text[end:])


def test_a_step_never_waits_for_the_cooldown_of_the_step_before(text: str) -> None:
    slow = _in_action(
        text, "set_degradation_level", "cooldown_seconds = 5", "cooldown_seconds = 60"
    )
    with pytest.raises(PolicyError, match="the next step could never follow"):
        parse_policy(slow)


def test_several_faults_are_told_together(text: str) -> None:
    broken = text.replace("cooldown_seconds = 30", "cooldown_seconds = -1").replace(
        "timeout_seconds = 60", "timeout_seconds = 0"
    )
    with pytest.raises(PolicyError) as caught:
        parse_policy(broken)
    assert len(str(caught.value).splitlines()) > 2


@given(st.text(max_size=200))
def test_any_text_is_a_policy_or_a_policy_error(garbage: str) -> None:
    with pytest.raises(PolicyError):
        parse_policy(garbage)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["checks", "actions", "signal", "x"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    )
)
def test_any_table_is_a_policy_or_a_policy_error(value: object) -> None:
    def toml(item: object) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{key} = {toml(one)}" for key, one in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(map(toml, item)) + "]"
        if isinstance(item, bool):
            return str(item).lower()
        return str(item) if isinstance(item, int) else '"x"'

    with pytest.raises(PolicyError):
        parse_policy(f"actions = {toml(value)}\nchecks = {toml(value)}")


def test_overrides_change_only_what_they_name(policy: Policy) -> None:
    changed = policy.with_overrides({"restart_engine": ActionOverride(mode=Mode.APPROVE)})
    assert changed.actions["restart_engine"].mode is Mode.APPROVE
    before = policy.actions["restart_engine"]
    assert changed.actions["restart_engine"].model_copy(update={"mode": before.mode}) == before
    assert changed.actions["reload_model"] == policy.actions["reload_model"]


def test_an_override_of_an_unknown_action_names_those_there_are(policy: Policy) -> None:
    with pytest.raises(PolicyError, match=r"healing\.actions\.restart_engin") as caught:
        policy.with_overrides({"restart_engin": ActionOverride(mode=Mode.OFF)})
    assert "restart_engine" in caught.value.fix


def test_fewer_attempts_leave_the_last_steps_out(policy: Policy) -> None:
    changed = policy.with_overrides({"set_degradation_level": ActionOverride(attempts=1)})
    assert changed.actions["set_degradation_level"].steps == ({"level": 2},)
    with pytest.raises(PolicyError, match="one for each of the steps"):
        policy.with_overrides({"set_degradation_level": ActionOverride(attempts=5)})


def test_a_policy_of_ones_own_is_read_and_a_missing_one_is_told(tmp_path: Path, text: str) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text, "utf-8")
    assert PAGE_HUMAN in load_policy(own).actions
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path / "nowhere.toml")


def _in_action(text: str, name: str, old: str, new: str) -> str:
    start = text.index(f"[actions.{name}]")
    assert old in text[start:]
    return text[:start] + text[start:].replace(old, new, 1)
