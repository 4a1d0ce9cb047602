"""Admission on a live service: keys, priorities, fallbacks, breakers, levels, clients that leave."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from inference.client import InferenceClient, InferenceError
from inference.degradation import Level
from inference.keys import new_key

pytestmark = pytest.mark.integration


@pytest.fixture
def start(tools, repository, tmp_path):
    def run(**settings):
        return tools.run_service(repository, tmp_path / "state", **settings)

    return run


@pytest.fixture
def keys(tmp_path):
    """A file with two keys, and the keys."""
    (web, web_digest), (batch, batch_digest) = new_key(), new_key()
    path = tmp_path / "keys.toml"
    path.write_text(
        f'[[key]]\nname = "web"\nsha256 = "{web_digest}"\npriority = "high"\nmodels = ["tiny"]\n'
        f'[[key]]\nname = "batch"\nsha256 = "{batch_digest}"\nrequests_per_second = 1\n'
        'priority = "low"\n',
        encoding="utf-8",
    )
    path.chmod(0o600)
    return path, {"authorization": f"Bearer {web}"}, {"authorization": f"Bearer {batch}"}


OIP = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}


def test_with_a_file_of_keys_models_need_one_and_probes_do_not(start, keys, capfd):
    path, web, batch = keys
    with start(api_keys_file=path) as live:
        assert live.complete().status_code == 401
        assert live.client.get("/v1/models").status_code == 401
        assert live.client.post("/v2/models/tiny/infer", json=OIP).status_code == 401
        assert live.complete().headers["www-authenticate"] == "Bearer"
        for probe in ("/v2/health/live", "/v2/health/ready", "/health/ready", "/metrics"):
            assert live.client.get(probe).status_code == 200
        assert live.complete(headers=web).status_code == 200
        assert live.client.get("/v1/models", headers=web).status_code == 200
        other = live.complete(headers=web, model="tiny-small")
        assert (other.status_code, other.json()["error"]["code"]) == (403, "forbidden")
        statuses = [live.complete(headers=batch).status_code for _ in range(3)]
        assert statuses[0] == 200
        assert 429 in statuses
        assert live.metric("api_key_requests_total", key="web", status="403") == 1
        assert live.metric("llm_requests_rejected_total", reason="key_rate_limit") >= 1
        secrets = [header["authorization"].removeprefix("Bearer ") for header in (web, batch)]
        seen = live.client.get("/metrics").text + live.admin.get("/admin/state").text
    seen += "".join(capfd.readouterr())
    assert not [secret for secret in secrets if secret in seen]


def test_addresses_are_limited_only_where_that_is_switched_on(start):
    with start(client_requests_per_second=1.0) as live:
        answers = [live.complete() for _ in range(4)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert answers[0].status_code == 200
        assert refused[0].json()["error"]["reason"] == "client_rate_limit"
        assert int(refused[0].headers["retry-after-ms"]) >= 1000


def test_a_priority_that_does_not_exist_is_named(start):
    with start() as live:
        answer = live.complete(headers={"x-galen-priority": "urgent"})
        assert answer.status_code == 400
        for priority in ("high", "Normal", "LOW"):
            assert live.complete(headers={"x-galen-priority": priority}).status_code == 200


def _waiting(live, count):
    return lambda: live.metric("llm_queue_depth", model="tiny") == count


def test_high_takes_the_place_of_low_in_a_full_queue(start, tools):
    with (
        start(slots=1, max_queue=1, stall_seconds=20.0, progress_budget_seconds=60.0) as live,
        ThreadPoolExecutor() as pool,
    ):
        live.fault("engine_hang")
        running = pool.submit(live.complete)
        tools.eventually(lambda: live.metric("llm_active_requests", model="tiny") == 1, "it runs")
        low = pool.submit(live.complete, headers={"x-galen-priority": "low"})
        tools.eventually(_waiting(live, 1), "low waits")
        high = pool.submit(live.complete, headers={"x-galen-priority": "high"})
        displaced = low.result(20)
        assert displaced.status_code == 429
        assert displaced.json()["error"]["reason"] == "displaced"
        assert displaced.headers["retry-after"]
        assert live.complete().json()["error"]["reason"] == "queue_full"
        assert live.metric("llm_requests_rejected_total", reason="displaced") == 1
        live.admin.delete("/admin/faults")
        assert running.result(20).status_code == 200
        assert high.result(20).status_code == 200


def _send(live, body):
    """Send a request on a connection of its own that can be cut."""
    port = httpx.URL(live.url).port
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_a_client_that_leaves_while_it_waits_leaves_the_queue(start, tools):
    with start(slots=1, stall_seconds=20.0, progress_budget_seconds=60.0) as live:
        live.fault("engine_hang")
        first = _send(live, {"prompt": "one"})
        tools.eventually(lambda: live.metric("llm_active_requests", model="tiny") == 1, "one runs")
        second = _send(live, {"prompt": "two"})
        tools.eventually(_waiting(live, 1), "two waits")
        second.close()
        tools.eventually(_waiting(live, 0), "two is gone")
        first.close()
        tools.eventually(lambda: live.metric("llm_requests_cancelled_total") == 2, "both counted")
        live.admin.delete("/admin/faults")
        tools.eventually(lambda: live.metric("llm_active_requests", model="tiny") == 0, "free")
        assert live.complete().status_code == 200
        assert live.metric("llm_requests_total", status="499") == 2


def test_a_client_that_leaves_its_stream_frees_the_slot(start, tools):
    with start(slots=1) as live:
        live.fault("engine_slow", step_seconds=0.2)
        connection = _send(live, {"prompt": "one", "stream": True, "ignore_eos": True})
        assert b"data: " in connection.recv(65536) or b"data: " in connection.recv(65536)
        steps = live.metric("engine_steps_total", model="tiny")
        connection.close()
        tools.eventually(lambda: live.metric("llm_active_requests", model="tiny") == 0, "free")
        # The engine stopped computing it: 64 tokens at 0.2 s would have been many more steps.
        assert live.metric("engine_steps_total", model="tiny") - steps < 30
        assert live.metric("llm_requests_cancelled_total") == 1


def test_a_declared_fallback_answers_for_an_engine_that_is_down_and_says_so(start, tools):
    with start(fallbacks={"tiny": ["tiny-small"]}, load_attempts=1, restart_budget=1,
               backoff_initial_seconds=5.0) as live:  # fmt: skip
        normal = live.complete()
        assert (normal.headers["x-galen-model"], normal.headers["x-galen-degradation"]) == (
            "tiny", "0",
        )  # fmt: skip
        assert "x-galen-fallback" not in normal.headers
        tools.eventually(lambda: live.metric("engine_up", model="tiny-small") == 1, "both are up")
        live.fault("engine_crash")
        tools.eventually(lambda: live.metric("engine_up", model="tiny") == 0, "down")
        answer = live.complete()
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-galen-model"] == "tiny-small"
        assert answer.headers["x-galen-fallback"] == "engine_down"
        assert answer.headers["x-galen-degradation"] == "3"
        assert answer.json()["model"] == "tiny-small"
        assert live.metric("llm_requests_fallback_total", answered_by="tiny-small") == 1


def test_an_engine_that_fails_most_of_the_time_gets_a_pause_and_one_probe(start, tools):
    with start(breaker_least_requests=4, breaker_open_seconds=0.3,
               canary_interval_seconds=60.0) as live:  # fmt: skip
        live.fault("corrupt_output", kind="nan")
        failed = [live.complete().status_code for _ in range(4)]
        assert failed == [503] * 4
        refused = live.complete()
        assert refused.json()["error"]["reason"] == "circuit_open"
        assert refused.json()["error"]["code"] == "model_unavailable"
        assert live.metric("circuit_breaker_opened_total", model="tiny") >= 1
        assert live.metric("llm_requests_rejected_total", reason="circuit_open") >= 1
        live.admin.delete("/admin/faults")
        tools.eventually(lambda: live.complete().status_code == 200, "the probe is answered")
        assert live.metric("circuit_breaker_state", model="tiny", state="closed") == 1


def test_overload_raises_the_level_by_itself_and_calm_lowers_it(start, tools):
    with start(automatic_degradation=True, degradation_raise_seconds=0.3,
               degradation_lower_seconds=0.5, slots=1, max_queue=1) as live:  # fmt: skip
        live.fault("engine_slow", step_seconds=0.02)
        stop = threading.Event()

        def hammer():
            with httpx.Client(base_url=live.url, timeout=30.0) as client:
                while not stop.is_set():
                    client.post("/v1/completions", json={"prompt": "hello"})

        threads = [threading.Thread(target=hammer) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            tools.eventually(
                lambda: live.metric("service_degradation_level") == Level.SMALL_MODEL, "raised"
            )
            state = live.admin.get("/admin/state").json()["degradation"]
            assert (state["level"], state["admin_level"], state["automatic_level"]) == (3, 0, 3)
            assert "no room" in state["reason"] or "wait" in state["reason"]
            assert live.metric("service_degradation_source_level", source="automatic") == 3
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        live.admin.delete("/admin/faults")
        tools.eventually(lambda: live.metric("service_degradation_level") == 0, "lowered", 60.0)
        assert live.complete().headers["x-galen-degradation"] == "0"


def test_the_higher_one_of_both_levels_is_in_force(start, tools):
    with start() as live:
        service = live.service
        tools.eventually(lambda: live.metric("engine_up", model="tiny-small") == 1, "both are up")
        live.admin.put("/admin/degradation", json={"level": 2, "reason": "by hand"})
        assert live.complete().headers["x-galen-degradation"] == "2"
        service.gate.automatic = type(service.gate.automatic)(Level.SMALL_MODEL, "own", 0.0)
        answer = live.complete()
        assert answer.headers["x-galen-degradation"] == "3"
        assert answer.headers["x-galen-fallback"] == "degradation"
        live.admin.put("/admin/degradation", json={"level": 0})
        assert live.complete().headers["x-galen-degradation"] == "3"


def test_our_client_speaks_with_our_service(start):
    with start(max_queue=1) as live, InferenceClient(live.url) as client:
        answer = client.post("/v1/completions", {"prompt": "hello"}, timeout_seconds=5.0)
        assert answer["choices"][0]["text"]
        with pytest.raises(InferenceError) as refusal:
            client.post("/v1/completions", {"prompt": "x", "model": "gpt-9"}, timeout_seconds=5.0)
        assert (refusal.value.status, refusal.value.reason) == (404, "model_not_found")
        live.admin.put("/admin/drain", json={"drain": True})
        with pytest.raises(InferenceError) as refusal:
            client.post("/v1/completions", {"prompt": "x"}, timeout_seconds=1.0)
        assert refusal.value.retryable
        assert refusal.value.retry_after_seconds > 1.0
