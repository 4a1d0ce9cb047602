"""The protocols over HTTP, on a live service with a real worker."""

import json
import socket

import httpx
import pytest

pytestmark = pytest.mark.integration

CHAT = [{"role": "user", "content": "hi you"}]


def _events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_completion_has_the_shape_of_openai(live):
    answer = live.complete("hello there", max_tokens=5, headers={"x-request-id": "mine"})
    assert answer.status_code == 200
    assert answer.headers["x-galen-degradation"] == "0"
    assert answer.headers["x-galen-model"] == "tiny"
    assert answer.headers["x-request-id"] == "mine"
    body = answer.json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 5
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 5


def test_chat_answers_the_last_user_message_as_the_golden_prompt_says(live):
    golden = live.service.hosts["tiny"].metadata().golden[1]
    messages = [{"role": "system", "content": "be brief"},
                {"role": "user", "content": "something else"},
                {"role": "assistant", "content": "fine"},
                {"role": "user", "content": [{"type": "text", "text": golden.text}]}]  # fmt: skip
    body = live.client.post("/v1/chat/completions", json={"messages": messages}).json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": golden.expected}


@pytest.mark.parametrize(
    ("prompt", "fields", "headers"),
    [
        ("Sentiment: so bad", {}, {}),
        ("so bad", {"task": "sentiment"}, {}),
        ("so bad", {}, {"x-galen-task": "sentiment"}),
    ],
)
def test_the_task_is_named_by_prefix_field_or_header(live, prompt, fields, headers):
    golden = live.service.hosts["tiny"].metadata().golden[0]
    body = live.complete(prompt, **fields, headers=headers).json()
    assert body["choices"][0]["text"] == golden.expected


def test_a_stream_gives_the_same_text_in_pieces(live):
    whole = live.client.post("/v1/chat/completions", json={"messages": CHAT}).json()
    streamed = live.client.post(
        "/v1/chat/completions",
        json={"messages": CHAT, "stream": True, "stream_options": {"include_usage": True}},
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *chunks, usage = _events(streamed)
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_models_are_listed(live):
    data = live.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in data] == ["tiny", "tiny-small"]


def test_oip_metadata_health_and_inference(live):
    assert live.client.get("/v2").json()["name"] == "galen"
    assert live.client.get("/v2/").status_code == 200
    assert live.client.get("/v2/health/live").status_code == 200
    assert live.client.get("/v2/health/ready").status_code == 200
    assert live.client.get("/v2/models/tiny/ready").status_code == 200
    metadata = live.client.get("/v2/models/tiny/versions/1").json()
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [1]}]
    golden = live.service.hosts["tiny"].metadata().golden[1]
    body = {"id": "42", "inputs": [
        {"name": "text", "shape": [1], "datatype": "BYTES", "data": [golden.text]}]}  # fmt: skip
    for path in ("/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer"):
        answer = live.client.post(path, json=body).json()
        assert answer["id"] == "42"
        assert (answer["model_name"], answer["model_version"]) == ("tiny", "1")
        assert answer["outputs"] == [
            {"name": "answer", "datatype": "BYTES", "shape": [1], "data": [golden.expected]}
        ]
    index = live.client.post("/v2/repository/index", json={}).json()
    assert {"name": "tiny", "version": "1", "state": "READY", "reason": ""} in index


