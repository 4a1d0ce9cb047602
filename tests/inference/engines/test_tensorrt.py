"""TensorRT code on the fake device: what each failure of the library becomes."""

import json

import numpy as np
import pytest

from inference.engines.contract import (
    DeviceLostError,
    EngineLoadError,
    EngineStepError,
    OutOfMemoryError,
    StepInputs,
)
from inference.engines.cuda import Cuda, DeviceMemory, DeviceTensor
from inference.engines.decoding import DecoderContext, derive_interface
from inference.engines.fake import FakeDevice, FaultProgram, PlannedFault, make_module
from inference.engines.fake.program import FaultKind
from inference.engines.onnx import OnnxRuntime
from inference.engines.reasons import ReasonLog
from inference.engines.tensorrt import TensorRtRuntime


class Setup:
    def __init__(self, folder, device, profiles=()):
        self.folder, self.device = folder, device
        self.interface = derive_interface(OnnxRuntime().load(folder).signature, "tiny")
        self.shape = self.interface.shape
        module = make_module(device, profiles)
        self.runtime = TensorRtRuntime("trt", module, Cuda(device.cuda), file="model.onnx")

    def plan(self, kind, **options):
        self.device.program.plan(PlannedFault(FaultKind(kind), **options))

    def load(self):
        return self.runtime.load(self.folder)

    def context(self, resident=False):
        self.engine = self.load()
        self.raw = self.engine.create_context()
        return DecoderContext(self.raw, self.interface, resident=resident)

    def step(self, context, past=None, batch=1, position=0):
        return context.execute(
            StepInputs(
                np.full((batch, 1), 40, np.int64),
                np.ones((batch, position + 1), np.int64),
                np.full((batch, 1), position, np.int64),
                past or self.shape.empty(batch),
            )
        )


@pytest.fixture
def setup(folder):
    return Setup(folder, FakeDevice())


def test_none_from_deserialization_is_a_load_error_with_the_reason_of_the_library(setup):
    setup.plan("deserialize_none", message="built for sm80, this is sm90")
    with pytest.raises(EngineLoadError, match="built for sm80, this is sm90"):
        setup.load()


def test_a_device_that_is_missing_is_lost_at_load(setup):
    setup.plan("device_missing")
    with pytest.raises(DeviceLostError, match="cudaErrorNoDevice"):
        setup.load()


def test_a_missing_plan_is_a_load_error(tmp_path):
    device = FakeDevice()
    with pytest.raises(EngineLoadError, match=r"model\.plan"):
        TensorRtRuntime("trt", make_module(device), Cuda(device.cuda)).load(tmp_path)


def test_a_missing_module_is_said_and_not_raised(tmp_path):
    runtime = TensorRtRuntime.from_installed("tensorrt_that_is_not_there")
    assert "tensorrt_that_is_not_there" in runtime.is_supported().reason
    with pytest.raises(EngineLoadError, match="tensorrt_that_is_not_there"):
        runtime.load(tmp_path)


def test_false_from_execute_is_a_step_error_with_the_recorded_reason(setup):
    context = setup.context()
    setup.plan("execute_false", message="kernel not found")
    with pytest.raises(EngineStepError, match=r"execute_async_v3 returned False.*kernel not found"):
        setup.step(context)
    assert np.isfinite(setup.step(context).logits).all()


def test_an_allocation_that_failed_is_told_apart(setup):
    context = setup.context()
    setup.plan("out_of_memory")
    with pytest.raises(OutOfMemoryError) as caught:
        setup.step(context)
    assert (caught.value.code, caught.value.fatal) == ("memory_limit", False)
    assert np.isfinite(setup.step(context).logits).all()


def test_an_asynchronous_error_comes_out_when_the_stream_is_waited_for(setup):
    context = setup.context()
    setup.plan("async_error")
    with pytest.raises(EngineStepError, match=r"cudaStreamSynchronize failed.*701") as caught:
        setup.step(context)
    assert not caught.value.fatal
    assert np.isfinite(setup.step(context).logits).all()


def test_a_lost_device_is_fatal_and_stays_lost(setup):
    context = setup.context()
    setup.plan("device_lost")
    for _ in range(2):
        with pytest.raises(DeviceLostError) as caught:
            setup.step(context)
        assert caught.value.fatal
    with pytest.raises(DeviceLostError):
        setup.engine.placement()
    setup.raw.close()  # and gives nothing back to a device that is not there
    assert setup.device.calls.get("cudaFree", 0) <= 1


def test_an_output_that_is_not_a_number_is_passed_on_for_the_worker_to_see(setup):
    context = setup.context()
    setup.plan("nan_output")
    assert np.isnan(setup.step(context).logits).all()


def test_a_full_device_is_out_of_memory_until_there_is_room(folder):
    setup = Setup(folder, FakeDevice(memory_bytes=64 * 1024))
    context = setup.context()
    assert setup.step(context).logits.shape[0] == 1
    with pytest.raises(OutOfMemoryError, match="cudaMalloc"):
        setup.step(context, batch=4000)
    assert setup.step(context).logits.shape[0] == 1


