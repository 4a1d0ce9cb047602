from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from collectors.canary import CANARY_HEADER, CanaryCollector, GoldenPrompt
from collectors.contract import Collector, CollectorError

Respond = Callable[[httpx.Request], httpx.Response]


def _collect(respond: Respond, golden: GoldenPrompt | None = None) -> dict[str, float]:
    times = iter([1.0, 1.25, 1.25])
    collector = CanaryCollector(
        "llm",
        "http://service.test",
        httpx.Client(transport=httpx.MockTransport(respond)),
        golden or GoldenPrompt("two plus two is", " four"),
        monotonic=lambda: next(times),
    )
    assert isinstance(collector, Collector)
    samples = collector.collect(1000.0).samples
    assert {sample.entity for sample in samples} == {"service/llm"}
    return {sample.signal: sample.value for sample in samples}


def _says(text: str) -> Respond:
    return lambda _: httpx.Response(200, json={"choices": [{"text": text}]})


def test_the_golden_answer() -> None:
    assert _collect(_says(" four")) == {
        "canary_success": 1.0,
        "canary_latency_seconds": 0.25,
        "canary_output_match": 1.0,
    }


def test_another_answer_is_a_success_that_does_not_match() -> None:
    seen = _collect(_says(" fish"))
    assert (seen["canary_success"], seen["canary_output_match"]) == (1.0, 0.0)


def test_without_an_expectation_nothing_is_compared() -> None:
    assert "canary_output_match" not in _collect(_says("x"), GoldenPrompt("hello"))


def test_the_request_is_marked_and_deterministic() -> None:
    asked: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(503)

    _collect(respond, GoldenPrompt("hi", max_tokens=3, model="m"))
    (request,) = asked
    assert (request.method, request.url.path) == ("POST", "/v1/completions")
    assert request.headers[CANARY_HEADER] == "1"
    assert json.loads(request.content) == {
        "prompt": "hi",
        "max_tokens": 3,
        "temperature": 0,
        "model": "m",
    }


def _raises(error: Exception) -> Respond:
    def respond(_: httpx.Request) -> httpx.Response:
        raise error

    return respond


@pytest.mark.parametrize(
    "respond",
    [
        lambda _: httpx.Response(503),
        lambda _: httpx.Response(429),
        lambda _: httpx.Response(500),
        lambda _: httpx.Response(200, text="not json"),
        lambda _: httpx.Response(200, json={"choices": []}),
        lambda _: httpx.Response(200, json=["x"]),
        lambda _: httpx.Response(200, json={"choices": [{"text": None}]}),
        _raises(httpx.ConnectError("refused")),
        _raises(httpx.ReadTimeout("slow")),
    ],
)
def test_a_sick_service_is_a_finding(respond: Respond) -> None:
    assert _collect(respond) == {"canary_success": 0.0}


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_wrong_request_is_our_error(status: int) -> None:
    with pytest.raises(CollectorError, match=str(status)) as caught:
        _collect(lambda _: httpx.Response(status))
    assert not caught.value.retryable