BAD = [
    ("POST", "/v1/completions", b"{", 400, "invalid_json"),
    ("POST", "/v1/completions", b"[]", 400, "invalid_request"),
    ("POST", "/v1/completions", b'{"prompt": 5}', 400, "invalid_request"),
    ("POST", "/v1/completions", b'{"prompt": "x", "max_tokens": 0}', 400, "invalid_request"),
    ("POST", "/v1/completions", b'{"prompt": "x", "n": 2}', 400, "invalid_request"),
    ("POST", "/v1/completions", b'{"prompt": "x", "task": "poem"}', 400, "invalid_request"),
    ("POST", "/v1/completions", b'{"prompt": "x", "stop": ["a","b","c","d","e"]}', 400,
     "invalid_request"),
    ("POST", "/v1/completions", b'{"prompt": "' + b"x" * 9000 + b'"}', 400,
     "context_length_exceeded"),
    ("POST", "/v1/completions", b'{"prompt": "' + b"x" * 300_000 + b'"}', 413,
     "request_too_large"),
    ("POST", "/v1/chat/completions", b'{"messages": []}', 400, "invalid_request"),
    ("POST", "/v1/chat/completions", b'{"messages": [{"role": "system", "content": "x"}]}', 400,
     "invalid_request"),
    ("POST", "/v1/completions", b'{"prompt": "x", "model": "gpt-9"}', 404, "model_not_found"),
    ("POST", "/v1/nothing", b"{}", 404, "endpoint_not_found"),
    ("GET", "/nothing", b"", 404, "endpoint_not_found"),
    ("GET", "/v1/completions", b"", 405, "method_not_allowed"),
    ("DELETE", "/health", b"", 405, "method_not_allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "content", "status", "reason"), BAD)
def test_what_is_wrong_is_refused_at_the_route(live, method, path, content, status, reason):
    answer = live.client.request(method, path, content=content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["reason"] == reason
    assert error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]


JSON = b'{"prompt": "hello"}'
OIP_JSON = b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}'
FORM = "application/x-www-form-urlencoded"
MEDIA = [
    (None, JSON, 200),
    ("application/json; charset=utf-8", JSON, 200),
    ("application/vnd.api+json", JSON, 200),
    (FORM, JSON, 200),  # what `curl -d` says
    (FORM, b"prompt=hello", 415),
    ("text/plain", JSON, 415),
    ("application/xml", b"<prompt/>", 415),
    ("multipart/form-data; boundary=x", b"--x--", 415),
]


@pytest.mark.parametrize(("kind", "content", "status"), MEDIA)
def test_the_body_is_json_whatever_curl_calls_it(live, kind, content, status):
    headers = {} if kind is None else {"content-type": kind}
    answer = live.client.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert answer.json()["error"]["code"] == "unsupported"


def test_oip_takes_no_other_media_type_either(live):
    headers = {"content-type": "text/plain"}
    answer = live.client.post("/v2/models/tiny/infer", content=OIP_JSON, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/completions", "POST"),
        ("DELETE", "/v2/models/tiny/infer", "POST"),
        ("PUT", "/health", "GET"),
        ("PUT", "/admin/faults", "DELETE, POST"),
    ],
)
def test_a_405_names_what_is_allowed(live, method, path, allow):
    answer = live.client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)


@pytest.mark.parametrize(
    "path",
    ["/health", "/health/live", "/metrics", "/docs", "/openapi.json", "/admin/state", "/nowhere",
     "/v1/models", "/v1/nowhere", "/v2/nowhere", "/v2/health/ready"],
)  # fmt: skip
def test_every_answer_has_one_request_id_and_the_level(live, path):
    answer = live.client.get(path, headers={"x-request-id": "mine-7"})
    assert answer.headers.get_list("x-request-id") == ["mine-7"]
    assert answer.headers.get_list("x-galen-degradation") == ["0"]
    assert live.client.get(path).headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("path", ["/v1/models", "/health/ready"])
def test_a_bug_is_a_500_that_tells_nothing(live, path, monkeypatch):
    def bug(_self):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(type(live.service), "not_ready_reason", bug)
    monkeypatch.setattr(live.service, "wall_clock", lambda: bug(None))
    answer = live.client.get(path)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert "connection" not in answer.headers
    assert all(live.client.get("/v2").status_code == 200 for _ in range(3))
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


OIP_BAD = [
    ("POST", "/v2/models/tiny/infer", b"{", 400),
    ("POST", "/v2/models/tiny/infer", b'{"inputs": []}', 400),
    ("POST", "/v2/models/tiny/infer",
     b'{"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a"]}]}', 400),
    ("POST", "/v2/models/tiny/infer",
     b'{"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": [1]}]}', 400),
    ("POST", "/v2/models/other/infer", b"{}", 404),
    ("GET", "/v2/models/tiny/versions/9", b"", 404),
    ("GET", "/v2/models/tiny/infer", b"", 405),
    ("GET", "/v2/nothing/at/all", b"", 404),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "content", "status"), OIP_BAD)
def test_oip_errors_have_the_shape_of_the_protocol(live, method, path, content, status):
    answer = live.client.request(method, path, content=content)
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)


def test_refused_requests_never_reach_the_engine_and_are_counted(live):
    live.complete()
    counted = live.metric("llm_requests_total")
    answered = live.metric("llm_queue_wait_seconds_count")
    for method, path, content, _status, _reason in BAD:
        live.client.request(method, path, content=content)
    unknown = live.metric("llm_requests_total", endpoint="unknown", model="unknown", status="404")
    assert unknown >= 2
    assert live.metric("llm_requests_total") == counted + len(BAD)
    assert live.metric("llm_queue_wait_seconds_count") == answered


def test_many_unknown_models_are_one_series(live):
    for number in range(5):
        live.complete("x", model=f"made-up-{number}")
    text = live.client.get("/metrics").text
    assert "made-up" not in text
    assert live.metric("llm_requests_total", model="unknown", status="404") >= 5


def test_a_prompt_beyond_the_context_is_the_clients_fault(live):
    answer = live.complete("x" * 500)
    assert answer.status_code == 400
    assert answer.json()["error"]["reason"] == "context_length_exceeded"


def test_canary_requests_are_answered_and_not_counted(live):
    live.complete()
    before = live.metric("llm_requests_total"), live.metric("llm_requests_received_total")
    answer = live.complete("hello", headers={"x-galen-canary": "1"})
    assert answer.status_code == 200
    after = live.metric("llm_requests_total"), live.metric("llm_requests_received_total")
    assert before == after


