"""Versions are swapped under load, and nobody notices."""

import threading
from collections import defaultdict

import httpx
import pytest

from inference.demo.tensors import write_tiny_mlp

pytestmark = pytest.mark.integration


class Crowd:
    """Clients that ask without a pause, each answer followed by the next request."""

    def __init__(self, live, clients, body=None, path="/v1/completions"):
        self.statuses = []
        self.versions = []
        self.values = defaultdict(set)
        self._live = live
        self._path = path
        self._body = body or {"prompt": "hello", "max_tokens": 24}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self):
        with httpx.Client(base_url=self._live.url, timeout=30.0) as client:
            while not self._stop.is_set():
                answer = client.post(self._path, json=self._body)
                self.statuses.append(answer.status_code)
                if "model_version" in answer.text:
                    body = answer.json()
                    self.versions.append(body["model_version"])
                    self.values[body["model_version"]].add(str(body["outputs"][0]["data"]))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_no_request_fails_while_versions_are_swapped(tools, own_repository, tmp_path):
    """With more clients than slots the batch is never empty, and the swap must not wait for that."""
    tools.write_version(own_repository, "tiny", 2, seed=2)
    settings = {"load_budget_seconds": 20.0, "chat_deadline_seconds": 30.0, "slots": 2}
    with tools.run_service(own_repository, tmp_path / "state", **settings) as live:
        live.admin.post("/admin/models/tiny/reload", json={"version": 1})
        live.fault("engine_slow", step_seconds=0.002)
        pid = live.client.get("/api/system/status").json()["models"]["tiny"]["worker_pid"]
        body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hello"]}]}
        with Crowd(live, 6, body, "/v2/models/tiny/infer") as crowd:
            for version in (2, 1, 2):
                before = len(crowd.statuses)
                tools.eventually(lambda n=before: len(crowd.statuses) > n + 12, "it is busy")
                answer = live.admin.post("/admin/models/tiny/reload", json={"version": version})
                assert answer.status_code == 200, answer.text
            before = len(crowd.statuses)
            tools.eventually(lambda: len(crowd.statuses) > before + 12, "it is busy after the swap")
        assert set(crowd.statuses) == {200}
        assert set(crowd.versions) == {"1", "2"}
        assert not crowd.values["1"] & crowd.values["2"], "answers name the version that gave them"
        status = live.client.get("/api/system/status").json()["models"]["tiny"]
        assert status["worker_pid"] == pid, "the same worker"


def test_no_tensor_request_fails_while_versions_are_swapped(tools, tmp_path):
    root = tmp_path / "models"
    for version in (1, 2):
        write_tiny_mlp(root, version=version, seed=version)
    settings = {"models": ("tiny-mlp",), "load_budget_seconds": 20.0}
    row = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}
    with tools.run_service(root, tmp_path / "state", **settings) as live:
        with Crowd(live, 6, {"inputs": [row]}, "/v2/models/tiny-mlp/infer") as crowd:
            for version in (1, 2, 1):
                before = len(crowd.statuses)
                tools.eventually(lambda n=before: len(crowd.statuses) > n + 50, "it is busy")
                answer = live.admin.post("/admin/models/tiny-mlp/reload", json={"version": version})
                assert answer.status_code == 200, answer.text
            before = len(crowd.statuses)
            tools.eventually(lambda: len(crowd.statuses) > before + 50, "it is busy after the swap")
        assert set(crowd.statuses) == {200}
        assert set(crowd.versions) == {"1", "2"}
        assert not crowd.values["1"] & crowd.values["2"], "answers name the version that gave them"
