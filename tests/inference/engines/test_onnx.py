import shutil

import pytest

from inference.engines.contract import CacheShape, EngineLoadError, EngineStepError, StepInputs
from inference.engines.onnx import OnnxRuntime
from inference.model import read_metadata

import numpy as np  # isort: skip


def test_the_device_is_the_one_that_was_bound(folder):
    engine = OnnxRuntime().load(folder, read_metadata(folder).shape)
    assert (engine.kind, engine.device) == ("onnxruntime", "cpu")


def test_a_truncated_model_is_a_load_error(folder, tmp_path):
    copy = tmp_path / "1"
    shutil.copytree(folder, copy)
    data = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(EngineLoadError, match=r"model\.onnx"):
        OnnxRuntime().load(copy, read_metadata(copy).shape)


def test_a_missing_model_is_a_load_error(tmp_path):
    with pytest.raises(EngineLoadError, match="does not exist"):
        OnnxRuntime().load(tmp_path, CacheShape(1, 1, 1))


def test_a_model_of_another_shape_is_a_load_error(folder):
    with pytest.raises(EngineLoadError, match=r"past_key_values\.2\.key"):
        OnnxRuntime().load(folder, CacheShape(layers=3, heads=2, head_dim=8))


def test_wrong_inputs_are_a_step_error(folder):
    shape = read_metadata(folder).shape
    context = OnnxRuntime().load(folder, shape).create_context()
    ids = np.full((1, 1), 10**6, dtype=np.int64)
    with pytest.raises(EngineStepError, match="onnxruntime"):
        context.execute(StepInputs(ids, np.ones((1, 1), np.int64), ids * 0, shape.empty()))
