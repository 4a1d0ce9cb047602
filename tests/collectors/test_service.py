from __future__ import annotations

import itertools
from collections.abc import Callable

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from collectors.contract import Collector, CollectorError
from collectors.service import ENGINE_STATES, ServiceCollector
from collectors.signals import catalogue


class Service:
    """A service's metrics as the documentation names them, and a clock a second a scrape."""

    def __init__(self) -> None:
        self.start()
        self.seconds = itertools.count(100.0, 1.0)
        self.respond: Callable[[], httpx.Response] = lambda: httpx.Response(
            200, content=generate_latest(self.registry)
        )
        self.collector = ServiceCollector(
            "llm",
            "http://service.test/",
            httpx.Client(transport=httpx.MockTransport(lambda _: self.respond())),
            monotonic=self._clock,
        )
        self._now = 0.0

    def start(self, version: str = "1") -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "llm_requests", "h", ["model", "endpoint", "status"], registry=registry
        )
        self.received = Counter(
            "llm_requests_received", "h", ["model", "endpoint"], registry=registry
        )
        self.rejected = Counter(
            "llm_requests_rejected", "h", ["model", "reason"], registry=registry
        )
        self.latency = Histogram(
            "llm_request_latency_seconds",
            "h",
            ["model", "endpoint"],
            buckets=[0.1, 0.2, 0.4, 0.8],
            registry=registry,
        )
        self.tokens = Counter("llm_tokens_processed", "h", ["model", "type"], registry=registry)
        self.restarts = Counter("engine_restarts", "h", ["model", "reason"], registry=registry)
        self.steps = Counter("engine_steps", "h", ["model"], registry=registry)
        self.busy = Counter("engine_busy_seconds", "h", ["model"], registry=registry)
        self.state = Gauge("engine_state", "h", ["model", "state"], registry=registry)
        self.health = Gauge("health_status", "h", ["layer"], registry=registry)
        self.info = Gauge(
            "model_info", "h", ["model", "version", "engine", "device"], registry=registry
        )
        self.info.labels("m", version, "onnx", "cpu").set(1)
        Gauge("engine_up", "h", ["model"], registry=registry).labels("m").set(1)
        Gauge("llm_slots", "h", ["model"], registry=registry).labels("m").set(8)
        Gauge("llm_batch_size", "h", ["model"], registry=registry).labels("m").set(2)

    def _clock(self) -> float:
        return self._now

    def finish(self, status: int, times: int = 1, seconds: float = 0.15) -> None:
        self.received.labels("m", "completions").inc(times)
        self.requests.labels("m", "completions", str(status)).inc(times)
        for _ in range(times if status == 200 else 0):
            self.latency.labels("m", "completions").observe(seconds)
            self.tokens.labels("m", "prompt").inc(10)
            self.tokens.labels("m", "completion").inc(4)

    def scrape(self) -> dict[str, float]:
        self._now = next(self.seconds)
        collection = self.collector.collect(1_700_000_000.0 + self._now)
        assert {sample.entity for sample in collection.samples} == {"service/llm"}
        return {sample.signal: sample.value for sample in collection.samples}


@pytest.fixture
def service() -> Service:
    return Service()


def test_it_is_a_collector_and_speaks_the_catalogue(service: Service) -> None:
    assert isinstance(service.collector, Collector)
    service.scrape()
    for layer in ("device", "runtime", "engine", "context", "canary"):
        service.health.labels(layer).set(1)
    service.finish(200, 20)
    seen = service.scrape()
    assert set(seen) <= set(catalogue())
    assert {"llm_error_ratio", "llm_request_latency_seconds", "engine_crashes"} <= set(seen)


def test_the_first_scrape_has_gauges_and_no_rates(service: Service) -> None:
    service.finish(200, 20)
    seen = service.scrape()
    assert seen["engine_up"] == 1
    assert seen["llm_slot_usage_ratio"] == 0.25
    assert "llm_requests_per_second" not in seen
    assert "engine_crashes" not in seen


def test_rates_ratios_and_quantiles(service: Service) -> None:
    service.scrape()
    service.finish(200, 15)
    service.finish(504, 3)
    service.finish(429, 1)
    service.finish(400, 1)
    seen = service.scrape()
    assert seen["llm_requests_per_second"] == 20
    assert seen["llm_tokens_per_second"] == 60
    assert seen["llm_error_ratio"] == pytest.approx(3 / 20)
    assert seen["llm_client_error_ratio"] == pytest.approx(1 / 20)
    assert seen["llm_rejected_ratio"] == pytest.approx(1 / 20)
    assert seen["llm_request_latency_p50_seconds"] == pytest.approx(0.15)
    assert seen["llm_request_latency_seconds"] == pytest.approx(0.195)
    assert seen["llm_prompt_tokens_mean"] == 10
    assert seen["llm_output_tokens_mean"] == 4


def test_rejections_are_taken_from_admission_where_it_counts_them(service: Service) -> None:
    service.scrape()
    service.finish(200, 6)
    service.finish(503, 2)
    service.rejected.labels("m", "queue_full").inc(2)
    assert service.scrape()["llm_rejected_ratio"] == pytest.approx(0.25)


