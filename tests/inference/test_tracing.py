"""Traces of a live service, received by a collector over real HTTP and decoded."""

import itertools
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import (
    client_attributes,
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
    user_agent_attributes,
)
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_text

from inference.settings import InferenceSettings
from inference.tracing import tracing_of

pytestmark = pytest.mark.integration

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
STAGES = ["receive", "admission", "queue", "prefix_cache", "prefill", "decode", "postprocess"]


class Collector:
    """An OTLP/HTTP receiver; ``status`` is what it answers."""

    def __init__(self):
        self.status = 200
        self.spans = []
        self.resources = []
        self.headers = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.headers.append((self.path, dict(self.headers)))
                if outer.status == 200:
                    outer.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def take(self, request):
        for resource in request.resource_spans:
            self.resources.append(_plain(resource.resource.attributes))
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()


def _plain(attributes):
    def value(item):
        kind = item.WhichOneof("value")
        if kind == "array_value":
            return [value(entry) for entry in item.array_value.values]
        return getattr(item, kind)

    return {attribute.key: value(attribute.value) for attribute in attributes}


@pytest.fixture
def collector(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with Collector().running() as running:
        yield running


@pytest.fixture
def start(tools, own_repository, tmp_path):
    def begin(**settings):
        return tools.run_service(own_repository, tmp_path / "state", **settings)

    return begin


def test_a_request_becomes_a_server_span_with_its_stages_in_its_clients_trace(
    start, tools, collector
):
    with start(trace_endpoint=collector.url) as live:
        answer = live.complete(
            "hello", max_tokens=5, headers={"traceparent": PARENT, "tracestate": "vendor=1"}
        )
        assert answer.status_code == 200
        tools.eventually(lambda: len(collector.spans) >= 8, "all spans arrive")
    (server,) = collector.named("POST /v1/completions")
    assert server.kind == server.SPAN_KIND_SERVER
    assert server.trace_id.hex() == TRACE
    assert server.parent_span_id.hex() == "b7ad6b7169203331"
    assert server.trace_state == "vendor=1"
    inside = [span for span in collector.spans if span.parent_span_id == server.span_id]
    assert [span.name for span in sorted(inside, key=lambda s: s.start_time_unix_nano)] == STAGES
    ordered = sorted(inside, key=lambda s: s.start_time_unix_nano)
    for before, after in itertools.pairwise(ordered):
        assert before.end_time_unix_nano <= after.start_time_unix_nano + 1000
    assert server.start_time_unix_nano <= ordered[0].start_time_unix_nano
    assert ordered[-1].end_time_unix_nano <= server.end_time_unix_nano
    said = answer.headers["traceparent"]
    assert said == answer.headers["traceresponse"]
    assert said == f"00-{TRACE}-{server.span_id.hex()}-01"
    assert answer.headers["tracestate"] == "vendor=1"


def test_attributes_are_those_of_the_semantic_conventions(start, tools, collector):
    with start(trace_endpoint=collector.url) as live:
        messages = [{"role": "user", "content": "a secret word"}]
        answer = live.client.post(
            "/v1/chat/completions", json={"messages": messages, "temperature": 0.5, "seed": 3}
        )
        tools.eventually(lambda: collector.named("POST /v1/chat/completions"), "it arrives")
    (server,) = collector.named("POST /v1/chat/completions")
    found = _plain(server.attributes)
    usage = answer.json()["usage"]
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == "tiny"
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert found["gen_ai.response.finish_reasons"] == [answer.json()["choices"][0]["finish_reason"]]
    assert found["gen_ai.request.temperature"] == 0.5
    assert found["http.response.status_code"] == 200
    assert found["http.route"] == "/v1/chat/completions"
    assert found["galen.request_id"] == answer.headers["x-request-id"]
    assert "secret word" not in str(collector.spans)
    modules = (gen_ai_attributes, client_attributes, error_attributes, http_attributes,
               network_attributes, server_attributes, url_attributes,
               user_agent_attributes)  # fmt: skip
    known = {value for module in modules for value in vars(module).values() if str(value) == value}
    assert {name for name in found if not name.startswith("galen.")} <= known
    assert collector.resources[0]["service.name"] == "galen-inference"


def test_texts_are_in_spans_only_where_they_are_asked_for(start, tools, collector):
    with start(trace_endpoint=collector.url, trace_prompts=True) as live:
        answer = live.complete("a secret word")
        tools.eventually(lambda: collector.named("POST /v1/completions"), "it arrives")
    found = _plain(collector.named("POST /v1/completions")[0].attributes)
    asked = json.loads(found["gen_ai.input.messages"])
    assert asked[0]["parts"][0]["content"] == "a secret word"
    said = json.loads(found["gen_ai.output.messages"])
    assert said[0]["parts"][0]["content"] == answer.json()["choices"][0]["text"]


def test_a_refusal_marks_the_stage_that_refused(start, tools, collector):
    with start(trace_endpoint=collector.url, chat_deadline_seconds=0.5) as live:
        live.fault("engine_slow", step_seconds=0.2)
        assert live.complete().status_code == 504
        assert live.complete(model="none").status_code == 404
        tools.eventually(lambda: len(collector.named("POST /v1/completions")) == 2, "they arrive")
    late, unknown = sorted(
        collector.named("POST /v1/completions"), key=lambda s: s.start_time_unix_nano
    )
    assert late.status.code == late.status.STATUS_CODE_ERROR
    assert _plain(late.attributes)["error.type"] == "deadline_exceeded"
    # By the conventions the mistakes of clients are no errors of a server.
    assert unknown.status.code == unknown.status.STATUS_CODE_UNSET
    assert _plain(unknown.attributes)["error.type"] == "model_not_found"
    (engine,) = collector.named("engine")
    assert engine.parent_span_id == late.span_id
    assert engine.status.code == engine.status.STATUS_CODE_ERROR
    refused = [s for s in collector.named("admission") if s.parent_span_id == unknown.span_id]
    assert refused[0].status.code == late.status.STATUS_CODE_ERROR


def test_what_the_client_did_not_sample_is_passed_on_and_not_sent(start, tools, collector):
    unsampled = PARENT[:-1] + "0"
    with start(trace_endpoint=collector.url, trace_sample_ratio=1.0) as live:
        answer = live.complete(headers={"traceparent": unsampled})
        assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")
        assert answer.headers["traceparent"].endswith("-00")
        live.complete()
        tools.eventually(lambda: collector.named("POST /v1/completions"), "the other arrives")
    assert TRACE not in {span.trace_id.hex() for span in collector.spans}


def test_a_ratio_of_none_traces_only_what_a_client_wants(start, tools, collector):
    with start(trace_endpoint=collector.url, trace_sample_ratio=0.0) as live:
        live.complete()
        live.complete(headers={"traceparent": PARENT})
        tools.eventually(lambda: collector.named("POST /v1/completions"), "it arrives")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}


