"""What TensorRT code can be held to without a GPU: everything that fails before it computes."""

from types import SimpleNamespace

import numpy as np
import pytest

from inference.engines.contract import CacheShape, EngineLoadError, EngineStepError, StepInputs
from inference.engines.cuda import Cuda
from inference.engines.decoding import DecoderContext
from inference.engines.tensorrt import TensorRtRuntime

SHAPE = CacheShape(layers=1, heads=1, head_dim=2)


class FakeContext:
    def __init__(self, **failures):
        self.failures = failures
        self.shapes = {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return self.failures.get("set_input_shape", True)

    def set_tensor_address(self, name, address):
        return self.failures.get("set_tensor_address", True) and address > 0

    def get_tensor_shape(self, name):
        batch, tokens = self.shapes["input_ids"]
        total = self.shapes["attention_mask"][1]
        return (batch, tokens, 5) if name == "logits" else (batch, 1, total, 2)

    def execute_async_v3(self, stream):
        return self.failures.get("execute_async_v3", True)


class FakeEngine:
    names = ("input_ids", "attention_mask", "position_ids", "logits",
             "past_key_values.0.key", "past_key_values.0.value",
             "present.0.key", "present.0.value")  # fmt: skip
    num_io_tensors = len(names)
    num_optimization_profiles = 1

    def __init__(self, context):
        self.context = context

    def create_execution_context(self):
        return self.context

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_location(self, name):
        return "device"

    def get_tensor_mode(self, name):
        return "output" if name.startswith(("logits", "present")) else "input"

    def get_tensor_shape(self, name):
        return (-1, -1)

    def get_tensor_profile_shape(self, name, number):
        return [(1, 1)] * 3

    def get_tensor_dtype(self, name):
        return np.int64 if name.endswith(("ids", "mask")) else np.float32


def _module(engine, log="", severity=1):
    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            if log:
                self.logger.log(severity, log)
            return engine

    return SimpleNamespace(
        ILogger=ILogger,
        IErrorRecorder=type("IErrorRecorder", (), {}),
        Runtime=Runtime,
        nptype=lambda dtype: dtype,
        TensorLocation=SimpleNamespace(DEVICE="device", HOST="host"),
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
    )


class FakeCuda:
    """cuda-python's runtime: every call returns a tuple of status and values."""

    def __init__(self, **statuses):
        self.statuses = statuses
        self.next_address = 1000

    def __getattr__(self, name):
        def call(*arguments):
            status = self.statuses.get(name, 0)
            if name == "cudaMalloc":
                self.next_address += 1000
                return (status, self.next_address)
            return (status, 1) if name == "cudaStreamCreate" else (status,)

        return call

    def cudaMemcpyKind(self, kind):  # noqa: N802 - NVIDIA's name
        return kind


def _load(tmp_path, module, cuda=None):
    (tmp_path / "model.plan").write_bytes(b"plan")
    return TensorRtRuntime("tensorrt", module, Cuda(cuda or FakeCuda())).load(tmp_path)


def _context(tmp_path, context, cuda=None):
    return DecoderContext(
        _load(tmp_path, _module(FakeEngine(context)), cuda).create_context(), SHAPE
    )


def _inputs(batch=2, tokens=1, past=3):
    return StepInputs(
        np.zeros((batch, tokens), np.int64),
        np.ones((batch, past + tokens), np.int64),
        np.zeros((batch, tokens), np.int64),
        [np.zeros((batch, 1, past, 2), np.float32)] * 2,
    )


def test_none_from_deserialization_is_a_load_error_with_the_logged_reason(tmp_path):
    with pytest.raises(EngineLoadError, match="cudaError 35"):
        _load(tmp_path, _module(None, "CUDA initialization failure: cudaError 35"))


def test_warnings_are_no_reason(tmp_path):
    with pytest.raises(EngineLoadError, match="gave no reason"):
        _load(tmp_path, _module(None, "slow", severity=2))


def test_a_missing_plan_is_a_load_error(tmp_path):
    with pytest.raises(EngineLoadError, match=r"model\.plan"):
        TensorRtRuntime("tensorrt", _module(None)).load(tmp_path)


def test_a_missing_module_is_said_and_not_raised():
    runtime = TensorRtRuntime.from_installed("tensorrt_that_is_not_there")
    support = runtime.is_supported()
    assert not support.supported
    assert "tensorrt_that_is_not_there" in support.reason


def test_no_context_is_a_load_error(tmp_path):
    engine = _load(tmp_path, _module(FakeEngine(None)))
    with pytest.raises(EngineLoadError, match="device memory"):
        engine.create_context()


def test_no_device_is_a_load_error(tmp_path, monkeypatch):
    (tmp_path / "model.plan").write_bytes(b"plan")
    failing = FakeCuda(cudaGetDevice=35)
    monkeypatch.setattr("inference.engines.cuda.importlib.import_module", lambda name: failing)
    runtime = TensorRtRuntime("tensorrt", _module(FakeEngine(FakeContext())))
    with pytest.raises(EngineLoadError, match=r"cudaGetDevice failed: .*35"):
        runtime.load(tmp_path)


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_a_refused_call_is_a_step_error_that_names_it(tmp_path, call):
    context = _context(tmp_path, FakeContext(**{call: False}))
    names = {"set_input_shape": "does not take", "set_tensor_address": "refused"}
    with pytest.raises(EngineStepError, match=names.get(call, call)):
        context.execute(_inputs())


def test_an_asynchronous_error_comes_out_when_the_stream_is_waited_for(tmp_path):
    cuda = FakeCuda(cudaStreamSynchronize=700)
    context = _context(tmp_path, FakeContext(), cuda)
    with pytest.raises(EngineStepError, match=r"cudaStreamSynchronize failed: .*700"):
        context.execute(_inputs())


def test_a_step_binds_every_tensor_and_returns_the_shapes_of_the_contract(tmp_path):
    context = _context(tmp_path, FakeContext())
    outputs = context.execute(_inputs(batch=2, tokens=1, past=3))
    assert outputs.logits.shape == (2, 1, 5)
    assert [array.shape for array in outputs.present] == [(2, 1, 4, 2)] * 2
