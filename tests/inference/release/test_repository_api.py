"""The model repository extension on a live service."""

import os
import shutil
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ADMIN = "/v2/repository/models"


@pytest.fixture(scope="module")
def root(tools, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tools.write_version(root, "tiny", 1, seed=1)
    tools.write_version(root, "tiny", 2, seed=2)
    tools.write_version(root, "extra", 1, seed=3)
    tools.write_version(root, "broken", 1, seed=1)
    os.truncate(root / "broken" / "1" / "model.onnx", 100)
    shutil.copytree(root / "tiny" / "1", root / "tiny" / "latest")
    return root


@pytest.fixture(scope="module")
def live(tools, root, tmp_path_factory):
    state = tmp_path_factory.mktemp("state")
    settings = {"models": ("tiny",), "probation_seconds": 0, "load_attempts": 1}
    with tools.run_service(root, state, **settings) as running:
        yield running


def index(live, **body):
    answer = live.client.post("/v2/repository/index", json=body)
    assert answer.status_code == 200
    return {(e["name"], e["version"]): (e["state"], e["reason"]) for e in answer.json()}


def ask(live, model):
    return live.complete(model=model).status_code


def test_the_index_names_everything_in_the_repository(live):
    seen = index(live)
    assert seen["tiny", "2"] == ("READY", "")
    assert seen["tiny", "1"] == ("UNAVAILABLE", "version 2 serves")
    assert seen["extra", "1"] == ("UNAVAILABLE", "not loaded")
    assert "whole number" in seen["tiny", "latest"][1]
    assert index(live, ready=True) == {("tiny", "2"): ("READY", "")}
    assert live.client.post("/v2/repository/index").status_code == 200, "the body may be left out"


@pytest.mark.parametrize("action", ["load", "unload", "versions/1/load", "versions/1/unload"])
def test_nobody_loads_or_unloads_without_the_token(live, action):
    answer = live.client.post(f"{ADMIN}/tiny/{action}")
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthorized"
    assert index(live)["tiny", "2"][0] == "READY"


def test_a_model_that_configuration_does_not_name_comes_and_goes(live, tools):
    assert ask(live, "extra") == 404
    loaded = live.admin.post(f"{ADMIN}/extra/load")
    assert loaded.json() == {"name": "extra", "version": "1", "state": "READY"}
    assert ask(live, "extra") == 200
    assert live.client.get("/v2/models/extra/ready").status_code == 200
    assert live.metric("engine_up", model="extra") == 1
    pid = live.client.get("/api/system/status").json()["models"]["extra"]["worker_pid"]
    assert live.admin.post(f"{ADMIN}/extra/unload").status_code == 200
    assert ask(live, "extra") == 404
    assert not Path(f"/proc/{pid}").exists(), "its worker is gone, and its memory with it"
    assert live.metric("engine_up", model="extra") is None
    assert index(live)["extra", "1"] == ("UNAVAILABLE", "not loaded")
    assert live.client.get("/health/live").status_code == 200
    assert live.admin.post(f"{ADMIN}/extra/unload").status_code == 404
    assert live.admin.post(f"{ADMIN}/extra/load").status_code == 200, "and comes again"
    assert ask(live, "extra") == 200
    live.admin.post(f"{ADMIN}/extra/unload")


def test_without_its_only_model_the_service_is_not_ready_but_lives(live, tools):
    assert live.admin.post(f"{ADMIN}/tiny/unload").status_code == 200
    refused = live.complete()
    assert refused.status_code == 503
    assert refused.json()["error"]["reason"] == "model_unloaded"
    assert live.client.get("/health/ready").status_code == 503
    assert live.client.get("/v2/models/tiny/ready").status_code == 503
    assert live.client.get("/health/live").status_code == 200
    assert live.metric("engine_state", model="tiny", state="unloaded") == 1
    restart = live.admin.post("/admin/engine/restart", json={"reason": "test"})
    assert restart.status_code == 409
    assert live.admin.post(f"{ADMIN}/tiny/load").status_code == 200
    tools.eventually(lambda: live.client.get("/health/ready").status_code == 200, "ready again")
    assert live.complete().status_code == 200


def test_a_version_is_loaded_by_path_or_parameter_beside_the_one_that_serves(live):
    pid = live.client.get("/api/system/status").json()["models"]["tiny"]["worker_pid"]
    assert live.admin.post(f"{ADMIN}/tiny/versions/1/load").json()["version"] == "1"
    assert index(live)["tiny", "1"][0] == "READY"
    loaded = live.admin.post(f"{ADMIN}/tiny/load", json={"parameters": {"version": 2}})
    assert loaded.json()["version"] == "2"
    assert index(live)["tiny", "2"][0] == "READY"
    status = live.client.get("/api/system/status").json()["models"]["tiny"]
    assert status["worker_pid"] == pid
    wrong = live.admin.post(f"{ADMIN}/tiny/versions/1/unload")
    assert (wrong.status_code, wrong.json()["reason"]) == (404, "version_not_found")


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("nothing/load", {}, 404, "model_not_found"),
        ("tiny/versions/9/load", {}, 404, "version_not_found"),
        ("tiny/versions/latest/load", {}, 400, "invalid_request"),
        ("tiny/versions/1/load", {"parameters": {"version": 2}}, 400, "invalid_request"),
        ("tiny/load", {"parameters": {"config": "{}"}}, 400, "unsupported_feature"),
        ("tiny/load", {"parameters": {"version": -1}}, 400, "invalid_request"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(live, path, body, status, reason):
    answer = live.admin.post(f"{ADMIN}/{path}", json=body)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)


def test_a_load_that_fails_leaves_nothing_behind(live):
    answer = live.admin.post(f"{ADMIN}/broken/load")
    assert (answer.status_code, answer.json()["reason"]) == (409, "load_failed")
    state, reason = index(live)["broken", "1"]
    assert state == "UNAVAILABLE"
    assert reason.startswith("quarantined: ")
    assert ask(live, "broken") == 404
    assert live.metric("engine_up", model="broken") is None
    again = live.admin.post(f"{ADMIN}/broken/load")
    assert (again.status_code, again.json()["reason"]) == (404, "version_not_found")
    assert live.complete().status_code == 200


def test_an_unload_answers_the_accepted_requests(live, tools):
    live.admin.post(f"{ADMIN}/extra/load")
    live.fault("engine_slow", step_seconds=0.02, model="extra")
    statuses = []

    def ask_one():
        statuses.append(ask(live, "extra"))

    threads = [threading.Thread(target=ask_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    received = lambda: live.metric("llm_requests_received_total", model="extra")  # noqa: E731
    before = 2
    tools.eventually(lambda: (received() or 0) >= before + 6, "all are accepted")
    assert live.admin.post(f"{ADMIN}/extra/unload").status_code == 200
    for thread in threads:
        thread.join(30)
    assert statuses == [200] * 6
