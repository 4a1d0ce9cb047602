"""Requests that bring workers down, on a live service with real workers and a real sandbox."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture
def start(tools, own_repository, tmp_path):
    """Start a service of the test's own."""

    def begin(**settings):
        values = {"canary_interval_seconds": 30.0, "backoff_initial_seconds": 0.01, **settings}
        return tools.run_service(own_repository, tmp_path / "state", **values)

    return begin


def _outcome(answer):
    return answer.status_code, answer.json().get("error", {}).get("reason")


def _poison(live):
    return live.admin.get("/admin/state").json()["poison"]


def _cases(live):
    return sum(_poison(live)["outcomes"].values())


def test_a_poison_request_is_found_and_quarantined_while_the_service_lives(start, tools):
    with start(restart_budget=3) as live:
        live.fault("poison_text", marker="xyzzy")
        failed = live.complete("say xyzzy")
        assert _outcome(failed) == (503, "engine_failed")
        # A client that tries again at once cannot bring the next worker down.
        assert _outcome(live.complete("say xyzzy")) in {(503, "suspected"), (422, "quarantined")}
        tools.eventually(lambda: live.metric("requests_quarantined") == 1, "it is quarantined")
        for _ in range(10):
            refused = live.complete("say xyzzy")
            assert _outcome(refused) == (422, "quarantined")
            assert refused.json()["error"]["code"] == "invalid_input"
        tools.eventually(lambda: live.complete("hello").status_code == 200, "others are answered")
        assert live.metric("engine_restarts_total", model="tiny", reason="crash") == 1
        assert live.metric("sandbox_trials_total", outcome="died") == 2
        assert live.metric("llm_requests_rejected_total", reason="quarantined") >= 10
        assert live.complete("say xyzzy", max_tokens=3).status_code == 503, "another request"


def test_the_culprit_among_several_is_found_and_the_others_are_cleared(start, tools):
    with start(slots=4) as live, ThreadPoolExecutor(8) as pool:
        live.fault("engine_slow", step_seconds=0.1)
        live.fault("poison_text", marker="xyzzy")
        innocent = [f"question {number}" for number in range(3)]
        answers = [pool.submit(live.complete, text) for text in innocent]
        tools.eventually(lambda: live.metric("llm_batch_size", model="tiny") == 3, "they run")
        poison = live.complete("say xyzzy")
        assert _outcome(poison) == (503, "engine_failed")
        assert {_outcome(answer.result()) for answer in answers} == {(503, "engine_failed")}
        tools.eventually(lambda: _cases(live) == 1, "an end of the investigation")
        assert _poison(live)["outcomes"] == {"found": 1}
        assert len(_poison(live)["quarantined"]) == 1
        assert live.metric("requests_suspected") == 0
        assert [live.complete(text).status_code for text in innocent] == [200] * 3
        assert _outcome(live.complete("say xyzzy")) == (422, "quarantined")


def test_requests_that_the_worker_had_not_begun_are_repeated_not_failed(start, tools):
    with start(slots=4) as live, ThreadPoolExecutor(8) as pool:
        # The worker stands in the first of its requests; the others wait inside the worker.
        live.fault("engine_hang")
        answers = [pool.submit(live.complete, f"question {number}") for number in range(4)]
        tools.eventually(lambda: live.metric("llm_active_requests", model="tiny") == 4, "they run")
        host = live.service.hosts["tiny"]
        tools.eventually(lambda: host.heartbeat().running_ids, "the worker is at the first")
        os.kill(host.supervisor.status.worker.pid, signal.SIGKILL)
        statuses = sorted(answer.result().status_code for answer in answers)
        assert statuses == [200, 200, 200, 503]
        tools.eventually(lambda: _cases(live) == 1, "an end of the investigation")
        assert _poison(live)["outcomes"] == {"cleared": 1}, "a kill from outside is nobody's fault"
        assert live.metric("requests_suspected") == 0


def test_a_request_that_hangs_is_quarantined_even_after_its_client_gave_up(start, tools):
    limits = {"stall_seconds": 0.3, "progress_budget_seconds": 1.5, "chat_deadline_seconds": 0.4}
    with start(**limits) as live:
        live.fault("poison_text", marker="xyzzy", kind="hang")
        assert live.complete("say xyzzy").status_code == 504
        tools.eventually(lambda: live.metric("requests_quarantined") == 1, "it is quarantined")
        assert _poison(live)["quarantined"][0]["effect"] == "hang"
        tools.eventually(lambda: live.complete("hello").status_code == 200, "others are answered")
        assert _outcome(live.complete("say xyzzy")) == (422, "quarantined")


def test_quarantine_outlives_the_front_and_ends_by_hand_or_with_the_version(
    start, tools, own_repository
):
    with start() as live:
        live.fault("poison_text", marker="xyzzy")
        live.complete("say xyzzy")
        tools.eventually(lambda: live.metric("requests_quarantined") == 1, "it is quarantined")
    with start() as live:
        assert _outcome(live.complete("say xyzzy")) == (422, "quarantined")
        tools.write_version(own_repository, "tiny", 2, seed=3)
        assert live.admin.post("/admin/models/tiny/reload", json={}).status_code == 200
        assert live.complete("say xyzzy").status_code == 200
        live.fault("poison_text", marker="xyzzy")
        live.complete("say xyzzy")
        tools.eventually(lambda: live.metric("requests_quarantined") == 1, "it is quarantined")
        live.admin.delete("/admin/faults")
        assert live.admin.delete("/admin/quarantine").json() == {"cleared": 1}
        tools.eventually(lambda: live.complete("say xyzzy").status_code == 200, "cleared")


def test_an_engine_that_fails_by_itself_condemns_nobody(start, tools):
    with start(stall_seconds=0.2, progress_budget_seconds=1.0, chat_deadline_seconds=5.0) as live:
        live.fault("engine_hang", persistent=True)
        assert _outcome(live.complete("hello")) == (503, "engine_failed")
        tools.eventually(lambda: _cases(live) == 1, "an end of the investigation")
        assert _poison(live)["outcomes"] == {"inconclusive": 1}
        assert _poison(live)["quarantined"] == []
        assert live.metric("requests_suspected") == 0


def test_without_a_sandbox_suspects_are_refused_for_a_while_only(start, tools):
    with start(sandbox=False, suspicion_seconds=3.0) as live:
        live.fault("poison_text", marker="xyzzy")
        assert _outcome(live.complete("say xyzzy")) == (503, "engine_failed")
        assert _outcome(live.complete("say xyzzy")) == (503, "suspected")
        live.admin.delete("/admin/faults")
        tools.eventually(lambda: live.complete("say xyzzy").status_code == 200, "accepted again")
        assert live.metric("sandbox_trials_total") == 0
