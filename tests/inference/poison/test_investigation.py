import asyncio

import pytest

from inference.errors import EngineFailedError, QuarantinedError
from inference.poison.investigation import Case, Investigator
from inference.poison.quarantine import Quarantine
from inference.poison.sandbox import ControlFailedError, SandboxError


class FakeTrial:
    """Dies of groups that hold all of one of the harmful sets."""

    def __init__(self, harmful, error=None):
        self.harmful = harmful
        self.error = error
        self.closed = False

    async def survives(self, group):
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return not any(harm <= set(group) for harm in self.harmful)

    async def close(self):
        self.closed = True


def investigate(tmp_path, suspects, trial, **limits):
    """Report one case and wait for its end; messages stand for themselves here."""
    quarantine = Quarantine(
        tmp_path, max_entries=10, quarantine_seconds=60.0, suspicion_seconds=60.0,
        wall_clock=lambda: 1000.0,
    )  # fmt: skip
    investigator = Investigator(
        quarantine, (lambda _case: trial) if trial else None,
        **{"max_trials": 100, "limit_seconds": 10.0, **limits},
    )  # fmt: skip

    async def run():
        task = asyncio.ensure_future(investigator.run())
        investigator.report(Case("m", 1, "crash", {name: name for name in suspects}))
        while not investigator.outcomes:  # noqa: ASYNC110 - nothing tells the end
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())
    assert trial is None or trial.closed
    return investigator, quarantine


def test_the_culprit_is_quarantined_and_the_others_are_cleared(tmp_path):
    investigator, quarantine = investigate(tmp_path, "abcdef", FakeTrial([{"c"}]))
    assert investigator.outcomes == {"found": 1}
    assert [item.fingerprint for item in quarantine.culprits()] == ["c"]
    assert quarantine.suspects() == 0
    assert investigator.trials["died"] >= 2
    assert investigator.trials["survived"] >= 1


def test_what_cannot_be_reproduced_clears_everybody(tmp_path):
    investigator, quarantine = investigate(tmp_path, "abc", FakeTrial([]))
    assert investigator.outcomes == {"cleared": 1}
    assert quarantine.empty


def test_a_sandbox_that_goes_down_by_itself_clears_everybody(tmp_path):
    trial = FakeTrial([], ControlFailedError("it goes down without any suspect"))
    investigator, quarantine = investigate(tmp_path, "abc", trial)
    assert investigator.outcomes == {"inconclusive": 1}
    assert quarantine.empty


@pytest.mark.parametrize("error", [SandboxError("no memory"), RuntimeError("a bug")])
def test_without_a_sandbox_suspects_stay_suspended_and_the_service_lives(tmp_path, error):
    investigator, quarantine = investigate(tmp_path, "abc", FakeTrial([], error))
    assert investigator.outcomes == {"inconclusive": 1}
    with pytest.raises(EngineFailedError):
        quarantine.check("a")


def test_a_limit_of_time_and_one_of_trials_hold(tmp_path):
    class Endless(FakeTrial):
        async def survives(self, group):
            await asyncio.sleep(3600)

    investigator, quarantine = investigate(tmp_path, "ab", Endless([]), limit_seconds=0.01)
    assert investigator.outcomes == {"inconclusive": 1}
    assert quarantine.suspects() == 2
    investigator, quarantine = investigate(tmp_path, "abcdefgh", FakeTrial([{"h"}]), max_trials=2)
    assert investigator.outcomes == {"inconclusive": 1}
    assert quarantine.suspects() == 8


def test_the_sandbox_can_be_switched_off(tmp_path):
    investigator, quarantine = investigate(tmp_path, "a", None)
    assert investigator.outcomes == {"not_tried": 1}
    assert quarantine.suspects() == 1


def test_too_many_cases_are_not_piled_up(tmp_path):
    quarantine = Quarantine(
        tmp_path, max_entries=100, quarantine_seconds=60.0, suspicion_seconds=60.0,
        wall_clock=lambda: 1000.0,
    )  # fmt: skip
    investigator = Investigator(
        quarantine, lambda _case: FakeTrial([]), max_trials=9, limit_seconds=9.0
    )

    async def run():
        for number in range(20):
            investigator.report(Case("m", 1, "crash", {str(number): str(number)}))

    asyncio.run(run())
    assert investigator.waiting == 8
    assert investigator.outcomes == {"not_tried": 12}
    assert quarantine.suspects() == 20
    with pytest.raises(EngineFailedError):
        quarantine.check("19")
    quarantine.condemn("m", 1, ["19"], "crash")
    with pytest.raises(QuarantinedError):
        quarantine.check("19")
