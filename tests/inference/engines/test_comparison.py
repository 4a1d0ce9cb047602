import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from inference.engines.comparison import Workload, compare_engines, make_feed, percentiles
from inference.engines.offline import InputError
from inference.engines.onnx_file import TensorInfo, read_onnx

TINY = Workload(batches=(1, 3), seconds=0.0, past_tokens=5)


def counting_clock():
    """Each look takes a second."""
    return itertools.count().__next__


def test_a_decoder_is_measured_on_one_step_with_a_cache(folder):
    told: list[str] = []
    found = compare_engines(folder / "model.onnx", TINY, told.append, clock=counting_clock())
    assert found.decoder
    assert found.past_tokens == 5
    assert [(one.device, one.batch) for one in found.measurements] == [("cpu", 1), ("cpu", 3)]
    for one in found.measurements:
        assert one.runs >= 5
        assert one.p50_milliseconds == one.p99_milliseconds == 1000.0
        assert one.items_per_second == one.batch
        assert one.model_bytes == (folder / "model.onnx").stat().st_size
    assert {one.engine for one in found.skipped} >= {"tensorrt", "tensorrt_rtx"}
    assert "batch 3: original on onnxruntime cpu" in told


def test_the_feed_of_a_decoder(folder):
    feed = make_feed(read_onnx(folder / "model.onnx").inputs, 3, TINY)
    assert feed["input_ids"].shape == (3, 1)
    assert feed["attention_mask"].shape == (3, 6)
    assert feed["past_key_values.0.key"].shape == (3, 2, 5, 8)
    assert feed["position_ids"].tolist() == [[5]] * 3
    assert feed["past_key_values.0.key"].dtype == np.float32


@pytest.fixture
def plain(tmp_path):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, ["N", "width"])],
        [info("y", TensorProto.FLOAT, ["N", "width"])],
    )
    path = tmp_path / "plain.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def test_a_plain_model_is_measured_on_one_call(plain):
    workload = Workload(batches=(2,), seconds=0.0, sizes={"width": 4})
    found = compare_engines(plain, workload, lambda text: None)
    assert not found.decoder
    assert found.past_tokens is None
    assert found.precision == "none"
    assert [one.batch for one in found.measurements] == [2]


def test_a_size_that_is_not_known_names_the_option(plain):
    with pytest.raises(InputError, match="'width'") as caught:
        compare_engines(plain, TINY, lambda text: None)
    assert "--size 'width=N'" in caught.value.fix


def test_a_cache_longer_than_the_context_is_an_input_error(folder):
    workload = Workload(batches=(1,), seconds=0.0, past_tokens=5000)
    with pytest.raises(InputError, match="batch of 1"):
        compare_engines(folder / "model.onnx", workload, lambda text: None)


def test_types_of_inputs():
    def fill(dtype: str) -> np.ndarray:
        return make_feed([TensorInfo(name="x", dtype=dtype, shape=("N", 2))], 3, TINY)["x"]

    assert fill("float16").dtype == np.float16
    assert fill("bool").tolist() == [[True, True]] * 3
    with pytest.raises(InputError, match="bfloat16"):
        fill("bfloat16")


def test_percentiles():
    assert percentiles([3.0, 1.0, 2.0]) == (2.0, 3.0)
    p50, p99 = percentiles(list(range(1000)))
    assert p50 == 499.5
    assert 988 < p99 < 991
