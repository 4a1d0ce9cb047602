import pytest

from inference.degradation import Degradation, Level
from inference.errors import OverloadedError, UnavailableError
from inference.queueing import Priority
from inference.requests import GenerationRequest


def _request(**changes):
    values = {"request_id": "r", "model": "big", "task": "chat", "text": "hi", "deadline": 1.0,
              "max_tokens": 64}  # fmt: skip
    return GenerationRequest(**{**values, **changes})


@pytest.mark.parametrize(("level", "tokens"), [(0, 64), (1, 64), (2, 16), (3, 16)])
def test_each_level_gives_up_more(level, tokens):
    degradation = Degradation(Level(level), "load")
    request = _request()
    degradation.check(request)
    assert degradation.max_tokens(request, 16) == tokens


def test_low_priority_goes_first():
    Degradation(Level.FULL).check(_request(priority=Priority.LOW))
    with pytest.raises(OverloadedError) as refusal:
        Degradation(Level.CORE_ONLY, "load").check(_request(priority=Priority.LOW))
    assert refusal.value.reason == "low_priority"


def test_level_four_refuses_with_the_reason():
    with pytest.raises(UnavailableError, match="maintenance") as refusal:
        Degradation(Level.REFUSE, "maintenance").check(_request())
    assert refusal.value.retry_after_seconds


def test_a_canary_tests_the_engine_at_every_level():
    degradation = Degradation(Level.REFUSE, "maintenance")
    canary = _request(canary=True)
    degradation.check(canary)
    assert degradation.max_tokens(canary, 16) == 64