def test_keys_and_values_stay_on_the_device_and_steps_allocate_nothing(setup):
    context = setup.context(resident=True)
    outputs = setup.step(context)
    for position in range(1, 40):
        outputs = setup.step(context, outputs.present, position=position)
        if position == 33:  # both buffers of the larger size class are there now
            before = dict(setup.device.calls)
    assert all(isinstance(tensor, DeviceTensor) for tensor in outputs.present)
    after = setup.device.calls
    assert after["cudaMalloc"] == before["cudaMalloc"]
    # Three inputs up and the logits down; no cache.
    assert after["cudaMemcpyAsync"] - before["cudaMemcpyAsync"] == 6 * 4


def test_a_tensor_of_another_context_goes_through_the_host(setup):
    context = setup.context(resident=True)
    first = setup.step(context)
    other = DecoderContext(setup.engine.create_context(), setup.interface)
    expected = setup.step(context, first.present, position=1).logits
    np.testing.assert_allclose(setup.step(other, first.present, position=1).logits, expected)


def test_a_closed_context_runs_nothing_and_all_memory_is_given_back(setup):
    context = setup.context()
    setup.step(context)
    assert setup.device.used_bytes > 0
    setup.engine.close()
    assert setup.device.used_bytes == 0
    with pytest.raises(EngineStepError, match="closed"):
        setup.step(context)


def _profile(batch, tokens, past):
    """A profile of one batch size range; each argument is (min, opt, max)."""
    total = tuple(a + b for a, b in zip(tokens, past, strict=True))

    def ranges(*axes):
        return tuple(tuple(axis[i] for axis in axes) for i in range(3))

    heads, dim = (2, 2, 2), (8, 8, 8)
    names = [f"past_key_values.{i}.{part}" for i in range(2) for part in ("key", "value")]
    return {
        "input_ids": ranges(batch, tokens),
        "position_ids": ranges(batch, tokens),
        "attention_mask": ranges(batch, total),
        **{name: ranges(batch, heads, past, dim) for name in names},
    }


def test_the_profile_follows_the_shapes(folder):
    prompts = _profile((1, 1, 1), (1, 32, 64), (0, 0, 64))
    steps = _profile((1, 4, 8), (1, 1, 1), (1, 16, 64))
    setup = Setup(folder, FakeDevice(), [prompts, steps])
    context = setup.context(resident=True)
    outputs = setup.step(context)
    assert setup.raw._profile == 0
    for position in range(1, 16):
        outputs = setup.step(context, outputs.present, position=position)
    assert setup.raw._profile == 1
    setup.step(context)
    assert setup.raw._profile == 0
    with pytest.raises(EngineStepError, match=r"does not take input_ids of shape \[9, 1\]"):
        setup.step(context, batch=9)
    past = [np.zeros((1, 2, 0, 8), np.float32)] * 4
    with pytest.raises(EngineStepError, match="together"):
        setup.step(context, past, batch=2, position=1)


def test_a_shape_outside_of_the_only_profile_is_refused_with_its_range(folder):
    setup = Setup(folder, FakeDevice(), [_profile((1, 1, 2), (1, 1, 8), (0, 8, 16))])
    with pytest.raises(EngineStepError, match=r"\[3, 1\], only \[1, 1\]..\[2, 8\]"):
        setup.step(setup.context(), batch=3)


def test_warnings_are_no_reason_and_one_cause_is_told_once():
    module = make_module(FakeDevice())
    log = ReasonLog(module)
    log.logger.log(module.ILogger.WARNING, "slow")
    assert log.take() == ""
    log.logger.log(module.ILogger.ERROR, "FAILED_EXECUTION: no kernel")
    log.recorder.report_error(7, "no kernel")
    assert log.recorder.num_errors() == 1
    assert log.take() == "FAILED_EXECUTION: no kernel"
    assert (log.take(), log.recorder.num_errors()) == ("", 0)


def test_memory_that_was_kept_makes_room_for_another_size():
    device = FakeDevice(memory_bytes=4096)
    memory = DeviceMemory(Cuda(device.cuda))
    buffer = memory.allocate(4096)
    del buffer
    assert device.used_bytes == 4096
    memory.allocate(1024)
    assert memory.reserved_bytes == device.used_bytes == 1024


def test_a_program_in_a_file_outlives_the_process_that_it_kills(tmp_path):
    path = tmp_path / "faults.json"
    path.write_text(json.dumps([{"kind": "segfault", "after": 1}]), encoding="utf-8")
    assert FaultProgram(path).take(FaultKind.SEGFAULT) is None
    assert FaultProgram(path).take(FaultKind.HANG) is None
    assert FaultProgram(path).take(FaultKind.SEGFAULT).kind is FaultKind.SEGFAULT
    assert FaultProgram(path).take(FaultKind.SEGFAULT) is None
