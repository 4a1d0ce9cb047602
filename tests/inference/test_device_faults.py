"""Every failure of a GPU and its library, on a live service with real workers and a fake device."""

import json
import time

import numpy as np
import pytest

from inference.demo.tensors import write_tiny_mlp
from inference.engines.contract import EngineLoadError
from inference.model import read_metadata
from inference.worker.faults import FaultInjector
from inference.worker.heartbeat import HeartbeatWriter
from inference.worker.wire import Start
from inference.worker.workload import LoadContext, load_engine

pytestmark = pytest.mark.integration


class Faults:
    """Plans faults of the model `tiny`: in a file that its worker reads at each call."""

    def __init__(self, repository):
        self._path = repository / "tiny" / "1" / "fake_device.json"

    def plan(self, kind, **options):
        part = self._path.with_suffix(".new")
        part.write_text(json.dumps([{"kind": kind, **options}]), encoding="utf-8")
        part.replace(self._path)

    def shown(self):
        return self._path.exists() and self._path.read_text(encoding="utf-8") == "[]"


@pytest.fixture
def faults(own_repository):
    return Faults(own_repository)


@pytest.fixture
def start(tools, own_repository, tmp_path):
    def begin(**settings):
        # The canary computes too; it must not be the one that a fault meets.
        values = {"engine": "fake_tensorrt", "canary_interval_seconds": 600.0, **settings}
        return tools.run_service(own_repository, tmp_path / "state", **values)

    return begin


def _error(answer):
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    return answer.json()["error"]


def _layers(live):
    return live.client.get("/health").json()["layers"]


def test_a_service_runs_on_the_fake_device_and_answers_like_onnxruntime(
    start, tools, own_repository, tmp_path
):
    with start() as live:
        ours = live.complete("hi you").json()["choices"][0]["text"]
        status = live.client.get("/api/system/status").json()["models"]["tiny"]
        assert (status["engine"], status["device"]) == ("fake_tensorrt", "cuda")
    with tools.run_service(own_repository, tmp_path / "other") as live:
        assert live.complete("hi you").json()["choices"][0]["text"] == ours


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("execute_false", "engine_failed"),
        ("async_error", "engine_failed"),
        ("nan_output", "engine_failed"),
        ("out_of_memory", "memory_limit"),
    ],
)
def test_a_step_that_fails_costs_its_requests_and_nothing_else(start, faults, kind, code):
    with start() as live:
        pid = live.client.get("/api/system/status").json()["models"]["tiny"]["worker_pid"]
        faults.plan(kind, message="the library's own words")
        error = _error(live.complete())
        assert error["code"] == code
        assert faults.shown()
        assert live.complete().status_code == 200
        status = live.client.get("/api/system/status").json()["models"]["tiny"]
        assert (status["worker_pid"], status["restarts"]) == (pid, {})
        if kind == "nan_output":
            assert live.metric("engine_invalid_outputs_total", model="tiny") == 1


def test_none_from_deserialization_fails_the_load_with_the_reason(start, faults, tools):
    with start(load_attempts=2, backoff_initial_seconds=0.05) as live:
        faults.plan("deserialize_none", message="built for sm80, this is sm90", times=2)
        live.admin.post("/admin/engine/restart", json={"reason": "test"})
        tools.eventually(
            lambda: "built for sm80" in _layers(live)["engine"]["reason"], "the reason is told"
        )
        tools.eventually(lambda: "2 times" in _layers(live)["engine"]["reason"], "it gave up")
        assert _error(live.complete())["code"] == "model_unavailable"
        assert live.client.get("/health/live").status_code == 200
        assert live.complete(model="tiny-small").status_code == 200
        live.admin.post("/admin/engine/restart", json={"reason": "the plan was built anew"})
        tools.eventually(lambda: live.complete().status_code == 200, "it answers again")


def test_a_hang_in_the_stream_is_ended_by_the_supervisor(start, faults, tools):
    with start(stall_seconds=0.3, progress_budget_seconds=1.5, chat_deadline_seconds=0.5) as live:
        faults.plan("hang")
        assert live.complete().status_code == 504
        tools.eventually(
            lambda: live.metric("engine_restarts_total", model="tiny", reason="hang") == 1, "a kill"
        )
        tools.eventually(lambda: live.complete().status_code == 200, "it answers again")


def test_a_segmentation_fault_costs_one_worker(start, faults, tools):
    with start() as live:
        faults.plan("segfault")
        assert _error(live.complete())["code"] == "engine_failed"
        tools.eventually(lambda: live.complete("other").status_code == 200, "it answers again")
        assert live.metric("engine_restarts_total", model="tiny", reason="crash") == 1
        assert live.complete(model="tiny-small").status_code == 200


