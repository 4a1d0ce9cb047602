"""What goes wrong and what happens then, on a live service with real workers."""

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytestmark = pytest.mark.integration


@pytest.fixture
def start(tools, own_repository, tmp_path):
    """Start a service of the test's own."""

    def begin(**settings):
        return tools.run_service(own_repository, tmp_path / "state", **settings)

    return begin


def _worker_pid(live):
    return live.client.get("/api/system/status").json()["models"]["tiny"]["worker_pid"]


def test_a_crash_fails_what_is_in_flight_and_the_worker_comes_back(start, tools):
    with start(canary_interval_seconds=30.0) as live, ThreadPoolExecutor() as pool:
        live.fault("engine_slow", step_seconds=1.0)
        answer = pool.submit(live.complete)
        # Before the worker is at it a request would only wait for the next worker.
        host = live.service.hosts["tiny"]
        tools.eventually(lambda: host.heartbeat().running_ids, "it runs")
        os.kill(_worker_pid(live), signal.SIGKILL)
        failed = answer.result()
        assert failed.status_code == 503
        assert failed.json()["error"]["code"] == "engine_failed"
        assert int(failed.headers["retry-after"]) >= 1
        tools.eventually(lambda: live.complete().status_code == 200, "it answers again")
        assert live.metric("engine_restarts_total", model="tiny", reason="crash") == 1
        assert live.client.get("/health/live").status_code == 200


def test_an_injected_crash_is_a_crash(start, tools):
    with start() as live:
        pid = _worker_pid(live)
        live.fault("engine_crash")
        tools.eventually(lambda: _worker_pid(live) not in {pid, None}, "another worker")
        tools.eventually(lambda: live.complete().status_code == 200, "it answers again")
        assert live.admin.get("/admin/state").json()["faults"] == []


def test_a_hang_times_out_fails_health_and_is_ended_by_the_supervisor(start, tools):
    with start(stall_seconds=0.3, progress_budget_seconds=2.0, chat_deadline_seconds=0.5) as live:
        steps = live.metric("engine_steps_total", model="tiny")
        live.fault("engine_hang")
        assert live.complete().status_code == 504
        tools.eventually(lambda: live.metric("health_status", layer="context") == 0, "stalled")
        assert live.metric("engine_state", model="tiny", state="stalled") == 1
        assert live.metric("engine_step_age_seconds", model="tiny") > 0
        assert live.client.get("/health/ready").status_code == 503
        assert live.client.get("/health/live").status_code == 200
        tools.eventually(
            lambda: live.metric("engine_restarts_total", model="tiny", reason="hang") == 1, "a kill"
        )
        tools.eventually(lambda: live.client.get("/health/ready").status_code == 200, "recovery")
        # The same text is suspected until the sandbox has cleared it.
        assert live.complete("another text").status_code == 200
        assert live.metric("engine_steps_total", model="tiny") > steps


def test_clearing_faults_ends_a_hang_without_a_restart(start, tools):
    with start(chat_deadline_seconds=0.5) as live:
        pid = _worker_pid(live)
        live.fault("engine_hang")
        assert live.complete().status_code == 504
        assert live.admin.delete("/admin/faults").status_code == 200
        tools.eventually(lambda: live.complete().status_code == 200, "it answers again")
        assert _worker_pid(live) == pid


def test_a_planned_restart_loses_no_request(start, tools):
    with start(terminate_grace_seconds=0.2) as live, ThreadPoolExecutor() as pool:
        live.fault("engine_hang")
        answers = [pool.submit(live.complete) for _ in range(6)]
        tools.eventually(lambda: live.metric("llm_queue_depth") == 4, "four wait, two run")
        live.admin.post("/admin/engine/restart", json={"reason": "test"})
        assert [answer.result().status_code for answer in answers] == [200] * 6
        assert live.metric("engine_restarts_total", model="tiny", reason="planned") == 1


