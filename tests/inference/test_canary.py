import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.canary import Belief, Canary, CanaryOutcome, Cost
from inference.errors import DeadlineExceededError, EngineFailedError, OverloadedError
from inference.health import _canary
from inference.model import GoldenPrompt
from inference.settings import InferenceSettings

RIGHT, WRONG, FAILED, BUSY = CanaryOutcome


@dataclass
class Host:
    """A host that is up, as far as a canary looks."""

    model: str = "m"
    up: bool = True
    golden: tuple = (GoldenPrompt("chat", "hi", "ho"),)
    step_age: float = 0.0
    dispatcher: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(golden_seconds=0.0, max_slots=2)
    )

    def metadata(self):
        return SimpleNamespace(golden=self.golden)

    def step_age_seconds(self):
        return self.step_age


class World:
    def __init__(self, **settings):
        self.now = 100.0
        self.settings = InferenceSettings(canary_interval_seconds=2.0, **settings)
        self.host = Host()
        self.answers = []
        self.seconds = 0.01
        self.canary = Canary(self.host, self.settings, self.ask, lambda: self.now)

    async def ask(self, _model, _golden):
        self.now += self.seconds
        self.host.dispatcher.golden_seconds += self.seconds
        answer = self.answers.pop(0) if self.answers else ""
        if isinstance(answer, Exception):
            raise answer
        return answer

    def check(self, *answers):
        self.answers = list(answers)
        for _ in answers:
            asyncio.run(self.canary.check())
        return self.layer().ok

    def layer(self):
        return _canary(self.canary, self.now)


@pytest.fixture
def world():
    return World()


FAILURE = EngineFailedError("it failed")
LATE = DeadlineExceededError("too late")
FULL = OverloadedError("full")


def test_nothing_is_known_before_the_first_answer_and_one_right_one_is_enough(world):
    assert world.layer().ok is None
    assert world.layer().age_seconds is None
    assert world.check("") is True
    assert world.canary.passed_once


def test_a_wrong_value_speaks_at_once(world):
    world.check("")
    assert world.check("wrong answer") is False
    assert "wrong answer" in world.layer().reason


def test_one_failure_is_not_enough_and_two_in_a_row_are(world):
    world.check("")
    assert world.check(FAILURE) is True
    assert world.check("", FAILURE) is True
    assert world.check(FAILURE) is False


def test_one_right_answer_after_a_failure_is_not_enough(world):
    world.check("", "wrong")
    assert world.check("") is False
    assert world.check("") is True


@pytest.mark.parametrize("error", [LATE, FULL])
def test_load_says_nothing_until_the_last_proof_is_too_old(world, error):
    world.check("")
    assert world.check(error, error, error) is True
    world.now += world.canary.age_limit_seconds
    layer = world.layer()
    assert layer.ok is False
    assert layer.age_seconds > world.canary.age_limit_seconds
    assert error.message in layer.reason
    assert world.check("") is True


def test_being_late_while_the_engine_stands_still_is_a_failure(world):
    world.check("")
    world.host.step_age = world.settings.stall_seconds + 1
    assert world.check(LATE, LATE) is False


@pytest.mark.parametrize("turns", range(6))
def test_being_cancelled_as_it_wakes_ends_it(world, turns):
    async def go():
        task = asyncio.create_task(world.canary.run())
        for _ in range(10):
            await asyncio.sleep(0)
        world.canary.loaded(fresh=True)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=1.0)
        task.cancel()
        return bool(done)

    assert asyncio.run(go())


def test_a_model_without_golden_prompts_is_never_healthy(world):
    world.host.golden = ()
    assert world.check("") is False
    assert "no golden prompts" in world.layer().reason


def test_a_new_worker_has_to_prove_itself_and_a_swapped_version_was_proven(world):
    world.check("")
    world.canary.loaded(fresh=False)
    assert world.layer().ok is True
    world.canary.loaded(fresh=True)
    assert world.layer().ok is None


def test_costly_examples_are_asked_less_often_so_that_the_share_holds(world):
    assert world.canary.interval_seconds == 2.0
    world.seconds = 1.0
    world.check("")
    # Half of two slots for a second; at 1% of capacity that is every 50 seconds.
    assert world.canary.interval_seconds == pytest.approx(50.0)
    assert world.canary.age_limit_seconds > 100.0
    assert world.canary.cost.share(world.now) == pytest.approx(0.5 / 60)
    world.now += 61
    assert world.canary.cost.share(world.now) == 0.0


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=50), st.floats(0.001, 1.0))
def test_the_interval_keeps_the_share(costs, limit):
    cost = Cost(limit)
    for number, seconds in enumerate(costs):
        cost.observe(float(number), seconds)
    interval = cost.interval_seconds(0.1)
    assert max(0.1, min(costs) / limit) * (1 - 1e-9) <= interval
    assert interval <= max(0.1, max(costs) / limit) * (1 + 1e-9)


@given(st.lists(st.sampled_from(CanaryOutcome), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_belief_changes_only_for_a_reason(outcomes, failures, successes):
    belief = Belief(failures, successes)
    for number, outcome in enumerate(outcomes):
        before = belief.ok
        after = belief.take(outcome)
        told = [item for item in outcomes[: number + 1] if item is not BUSY]
        if outcome is BUSY:
            assert after is before
        if outcome is WRONG:
            assert after is False
        if before is True and after is False and outcome is FAILED:
            assert all(item is not RIGHT for item in told[-failures:])
        if before is False and after is True:
            assert told[-successes:] == [RIGHT] * successes
        if after is None:
            assert RIGHT not in told