def test_a_lost_device_fails_the_device_layer_until_it_is_back(start, faults, tools):
    with start(backoff_initial_seconds=1.0, load_attempts=5) as live:
        faults.plan("device_lost")
        error = _error(live.complete())
        assert error["code"] == "engine_failed"
        assert "device was lost" in error["message"]
        faults.plan("device_missing", times=2)
        tools.eventually(
            lambda: "cudaErrorNoDevice" in (_layers(live)["device"]["reason"] or ""), "it is told"
        )
        layer = _layers(live)["device"]
        assert layer["ok"] is False
        assert layer["reason"].startswith("the device was lost: ")
        assert live.client.get("/health/ready").status_code == 503
        assert live.complete(model="tiny-small").status_code == 200
        # Another prompt: the one on which the device was lost may be what broke it.
        tools.eventually(lambda: live.complete("other").status_code == 200, "the device is back")
        assert _layers(live)["device"]["ok"] is True


def test_a_canary_finds_a_lost_device_without_traffic(start, faults, tools):
    with start(canary_interval_seconds=0.2) as live:
        faults.plan("device_missing")
        tools.eventually(
            lambda: live.metric("engine_restarts_total", model="tiny", reason="crash") == 1,
            "the canary asked the device",
        )
        tools.eventually(lambda: live.client.get("/health/ready").status_code == 200, "recovery")


def test_a_cpu_where_cuda_was_wanted_is_told_everywhere(tools, own_repository, tmp_path):
    with tools.run_service(own_repository, tmp_path / "state", device="cuda") as live:
        answer = live.complete()
        assert answer.status_code == 200
        assert answer.headers["x-galen-device"] == "cpu (wanted cuda)"
        assert live.metric("engine_device_fallback", model="tiny") == 1
        layer = _layers(live)["device"]
        assert layer["ok"] is False
        assert "CUDAExecutionProvider" in layer["reason"]
        assert live.client.get("/health").status_code == 503
        assert live.client.get("/health/ready").status_code == 200


def test_where_the_cpu_must_not_stand_in_nothing_is_loaded(folder):
    start = Start(str(folder), "onnx", 1, 0, [], device="cuda", allow_device_fallback=False)
    context = LoadContext(
        start, FaultInjector(time.monotonic), HeartbeatWriter.private(), time.monotonic
    )
    with pytest.raises(EngineLoadError, match=r"on cpu and not on cuda.*allow_device_fallback"):
        load_engine(folder, read_metadata(folder), context)


def test_an_answer_from_the_right_device_says_nothing_of_it(tools, own_repository, tmp_path):
    with tools.run_service(own_repository, tmp_path / "state") as live:
        assert "x-galen-device" not in live.complete().headers
        assert live.metric("engine_device_fallback", model="tiny") == 0


def test_a_plan_that_is_not_the_one_that_was_built_says_so_in_health_and_log(
    tools, own_repository, tmp_path, capfd
):
    folder = own_repository / "tiny" / "1"
    (folder / "model.plan").write_bytes(b"another plan")
    noted = {
        "engine": "tensorrt_rtx", "version": "1.7.1", "target": "sm80", "onnx_name": "model.onnx",
        "onnx_sha256": "1" * 64, "precision": "float32", "profile": {}, "plan_bytes": 12,
        "plan_sha256": "0" * 64, "build_seconds": 1.0, "built_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(noted), encoding="utf-8")
    settings = {"engine": "tensorrt_rtx", "models": ("tiny",), "load_attempts": 1}
    with tools.run_service(
        own_repository, tmp_path / "state", wait_ready=False, **settings
    ) as live:
        tools.eventually(lambda: "SHA-256 differs" in _layers(live)["engine"]["reason"], "the plan")
        reason = _layers(live)["engine"]["reason"]
        assert "built for sm80" in reason
        assert "the model was changed after the plan was built" in reason
        assert live.client.get("/health/ready").status_code == 503
        assert live.client.get("/health/live").status_code == 200
        assert _error(live.complete())["code"] == "model_unavailable"
    assert "SHA-256 differs" in capfd.readouterr().out


def test_a_tensor_model_meets_the_same_faults_in_the_same_way(tools, tmp_path):
    root = tmp_path / "models"
    folder = write_tiny_mlp(root)
    golden = read_metadata(folder).golden[0]
    (rows,) = golden.inputs.values()
    (expected,) = golden.outputs.values()
    body = {
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": list(np.shape(rows)),
                "data": np.ravel(rows).tolist(),
            }
        ]
    }
    settings = {
        "engine": "fake_tensorrt",
        "models": ("tiny-mlp",),
        "canary_interval_seconds": 600.0,
    }
    faults = folder / "fake_device.json"
    with tools.run_service(root, tmp_path / "state", **settings) as live:

        def infer():
            return live.client.post("/v2/models/tiny-mlp/infer", json=body)

        found = infer().json()["outputs"][0]["data"]
        np.testing.assert_allclose(found, np.ravel(expected), rtol=1e-4, atol=1e-4)
        for kind, code in (
            ("out_of_memory", "memory_limit"),
            ("execute_false", "engine_failed"),
            ("nan_output", "engine_failed"),
        ):
            faults.write_text(json.dumps([{"kind": kind}]), encoding="utf-8")
            answer = infer()
            assert answer.status_code in {500, 503}, answer.text
            assert answer.json()["code"] == code
            assert infer().status_code == 200
