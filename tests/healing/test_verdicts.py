"""What does harm when it is wrong is done only where driver or catalogue ask for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.findings import Direction
from collectors.contract import Sample
from healing.errors import PolicyError
from healing.policy import Policy, load_policy, parse_policy
from tests.healing.worlds import World, make_evidence, make_hypothesis, make_incident

GPU = "host/box/gpu/0"
LADDER = ("reset_gpu", "reboot_host", "page_human")


class GpuWorld(World):
    """A world in which one GPU says something."""

    signals: dict[str, float]

    def idle(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            given = getattr(self, "signals", {"gpu_available": 1.0})
            self.history.append(
                self.now, [Sample(self.now, GPU, name, value) for name, value in given.items()]
            )


@pytest.fixture
def world(tmp_path: Path, policy: Policy) -> GpuWorld:
    return GpuWorld(tmp_path, policy)


def lost(world: GpuWorld, **signals: float) -> None:
    world.signals = {"gpu_available": 0.0, "gpu_state": 2.0, **signals}
    evidence = make_evidence("gpu_state", Direction.UP, entity=GPU, low=0.0, high=0.0)
    lead = make_hypothesis("gpu_xid_fatal", LADDER, entity=GPU, evidence=(evidence,))
    world.open(make_incident(lead, entity=GPU, onset_seconds=world.now))


@pytest.mark.parametrize(
    ("signals", "action"),
    [
        ({"gpu_recommended_action": 3.0}, "reset_gpu"),
        ({"gpu_recovery_action": 4.0}, "reset_gpu"),
        ({"gpu_recommended_action": 4.0}, "reboot_host"),
        ({"gpu_recovery_action": 2.0}, "reboot_host"),
    ],
)
def test_what_is_asked_for_is_proposed_even_in_auto(
    world: GpuWorld, signals: dict[str, float], action: str
) -> None:
    lost(world, **signals)
    world.run(5)
    assert world.states()[-1] == (action, "proposed")
    assert world.gpu.done == []


@pytest.mark.parametrize(
    "signals",
    [{}, {"gpu_recommended_action": 5.0}, {"gpu_recommended_action": 0.0}, {"gpu_xid": 79.0}],
)
def test_where_nothing_asks_a_person_is_called_and_nothing_is_guessed(
    world: GpuWorld, signals: dict[str, float]
) -> None:
    lost(world, **signals)
    world.run(5)
    assert set(world.states()) == {
        ("reset_gpu", "blocked"),
        ("reboot_host", "blocked"),
        ("page_human", "escalated"),
    }
    assert world.gpu.done == []
    blocked = next(one for one in world.ledger.actions() if one.action == "reset_gpu")
    assert "not asked for" in blocked.reason


def test_a_request_that_is_taken_back_before_the_yes_is_not_carried_out(world: GpuWorld) -> None:
    lost(world, gpu_recommended_action=3.0)
    world.run(5)
    (proposal,) = [one for one in world.ledger.actions() if one.action == "reset_gpu"]
    world.signals = {**world.signals, "gpu_recommended_action": 4.0}
    world.run(1)
    world.ledger.approve(proposal.id, "ada", world.now)
    world.run(3)
    assert world.gpu.done == []
    assert world.ledger.get(proposal.id).state.value == "blocked"


def test_a_host_is_rebooted_where_one_of_its_gpus_asks_for_it(world: GpuWorld) -> None:
    lost(world, gpu_recommended_action=4.0)
    (incident,) = world.incidents.values()
    lead = make_hypothesis(
        "gpu_driver_hang", ("reboot_host", "page_human"), entity="host/box",
        evidence=incident.hypotheses[0].evidence,
    )  # fmt: skip
    world.open(make_incident(lead, entity="host/box", onset_seconds=world.now))
    world.run(5)
    (proposed,) = world.ledger.actions()
    assert (proposed.action, proposed.entity, proposed.state.value) == (
        "reboot_host", "host/box", "proposed",
    )  # fmt: skip


def test_an_old_word_asks_for_nothing(world: GpuWorld) -> None:
    lost(world, gpu_recommended_action=3.0)
    world.idle(1)
    world.signals = {"gpu_available": 0.0, "gpu_state": 2.0}
    world.idle(10)
    world.run(5)
    assert ("reset_gpu", "proposed") not in world.states()


def test_a_condition_on_an_unknown_signal_is_a_fault_of_the_policy() -> None:
    text = (Path(__file__).parents[2] / "healing" / "policy.toml").read_text("utf-8")
    wrong = text.replace('signal = "gpu_recommended_action"', 'signal = "gpu_wish"', 1)
    with pytest.raises(PolicyError, match="gpu_wish"):
        parse_policy(wrong)


def test_resets_and_reboots_wait_for_a_person_and_for_a_verdict() -> None:
    policy = load_policy()
    for name in ("reset_gpu", "reboot_host"):
        assert policy.actions[name].only_when
        assert policy.actions[name].mode.value == "approve"
