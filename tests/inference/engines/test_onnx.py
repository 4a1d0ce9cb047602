import shutil

import numpy as np
import pytest

from inference.engines.contract import (
    DeviceLostError,
    EngineLoadError,
    EngineStepError,
    OutOfMemoryError,
    StepInputs,
)
from inference.engines.decoding import DecoderContext, derive_interface
from inference.engines.onnx import OnnxContext, OnnxRuntime, find_placement


def test_the_device_is_the_one_that_was_bound(folder):
    engine = OnnxRuntime().load(folder)
    assert (engine.kind, engine.device) == ("onnxruntime", "cpu")
    assert engine.placement().reason == ""


def test_the_signature_names_types_and_sizes(folder):
    signature = OnnxRuntime().load(folder).signature
    assert signature.inputs[0].name == "input_ids"
    assert signature.inputs[0].dtype == np.int64
    past = signature.input("past_key_values.1.value")
    assert past is not None
    assert (past.dtype, past.shape[0], past.shape[1::2]) == (np.float32, "B", (2, 8))
    assert signature.output("nothing") is None


def test_cuda_that_is_not_there_is_said_and_not_hidden(folder):
    engine = OnnxRuntime(device="cuda").load(folder)
    placement = engine.placement()
    assert engine.device == placement.device == "cpu"
    assert "CUDAExecutionProvider" in placement.reason


class _PartlyCuda:
    """A session that took CUDA and left a matrix product on the CPU."""

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        def part(provider, *kinds):
            nodes = [type("Node", (), {"op_type": kind}) for kind in kinds]
            return type("Part", (), {"ep_name": provider, "get_nodes": lambda self: nodes})()

        return [
            part("CUDAExecutionProvider", "MatMul", "Softmax"),
            part("CPUExecutionProvider", "MatMulInteger", "MatMulInteger", "Shape"),
        ]

    def get_input_memory_infos(self):
        return [type("Info", (), {"name": name}) for name in ("Cuda", "Cpu")]

    get_output_memory_infos = get_input_memory_infos


def test_nodes_that_were_left_on_the_cpu_are_named_but_shape_work_is_not():
    placement = find_placement(_PartlyCuda(), "cuda")
    assert placement.device == "mixed"
    assert "2 MatMulInteger" in placement.reason
    assert "Shape" not in placement.reason


def test_a_truncated_model_is_a_load_error(folder, tmp_path):
    copy = tmp_path / "1"
    shutil.copytree(folder, copy)
    data = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(EngineLoadError, match=r"model\.onnx"):
        OnnxRuntime().load(copy)


def test_a_missing_model_is_a_load_error(tmp_path):
    with pytest.raises(EngineLoadError, match="does not exist"):
        OnnxRuntime().load(tmp_path)


def test_a_variant_is_a_file_beside_the_model(folder, tmp_path):
    shutil.copy(folder / "model.onnx", tmp_path / "model.int8.onnx")
    assert OnnxRuntime().load(tmp_path, "model.int8.onnx").device == "cpu"


def test_sizes_that_contradict_the_model_are_a_load_error(folder):
    with pytest.raises(EngineLoadError, match=r"heads = 3, but past_key_values\.0\.key"):
        derive_interface(OnnxRuntime().load(folder).signature, "tiny", heads=3)


def test_wrong_inputs_are_a_step_error(folder):
    engine = OnnxRuntime().load(folder)
    interface = derive_interface(engine.signature, "tiny")
    context = DecoderContext(engine.create_context(), interface)
    ids = np.full((1, 1), 10**6, dtype=np.int64)
    with pytest.raises(EngineStepError, match="onnxruntime"):
        context.execute(
            StepInputs(ids, np.ones((1, 1), np.int64), ids * 0, interface.shape.empty())
        )


class _Failing:
    def __init__(self, error):
        self.error = error

    def get_outputs(self):
        return []

    def run(self, names, feeds):
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("std::bad_alloc"), OutOfMemoryError),
        (
            RuntimeError("BFCArena: Failed to allocate memory for requested buffer"),
            OutOfMemoryError,
        ),
        (MemoryError(), OutOfMemoryError),
        (RuntimeError("CUDA failure 719: unspecified launch failure ; GPU=0"), DeviceLostError),
        (RuntimeError("CUDA failure 100: no CUDA-capable device is detected"), DeviceLostError),
        (RuntimeError("indices element out of data bounds"), EngineStepError),
    ],
)
def test_what_onnxruntime_raises_says_what_it_means_for_the_process(error, kind):
    with pytest.raises(EngineStepError) as caught:
        OnnxContext(_Failing(error)).run({}, [])
    assert type(caught.value) is kind
    assert caught.value.fatal == (kind is DeviceLostError)