def test_a_ratio_needs_events_and_looks_further_back_for_them(service: Service) -> None:
    service.scrape()
    service.finish(500, 2)
    assert "llm_error_ratio" not in service.scrape()
    for _ in range(12):
        service.scrape()
    service.finish(200, 3)
    # The last ten seconds hold three requests; the last minute holds five.
    assert service.scrape()["llm_error_ratio"] == pytest.approx(2 / 5)


def test_no_traffic_has_no_ratio(service: Service) -> None:
    for _ in range(30):
        seen = service.scrape()
    assert "llm_error_ratio" not in seen
    assert seen["llm_requests_per_second"] == 0


def test_requests_that_never_come_back_are_errors(service: Service) -> None:
    for _ in range(12):
        service.received.labels("m", "completions").inc(2)
        seen = service.scrape()
    assert seen["llm_error_ratio"] == 1.0
    # Long answers that still produce tokens are no error.
    service.tokens.labels("m", "completion").inc(50)
    assert "llm_error_ratio" not in service.scrape()


def test_a_restarted_service_does_not_give_a_spike(service: Service) -> None:
    service.finish(200, 1000)
    service.scrape()
    service.finish(200, 5)
    service.scrape()
    service.start()
    service.finish(200, 5)
    assert service.scrape()["llm_requests_per_second"] == 5


def test_engine_events_count_since_the_last_scrape(service: Service) -> None:
    service.restarts.labels("m", "planned").inc(3)
    service.scrape()
    assert service.scrape()["engine_planned_restarts"] == 0
    service.restarts.labels("m", "crash").inc()
    seen = service.scrape()
    assert (seen["engine_crashes"], seen["engine_restarts"], seen["engine_hang_kills"]) == (1, 1, 0)
    assert service.scrape()["engine_crashes"] == 0


def test_steps_and_busy_time(service: Service) -> None:
    service.steps.labels("m").inc()
    service.busy.labels("m").inc(0.1)
    service.scrape()
    service.steps.labels("m").inc(50)
    service.busy.labels("m").inc(0.5)
    seen = service.scrape()
    assert seen["engine_steps_per_second"] == 50
    assert seen["engine_busy_ratio"] == pytest.approx(0.5)
    assert seen["engine_step_seconds"] == pytest.approx(0.01)


@pytest.mark.parametrize(("state", "code"), ENGINE_STATES.items())
def test_states_have_the_codes_of_the_catalogue(service: Service, state: str, code: int) -> None:
    for name in ENGINE_STATES:
        service.state.labels("m", name).set(float(name == state))
    assert service.scrape()["engine_state"] == code
    assert f"{code} {state}" in catalogue()["engine_state"].description


def test_the_worst_engine_stands_for_the_service(service: Service) -> None:
    service.state.labels("m", "idle").set(1)
    service.state.labels("other", "stalled").set(1)
    assert service.scrape()["engine_state"] == ENGINE_STATES["stalled"]


def test_an_idle_model_does_not_dilute_a_busy_one(service: Service) -> None:
    busy = service.busy
    busy.labels("m").inc(0)
    busy.labels("idle").inc(0)
    service.scrape()
    busy.labels("m").inc(0.9)
    assert service.scrape()["engine_busy_ratio"] == pytest.approx(0.9)


def test_an_unknown_health_layer_value_is_absent(service: Service) -> None:
    service.health.labels("device").set(0)
    seen = service.scrape()
    assert seen["health_device_ok"] == 0
    assert "health_canary_ok" not in seen


def test_a_worker_that_is_not_there_has_no_memory(service: Service) -> None:
    memory = Gauge("engine_resident_memory_bytes", "h", ["model"], registry=service.registry)
    memory.labels("m").set(0)
    assert "engine_resident_memory_bytes" not in service.scrape()
    memory.labels("m").set(5e8)
    assert service.scrape()["engine_resident_memory_bytes"] == 5e8


def test_a_new_model_version_is_an_event_once(service: Service) -> None:
    assert service.scrape()["model_version_change"] == 0
    service.start(version="2")
    assert service.scrape()["model_version_change"] == 1
    assert service.scrape()["model_version_change"] == 0


@pytest.mark.parametrize(
    ("respond", "says"),
    [
        (lambda: httpx.Response(500), "answered 500"),
        (lambda: httpx.Response(200, text="<html>"), "line 1"),
        (lambda: httpx.Response(200, content=b"x" * (5 * 1024 * 1024)), "more than"),
    ],
)
def test_a_broken_answer_is_a_collector_error(
    service: Service, respond: Callable[[], httpx.Response], says: str
) -> None:
    service.respond = respond
    with pytest.raises(CollectorError, match=says):
        service.scrape()


def test_a_service_that_is_away_is_a_collector_error(service: Service) -> None:
    def refuse() -> httpx.Response:
        raise httpx.ConnectError("refused")

    service.respond = refuse
    with pytest.raises(CollectorError, match="refused"):
        service.scrape()
