import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.client import AsyncInferenceClient, InferenceClient, InferenceError, RetryBudget


def _ok():
    return httpx.Response(200, json={"answer": 42})


def _refusal(status=429, code="overloaded", reason="queue_full", headers=None):
    error = {"message": "no", "code": code, "reason": reason, "request_id": "r"}
    sent = {"retry-after-ms": "20", "x-request-id": "r"} if headers is None else headers
    return httpx.Response(status, json={"error": error}, headers=sent)


class Script:
    """A transport that answers by a script, and remembers what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _post(script, timeout_seconds=5.0, **options):
    with InferenceClient("http://x", transport=httpx.MockTransport(script), **options) as client:
        return client.post("/v1/completions", {"prompt": "p"}, timeout_seconds=timeout_seconds)


def test_an_answer_is_returned_and_the_deadline_goes_along():
    script = Script(_ok())
    answer = _post(script, 1.5, api_key="secret", priority="low", clock=lambda: 100.0)
    assert answer == {"answer": 42}
    headers = script.requests[0].headers
    assert headers["x-request-timeout-ms"] == "1500"
    assert headers["authorization"] == "Bearer secret"
    assert headers["x-galen-priority"] == "low"


def test_a_refusal_is_tried_again_after_the_time_that_it_names():
    times = iter([0.0, 0.0, 0.0, 1.2, 1.2, 1.2])
    script = Script(_refusal(), _ok())
    assert _post(script, 2.0, clock=lambda: next(times)) == {"answer": 42}
    # What the first attempt used up is gone from the second one's deadline.
    assert [r.headers["x-request-timeout-ms"] for r in script.requests] == ["2000", "800"]


@pytest.mark.parametrize(
    "error",
    [
        _refusal(400, "invalid_input", "invalid_request"),
        _refusal(503, "engine_failed", "engine_failed"),
        _refusal(504, "deadline_exceeded", "deadline_exceeded"),
        _refusal(500, "internal", "internal"),
        _refusal(401, "unauthorized", "key_unknown"),
        httpx.Response(502, text="<html>a proxy</html>"),
    ],
)
def test_what_another_try_cannot_help_is_not_tried_again(error):
    script = Script(error)
    with pytest.raises(InferenceError) as refusal:
        _post(script)
    assert len(script.requests) == 1
    assert refusal.value.status == error.status_code


def test_nobody_comes_back_after_the_deadline():
    script = Script(_refusal(headers={"retry-after": "30"}))
    with pytest.raises(InferenceError) as refusal:
        _post(script, 2.0)
    assert refusal.value.retry_after_seconds == 30.0
    assert len(script.requests) == 1


def test_the_number_of_attempts_is_bounded():
    script = Script(*[_refusal() for _ in range(9)])
    with pytest.raises(InferenceError):
        _post(script)
    assert len(script.requests) == 4


def test_an_exhausted_budget_ends_the_retries():
    budget = RetryBudget(share=0.0, reserve=1.0)
    with pytest.raises(InferenceError):
        _post(script := Script(*[_refusal() for _ in range(4)]), budget=budget)
    assert len(script.requests) == 2
    with pytest.raises(InferenceError):
        _post(script := Script(_refusal()), budget=budget)
    assert len(script.requests) == 1


def test_a_request_that_may_have_been_received_is_not_sent_twice():
    script = Script(httpx.ReadError("gone"))
    with pytest.raises(httpx.ReadError):
        _post(script)
    assert len(script.requests) == 1


def test_the_error_of_the_other_protocol_is_understood():
    body = {"error": "no room", "code": "overloaded", "reason": "queue_full", "request_id": "r"}
    with pytest.raises(InferenceError) as refusal:
        _post(Script(httpx.Response(429, json=body)), 0.5)
    assert (refusal.value.message, refusal.value.reason) == ("no room", "queue_full")
    assert refusal.value.retryable


def test_the_asynchronous_client_does_the_same():
    script = Script(_refusal(503, "model_unavailable", "draining"), _ok())

    async def ask():
        transport = httpx.MockTransport(script)
        async with AsyncInferenceClient("http://x", transport=transport) as client:
            return await client.post("/v1/completions", {}, timeout_seconds=5.0)

    assert asyncio.run(ask()) == {"answer": 42}
    assert len(script.requests) == 2


@given(st.floats(0, 1), st.floats(0, 20), st.lists(st.booleans(), max_size=300))
def test_retries_never_exceed_the_share_and_the_reserve(share, reserve, steps):
    budget = RetryBudget(share, reserve)
    requests = retries = 0
    for is_request in steps:
        if is_request:
            budget.request()
            requests += 1
        else:
            retries += budget.take()
    assert retries <= reserve + share * requests + 1e-6


def test_a_service_that_refuses_everything_gets_a_tenth_more_and_no_avalanche():
    asked = []

    def refuse(request):
        asked.append(request)
        return _refusal(headers={"retry-after-ms": "1"})

    with InferenceClient("http://x", transport=httpx.MockTransport(refuse)) as client:
        for _ in range(200):
            with pytest.raises(InferenceError):
                client.post("/v1/completions", {}, timeout_seconds=5.0)
    assert len(asked) <= 200 * 1.1 + 5