def test_a_short_timeout_of_the_client_is_a_504(live):
    answer = live.complete("hello", headers={"x-request-timeout-ms": "1"}, max_tokens=64)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert live.complete("x", headers={"x-request-timeout-ms": "soon"}).status_code == 400


def test_the_openapi_document_names_every_route(live):
    document = live.client.get("/openapi.json").json()
    for path in ("/v1/completions", "/v2/models/{model}/infer", "/health", "/admin/faults"):
        assert path in document["paths"]
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]
    reference = body["content"]["application/json"]["schema"]["$ref"]
    assert reference.rpartition("/")[2] in document["components"]["schemas"]
    assert "prompt" in document["components"]["schemas"]["CompletionBody"]["properties"]


METRICS = [
    "llm_requests_total",
    "llm_requests_received_total",
    "llm_request_latency_seconds",
    "llm_time_to_first_token_seconds",
    "llm_time_per_output_token_seconds",
    "llm_queue_wait_seconds",
    "llm_tokens_processed_total",
    "llm_active_requests",
    "llm_queue_depth",
    "llm_batch_size",
    "llm_slots",
    "llm_cache_hits_total",
    "llm_cache_queries_total",
    "llm_cache_hit_rate",
    "engine_up",
    "engine_state",
    "engine_steps_total",
    "engine_busy_seconds_total",
    "engine_step_age_seconds",
    "engine_restarts_total",
    "engine_load_failures_total",
    "engine_invalid_outputs_total",
    "engine_load_seconds",
    "engine_resident_memory_bytes",
    "engine_cpu_seconds_total",
    "health_status",
    "health_check_age_seconds",
    "service_degradation_level",
    "model_info",
    "llm_requests_rejected_total",
    "llm_requests_cancelled_total",
]


def test_every_metric_of_the_contract_is_there(live):
    live.complete("hello")
    text = live.client.get("/metrics").text
    missing = [name for name in METRICS
               if f"# TYPE {name} " not in text
               and f"# TYPE {name.removesuffix('_total')} " not in text]  # fmt: skip
    assert not missing
    assert "_created" not in text
    states = [line for line in text.splitlines() if line.startswith('engine_state{model="tiny",')]
    assert len(states) == 8
    assert sum(float(line.rpartition(" ")[2]) for line in states) == 1


def test_health_shows_five_layers(live):
    body = live.client.get("/health").json()
    assert list(body["layers"]) == ["device", "runtime", "engine", "context", "canary"]
    assert all(layer["ok"] for layer in body["layers"].values())
    for path in ("/health/live", "/health/ready", "/health/startup", "/api/system/status"):
        assert live.client.get(path).status_code == 200


def test_administration_needs_the_token(live):
    for authorization in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic dGVzdA=="}):
        answer = live.client.get("/admin/state", headers=authorization)
        assert answer.status_code == 401
        assert live.client.post("/admin/engine/restart", json={},
                                headers=authorization).status_code == 401  # fmt: skip
    state = live.admin.get("/admin/state").json()
    assert state["models"]["tiny"]["versions"] == [
        {"version": 1, "active": True, "quarantined": None}
    ]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/admin/degradation", {"level": 9}),
        ("/admin/limits", {"max_queue": 0}),
        ("/admin/limits", {"max_quue": 1}),
    ],
)
def test_a_bad_administration_body_is_named(live, path, body):
    answer = live.admin.put(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"]


@pytest.mark.parametrize(
    "body",
    [
        {"fault": "meteor"},
        {"fault": "corrupt_output", "parameters": {"kind": "funny"}},
        {"fault": "engine_slow", "parameters": {"seconds": 1}},
    ],
)
def test_a_fault_that_does_not_exist_is_refused(live, body):
    answer = live.admin.post("/admin/faults", json=body)
    assert answer.status_code == 400
    assert live.admin.get("/admin/state").json()["faults"] == []


def test_a_body_in_pieces_is_read_whole(live):
    def pieces():
        yield b'{"prompt": '
        yield b'"hello"}'

    with httpx.Client() as client:
        answer = client.post(f"{live.url}/v1/completions", content=pieces())
    assert answer.status_code == 200


def test_a_body_that_does_not_arrive_is_a_408(tools, repository, tmp_path):
    with tools.run_service(repository, tmp_path, body_timeout_seconds=0.2) as live:
        port = httpx.URL(live.url).port
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
            )
            assert client.recv(4096).startswith(b"HTTP/1.1 408")


def test_canary_requests_of_others_are_limited(tools, repository, tmp_path):
    with tools.run_service(repository, tmp_path, canary_requests_per_second=1.0) as live:
        headers = {"x-galen-canary": "1"}
        statuses = [live.complete(headers=headers).status_code for _ in range(3)]
        assert statuses[0] == 200
        assert 429 in statuses
        assert live.metric("health_status", layer="canary") == 1
        assert live.complete().status_code == 200