def test_a_full_queue_refuses_fast_and_stays_alive(start, tools):
    with (
        start(max_queue=2, slots=1, canary_interval_seconds=30.0) as live,
        ThreadPoolExecutor() as pool,
    ):
        live.fault("engine_hang")
        answers = [pool.submit(live.complete) for _ in range(3)]
        tools.eventually(lambda: live.metric("llm_queue_depth", model="tiny") == 2, "it is full")
        refused = live.complete()
        assert refused.status_code == 429
        assert refused.json()["error"]["reason"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert live.client.get("/health/live").status_code == 200
        assert live.metric("llm_requests_rejected_total", reason="queue_full") == 1
        live.admin.delete("/admin/faults")
        assert [answer.result().status_code for answer in answers] == [200] * 3


def test_a_client_that_leaves_frees_its_slot(start, tools):
    with start(slots=1, canary_interval_seconds=30.0) as live:
        live.fault("engine_slow", step_seconds=0.05)
        body = b'{"prompt": "hello", "max_tokens": 64}'
        with socket.create_connection(("127.0.0.1", httpx.URL(live.url).port)) as client:
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            client.sendall(head.encode() + body)
            tools.eventually(lambda: live.metric("llm_active_requests") == 1, "it runs")
        tools.eventually(lambda: live.metric("llm_active_requests") == 0, "the slot is free")
        assert live.metric("llm_batch_size", model="tiny") == 0
        assert live.metric("llm_requests_cancelled_total", model="tiny") == 1
        assert live.metric("llm_requests_total", model="tiny", status="499") == 1


@pytest.mark.parametrize("kind", ["nan", "wrong"])
def test_corrupt_output_fails_the_canary_and_readiness(start, tools, kind):
    with start() as live:
        live.fault("corrupt_output", kind=kind)
        tools.eventually(lambda: live.metric("health_status", layer="canary") == 0, "canary fails")
        assert live.client.get("/health/ready").status_code == 503
        invalid = live.metric("engine_invalid_outputs_total", model="tiny")
        if kind == "nan":
            answer = live.complete()
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")
            assert invalid > 0
        else:
            assert live.complete().status_code == 200
            assert invalid == 0
        live.admin.post("/admin/engine/restart", json={"reason": "cure"})
        tools.eventually(lambda: live.client.get("/health/ready").status_code == 200, "cured")


def test_a_persistent_fault_outlives_a_restart_and_is_cleared(start, tools):
    with start() as live:
        pid = _worker_pid(live)
        live.fault("corrupt_output", kind="wrong", persistent=True)
        live.admin.post("/admin/engine/restart", json={"reason": "in vain"})
        tools.eventually(lambda: _worker_pid(live) not in {pid, None}, "another worker")
        tools.eventually(lambda: live.metric("health_status", layer="canary") == 0, "still wrong")
        assert live.admin.get("/admin/state").json()["faults"][0]["fault"] == "corrupt_output"
        live.admin.delete("/admin/faults")
        tools.eventually(lambda: live.client.get("/health/ready").status_code == 200, "cleared")


def test_slow_steps_miss_the_deadline(start):
    with start(chat_deadline_seconds=0.5) as live:
        live.fault("engine_slow", step_seconds=0.2)
        answer = live.complete()
        assert answer.status_code == 504
        assert live.metric("llm_requests_total", model="tiny", status="504") == 1


def test_metrics_can_hang_while_the_rest_works(start, tools):
    with start() as live:
        live.fault("metrics_hang")
        with pytest.raises(httpx.ReadTimeout):
            live.client.get("/metrics", timeout=0.3)
        assert live.complete().status_code == 200
        live.admin.delete("/admin/faults")
        assert live.metric("engine_up", model="tiny") == 1


def test_a_memory_leak_is_ended_at_the_limit(start, tools):
    with start(memory_limit_bytes=160 * 2**20) as live:
        live.fault("host_memory_leak", bytes_per_second=200 * 2**20)
        tools.eventually(
            lambda: live.metric("engine_restarts_total", model="tiny", reason="memory") == 1,
            "a kill",
        )
        tools.eventually(lambda: live.client.get("/health/ready").status_code == 200, "recovery")


def test_a_bad_rollout_stays_down_until_it_is_rolled_back(start, tools):
    with start(load_attempts=2) as live:
        live.fault("model_load_failure")
        tools.eventually(
            lambda: live.metric("engine_state", model="tiny", state="failed") == 1, "it gives up"
        )
        refused = live.complete()
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "model_unavailable"
        assert live.metric("engine_load_failures_total", model="tiny") == 2
        assert live.client.get("/health/ready").status_code == 503
        assert live.client.get("/health/live").status_code == 200
        answer = live.admin.post("/admin/models/tiny/rollback")
        assert (answer.status_code, answer.json()["version"]) == (200, 1)
        tools.eventually(lambda: live.client.get("/health/ready").status_code == 200, "recovery")
        versions = live.admin.get("/admin/state").json()["models"]["tiny"]["versions"]
        assert versions[1]["quarantined"] == "rolled back"


def test_reload_swaps_to_a_proven_version_and_rollback_returns(start, tools, own_repository):
    with start() as live:
        tools.write_version(own_repository, "tiny", 2, seed=3)
        before = live.complete().json()["choices"][0]["text"]
        pid = _worker_pid(live)
        answer = live.admin.post("/admin/models/tiny/reload", json={})
        assert (answer.status_code, answer.json()["version"]) == (200, 2)
        assert live.complete().json()["choices"][0]["text"] != before
        assert live.metric("model_info", model="tiny", version="2") == 1
        assert live.admin.post("/admin/models/tiny/rollback").json()["version"] == 1
        assert live.complete().json()["choices"][0]["text"] == before
        assert _worker_pid(live) == pid


def test_a_version_with_wrong_answers_is_not_taken_into_service(start, tools, own_repository):
    with start() as live:
        folder = tools.write_version(own_repository, "tiny", 2, seed=3)
        good = own_repository / "tiny" / "1" / "model.onnx"
        (folder / "model.onnx").write_bytes(good.read_bytes())
        answer = live.admin.post("/admin/models/tiny/reload", json={})
        assert answer.status_code == 409
        assert "golden prompt" in answer.json()["error"]["message"]
        assert live.complete().status_code == 200
        assert live.metric("engine_load_failures_total", model="tiny") == 1
        versions = live.admin.get("/admin/state").json()["models"]["tiny"]["versions"]
        assert versions[0]["active"]
        assert "golden prompt" in versions[1]["quarantined"]
        assert live.admin.post("/admin/models/tiny/rollback").status_code == 409


def test_degradation_levels_are_labelled_and_level_four_refuses(start, tools):
    with start(degraded_max_tokens=3) as live:

        def level(number):
            answer = live.admin.put(
                "/admin/degradation", json={"level": number, "reason": "a drill"}
            )
            assert answer.status_code == 200

        level(1)
        assert live.complete(headers={"x-galen-priority": "low"}).status_code == 429
        assert live.complete().status_code == 200
        level(2)
        assert live.complete().json()["usage"]["completion_tokens"] == 3
        level(3)
        answer = live.complete()
        assert answer.headers["x-galen-degradation"] == "3"
        assert answer.headers["x-galen-model"] == answer.json()["model"] == "tiny-small"
        assert live.client.get("/health").json()["model"] == "tiny-small"
        level(4)
        answer = live.complete()
        assert answer.status_code == 503
        assert "a drill" in answer.json()["error"]["message"]
        assert live.client.get("/health/ready").status_code == 503
        assert live.metric("service_degradation_level") == 4
        level(0)
        tools.eventually(lambda: live.complete().status_code == 200, "full service")


def test_the_small_model_answers_while_the_default_model_is_down(start, tools):
    with start(load_attempts=1, automatic_fallback=True) as live:
        live.fault("model_load_failure")
        tools.eventually(
            lambda: live.metric("engine_state", model="tiny", state="failed") == 1, "it gives up"
        )
        answer = live.complete()
        assert answer.status_code == 200
        assert answer.headers["x-galen-model"] == "tiny-small"
        assert answer.headers["x-galen-degradation"] == "3"


def test_limits_can_be_set_and_lifted(start):
    with start() as live:
        changed = live.admin.put(
            "/admin/limits", json={"requests_per_second": 1.0, "max_slots": 1}
        ).json()
        assert changed == {"max_queue": 256, "max_slots": 1, "requests_per_second": 1.0}
        statuses = [live.complete().status_code for _ in range(3)]
        assert statuses[0] == 200
        assert 429 in statuses
        lifted = live.admin.put(
            "/admin/limits", json={"requests_per_second": None, "max_slots": None}
        ).json()
        assert lifted == {"max_queue": 256, "max_slots": 2, "requests_per_second": None}
        assert [live.complete().status_code for _ in range(5)] == [200] * 5


def test_draining_refuses_new_requests_and_can_be_undone(start):
    with start() as live:
        live.admin.put("/admin/drain", json={"drain": True})
        answer = live.complete()
        assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "draining")
        assert live.client.get("/health/ready").status_code == 503
        assert live.client.get("/health/live").status_code == 200
        live.admin.put("/admin/drain", json={"drain": False})
        assert live.complete().status_code == 200


def test_faults_are_refused_unless_configuration_allows_them(start):
    with start(allow_faults=False) as live:
        answer = live.admin.post("/admin/faults", json={"fault": "engine_crash"})
        assert answer.status_code == 403
        assert live.admin.delete("/admin/faults").status_code == 403


def test_clearing_the_cache_ends_its_hits(start):
    with start(canary_interval_seconds=30.0) as live:

        def cached():
            usage = live.complete("a prompt to repeat").json()["usage"]
            return usage["prompt_tokens_details"]["cached_tokens"]

        template = cached()  # what the prompts of a task begin with is always there
        assert cached() > template
        live.admin.post("/admin/cache/clear")
        assert cached() == template


def test_a_generated_token_is_private_and_stays(start, tmp_path):
    path = tmp_path / "state" / "admin_token"
    with start(admin_token=None) as live:
        token = path.read_text(encoding="ascii")
        assert path.stat().st_mode & 0o777 == 0o600
        headers = {"authorization": f"Bearer {token}"}
        assert live.client.get("/admin/state", headers=headers).status_code == 200
    with start(admin_token=None):
        assert path.read_text(encoding="ascii") == token