def test_the_standard_variables_are_enough(start, tools, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.removesuffix("/v1/traces"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=galen")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-service")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with start() as live:
        live.complete()
        tools.eventually(lambda: collector.spans, "spans arrive")
    path, headers = collector.headers[0]
    assert path == "/v1/traces"
    assert headers["x-tenant"] == "galen"
    assert collector.resources[0]["service.name"] == "my-service"
    assert collector.resources[0]["deployment.environment.name"] == "test"


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]
)
def test_the_standard_variables_switch_traces_off(monkeypatch, name, value):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    assert tracing_of(InferenceSettings(), clock=lambda: 0.0, version="1") is None


def test_without_an_endpoint_there_are_no_traces_and_no_headers(live):
    assert live.service.tracing is None
    answer = live.complete(headers={"traceparent": PARENT})
    assert "traceparent" not in answer.headers


def test_a_collector_that_is_gone_costs_spans_and_no_request(start, tools, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with start(trace_endpoint="http://127.0.0.1:9/v1/traces") as live:
        assert [live.complete(max_tokens=2).status_code for _ in range(10)] == [200] * 10
        tools.eventually(
            lambda: live.metric("trace_spans_dropped_total", reason="export_failed") >= 10,
            "failed batches are counted",
        )
        assert live.metric("trace_spans_dropped_total", reason="queue_full") > 0
        assert live.metric("trace_spans_exported_total") == 0
        assert live.client.get("/health/ready").status_code == 200


def test_a_collector_that_refuses_costs_spans_until_it_takes_them(start, tools, collector):
    collector.status = 400
    with start(trace_endpoint=collector.url) as live:
        live.complete()
        tools.eventually(
            lambda: live.metric("trace_spans_dropped_total", reason="export_failed") == 8,
            "the batch is lost",
        )
        collector.status = 200
        live.complete()
        tools.eventually(lambda: live.metric("trace_spans_exported_total") == 8, "they are sent")


def test_the_last_spans_are_sent_at_the_end(start, collector, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with start(trace_endpoint=collector.url) as live:
        live.complete()
        assert not collector.spans
    assert len(collector.spans) == 8


def test_open_metrics_name_an_example_of_each_latency(start, collector):
    with start(trace_endpoint=collector.url) as live:
        live.complete(headers={"traceparent": PARENT})
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        answer = live.client.get("/metrics", headers=accept)
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        families = {f.name: f for f in text_string_to_metric_families(answer.text)}
        for name in ("llm_request_latency_seconds", "llm_time_to_first_token_seconds"):
            examples = [s.exemplar for s in families[name].samples if s.exemplar]
            assert [e.labels["trace_id"] for e in examples] == [TRACE], name
        plain = live.client.get("/metrics")
        assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert TRACE not in plain.text
        assert {f.name for f in parse_text(plain.text)} >= {"llm_requests", "engine_up"}


def test_a_stream_is_traced_to_its_last_event(start, tools, collector):
    with start(trace_endpoint=collector.url) as live:
        body = {"prompt": "hello", "stream": True}
        with live.client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.headers["traceparent"]
            answer.read()
        tools.eventually(lambda: len(collector.spans) == 8, "all spans arrive")
    assert _plain(collector.named("POST /v1/completions")[0].attributes)["gen_ai.request.stream"]


def test_a_client_that_leaves_is_told_apart(start, tools, collector):
    with start(trace_endpoint=collector.url) as live:
        live.fault("engine_slow", step_seconds=0.05)
        with pytest.raises(httpx.ReadTimeout):
            live.client.post("/v1/completions", json={"prompt": "hi"}, timeout=0.3)
        tools.eventually(lambda: collector.named("POST /v1/completions"), "it arrives")
    found = _plain(collector.named("POST /v1/completions")[0].attributes)
    assert found["error.type"] == "client_closed_request"
    assert found["http.response.status_code"] == 499


@pytest.fixture
def log_entries():
    """What is logged, with the context of each line."""
    captured = structlog.testing.LogCapture()
    configured = structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, captured])
    yield captured.entries
    structlog.configure(**configured)


def test_log_lines_of_a_request_name_it_and_its_trace(start, collector, monkeypatch, log_entries):
    monkeypatch.setattr("inference.api.openai._CompletionWriter.whole", lambda *_: 1 / 0)
    with start(trace_endpoint=collector.url) as live:
        headers = {"traceparent": PARENT, "x-request-id": "mine"}
        assert live.complete(headers=headers).status_code == 500
    (line,) = [entry for entry in log_entries if entry["event"] == "request_failed"]
    assert (line["request_id"], line["trace_id"]) == ("mine", TRACE)
    assert len(line["span_id"]) == 16


def test_log_lines_of_administration_name_its_request(start, log_entries):
    with start() as live:
        live.admin.put("/admin/drain", json={"drain": True}, headers={"x-request-id": "mine"})
        live.admin.put("/admin/drain", json={"drain": False}, headers={"x-request-id": "other"})
    lines = [entry for entry in log_entries if entry["event"] == "drain_changed"]
    assert [(line["drain"], line["request_id"]) for line in lines] == [
        (True, "mine"),
        (False, "other"),
    ]
