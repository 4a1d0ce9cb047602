"""The process lives, its health check says 200, and nobody gets an answer."""

import json
import os
import signal

import psutil
import pytest

pytestmark = pytest.mark.integration

QUICK = {"stall_seconds": 0.3, "progress_budget_seconds": 1.5}


def test_a_frozen_engine_is_not_ready_and_is_replaced(start, tools, probes):
    """vLLM #36451, #36960, #17972, #39863, #16259, #53130 and Ray #61263.

    The engine stands still below a server whose health check only asks whether a process lives; one
    stayed in rotation for 85 minutes. Here a stopped process is seen by its missing progress.
    """
    with start(**QUICK, chat_deadline_seconds=1.0) as live:
        frozen = probes.worker(live)
        os.kill(frozen, signal.SIGSTOP)
        assert live.complete().status_code in {503, 504}
        tools.eventually(lambda: probes.statuses(live)[1] == 503, "it is not ready")
        assert probes.statuses(live)[0] == 200, "restarting the front would not help"
        tools.eventually(lambda: probes.worker(live) not in {frozen, None}, "another worker")
        tools.eventually(lambda: probes.statuses(live)[1] == 200, "it is ready again")
        assert live.complete().status_code == 200
        assert live.metric("engine_restarts_total", reason="hang") == 1


def test_who_cannot_be_answered_in_time_is_told_at_once(start, tools, probes):
    """vLLM #36451 from the client's side: each request waited for its timeout, one by one."""
    limits = {"stall_seconds": 0.5, "progress_budget_seconds": 60.0, "chat_deadline_seconds": 5.0}
    with start(**limits) as live:
        os.kill(probes.worker(live), signal.SIGSTOP)
        tools.eventually(
            lambda: live.metric("engine_state", model="tiny", state="stalled") == 1, "it stalls"
        )
        answer = live.complete()
        assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "engine_stalled")
        assert int(answer.headers["retry-after"]) > 5
        assert live.complete(model="tiny-small").status_code == 200, "the other model serves"
        os.kill(probes.worker(live), signal.SIGCONT)
        tools.eventually(lambda: live.complete().status_code == 200, "it goes on")
        assert probes.restarts(live) == 0


def test_a_hang_with_no_user_request_is_found_by_the_canary(start, tools, probes):
    """vLLM #36451 again: without traffic nothing moves, and nothing tells idle from dead."""
    with start(**QUICK) as live:
        live.fault("engine_hang")
        tools.eventually(lambda: probes.statuses(live)[1] == 503, "it is not ready")
        tools.eventually(lambda: probes.statuses(live)[1] == 200, "it is ready again")
        assert live.metric("engine_restarts_total", reason="hang") == 1


def test_a_stream_whose_engine_stops_ends_with_an_error(start, tools):
    """SGLang #4191 and vLLM #17972: streams stay open for ever once the engine has stopped."""
    with start(**QUICK, canary_interval_seconds=30.0) as live:
        live.fault("engine_slow", step_seconds=0.05)
        with live.client.stream(
            "POST", "/v1/completions", json={"prompt": "hello", "stream": True}
        ) as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("data: "))
            assert "choices" in next(lines)
            live.fault("engine_hang")
            last = list(lines)[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
        tools.eventually(lambda: live.complete().status_code == 200, "it answers again")


@pytest.mark.parametrize(
    "prompt",
    [
        "\ud800",
        "\x00",
        "\U0010ffff" * 8,
        "<|end|><|answer|>",
        "\u202e\ufeff",
        " " * 90,
        "e\u0301" * 9,
    ],
    ids=["surrogate", "nul", "last-plane", "special", "marks", "spaces", "combining"],
)
def test_one_strange_request_does_not_end_generation(live, prompt):
    """KServe 0.13.1: one bad request killed the generation thread; all later ones hung with 200."""
    body = json.dumps({"prompt": prompt, "max_tokens": 4}).encode()
    headers = {"content-type": "application/json"}
    answer = live.client.post("/v1/completions", content=body, headers=headers)
    assert answer.status_code in {200, 400}
    assert live.complete("hello", max_tokens=4).status_code == 200
    assert live.metric("llm_active_requests", model="tiny") == 0
    assert live.metric("engine_restarts_total", model="tiny") == 0


def test_an_engine_that_fails_each_step_is_not_ready(start, tools, probes):
    """Triton #3627: after a CUDA assert every inference failed while the server said ready."""
    with start() as live:
        live.fault("engine_error")
        answer = live.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")
        tools.eventually(lambda: probes.statuses(live)[1] == 503, "it is not ready")
        assert live.client.get("/health").json()["layers"]["canary"]["ok"] is False
        live.admin.post("/admin/engine/restart", json={"reason": "cure"})
        tools.eventually(lambda: probes.statuses(live)[1] == 200, "it is ready again")


def test_a_lost_device_ends_its_worker_and_is_visible(start, tools, probes):
    """Triton #3627 and its like: a context that is lost never comes back within one process."""
    with start(restart_budget=2) as live:
        live.fault("device_lost", persistent=True)
        answer = live.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")
        tools.eventually(
            lambda: live.metric("engine_state", model="tiny", state="failed") == 1, "it gives up"
        )
        device = live.client.get("/health").json()["layers"]["device"]
        assert device["ok"] is False
        assert "fell off the bus" in device["reason"]
        assert live.metric("engine_restarts_total", model="tiny", reason="crash") == 3
        assert probes.statuses(live)[:2] == (200, 503)
        other = live.complete(model="tiny-small")
        assert other.status_code == 200, "the other model keeps serving"
        live.admin.delete("/admin/faults")
        live.admin.post("/admin/engine/restart", json={"reason": "the device is back"})
        tools.eventually(lambda: probes.statuses(live)[1] == 200, "it is ready again")


def test_a_dead_worker_is_no_zombie_and_is_replaced(start, tools, probes):
    """Triton #8604: a killed stub process stayed as a zombie and was taken for a living one."""
    with start() as live:
        dead = probes.worker(live)
        os.kill(dead, signal.SIGKILL)
        tools.eventually(lambda: probes.worker(live) not in {dead, None}, "another worker")
        tools.eventually(lambda: live.complete().status_code == 200, "it answers")
        assert not psutil.pid_exists(dead)
