"""Requests of tensor models that were there when a worker went down."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytestmark = pytest.mark.integration

ROW = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64],
                   "data": np.zeros((1, 64)).tolist()}]}  # fmt: skip
QUICK = {
    "stall_seconds": 0.3,
    "progress_budget_seconds": 1.5,
    "canary_interval_seconds": 600.0,
    "tensor_deadline_seconds": 20.0,
}


@pytest.fixture
def start(tools, tmp_path, tensor_repository):
    def begin(**settings):
        values = {"models": ("mlp",), **QUICK, **settings}
        return tools.run_service(tensor_repository, tmp_path / "state", **values)

    return begin


def _infer(live):
    return live.client.post("/v2/models/mlp/infer", json=ROW)


def _outcomes(live):
    return live.admin.get("/admin/state").json()["poison"]["outcomes"]


def test_a_kill_from_outside_is_nobodys_fault(start, tools):
    with start() as live, ThreadPoolExecutor() as pool:
        live.fault("engine_hang")
        answer = pool.submit(_infer, live)
        host = live.service.hosts["mlp"]
        tools.eventually(lambda: host.heartbeat().running_ids, "it runs")
        os.kill(host.supervisor.status.worker.pid, signal.SIGKILL)
        assert answer.result().status_code == 503
        tools.eventually(lambda: _outcomes(live), "an end of the investigation")
        assert _outcomes(live) == {"cleared": 1}
        assert live.metric("sandbox_trials_total", outcome="survived") == 1
        tools.eventually(lambda: _infer(live).status_code == 200, "an answer")


def test_an_engine_that_hangs_by_itself_condemns_nobody(start, tools):
    with start() as live:
        live.fault("engine_hang", persistent=True)
        assert _infer(live).status_code in {503, 504}
        tools.eventually(lambda: _outcomes(live), "an end of the investigation")
        assert _outcomes(live) == {"inconclusive": 1}
        assert live.metric("requests_quarantined") == 0
        live.admin.delete("/admin/faults")
        tools.eventually(lambda: _infer(live).status_code == 200, "an answer")
