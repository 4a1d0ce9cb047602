"""Variants in lower precision, what they cost in drift, and which one is named the fastest."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from inference.engines.blockwise import BLOCK, pack
from inference.engines.chart import draw, write_chart
from inference.engines.comparison import (
    ORIGINAL,
    Measurement,
    VariantDrift,
    Workload,
    compare_engines,
    find_fastest,
)
from inference.engines.drift import Drift, Side, measure_drift, read_golden
from inference.engines.offline import InputError
from inference.engines.onnx import OnnxRuntime
from inference.engines.onnx_file import read_onnx
from inference.engines.variants import (
    Precision,
    find_variants,
    make_variant,
    parse_precisions,
    variant_path,
)


@pytest.fixture
def model(folder, tmp_path):
    """The tiny decoder in a folder of its own."""
    copy = tmp_path / "1"
    shutil.copytree(folder, copy)
    return copy / "model.onnx"


@pytest.fixture
def dense(tmp_path):
    """Two dense layers, without names of sizes."""
    rng = np.random.default_rng(1)
    info = helper.make_tensor_value_info
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.2, shape).astype(np.float32), name)
        for name, shape in (("a", (32, 64)), ("b", (64, 8)))
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
            helper.make_node("Relu", ["h"], ["r"], "act"),
            helper.make_node("MatMul", ["r", "b"], ["y"], "second"),
        ],
        "dense",
        [info("x", TensorProto.FLOAT, ["N", 32])],
        [info("y", TensorProto.FLOAT, ["N", 8])],
        weights,
    )
    path = tmp_path / "dense.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def _side(path):
    engine = OnnxRuntime().load(path.parent, path.name)
    return Side(engine.create_context(), engine.signature)


@pytest.mark.parametrize("precision", list(Precision))
def test_a_variant_keeps_inputs_and_outputs_and_computes_nearly_the_same(dense, precision):
    made = make_variant(dense, precision)
    assert made.path == variant_path(dense, precision) == dense.with_name(f"dense.{precision}.onnx")
    assert find_variants(dense) == {precision: made.path}
    before, after = read_onnx(dense), read_onnx(made.path)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert after.precision == {"fp16": "float16", "int8": "uint8"}[precision]
    feed = {"x": np.random.default_rng(2).normal(size=(16, 32)).astype(np.float32)}
    drift = measure_drift(_side(dense), _side(made.path), [feed], None)
    assert 0 < drift.relative < 0.05
    assert drift.cosine > 0.99
    assert (drift.golden_right, drift.golden_total) == (None, None)


def test_rows_of_an_int8_batch_do_not_touch_each_other(dense):
    context = _side(make_variant(dense, Precision.INT8).path).context
    rows = np.random.default_rng(3).normal(size=(8, 32)).astype(np.float32)
    alone = np.concatenate([context.run({"x": row[np.newaxis]})["y"] for row in rows])
    loud = np.concatenate([rows, 1000 * rows])
    np.testing.assert_allclose(context.run({"x": loud})["y"][:8], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 100])
def test_blocks_keep_each_weight_within_half_a_step(rows):
    matrix = np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32)
    matrix[:, 4] = 0.0
    packed, scales = pack(matrix)
    blocks = -(-rows // BLOCK)
    assert (packed.shape, scales.shape) == ((5, blocks, BLOCK), (5 * blocks,))
    steps = packed.astype(np.float32) - 128
    restored = (steps * scales.reshape(5, blocks, 1)).reshape(5, -1)[:, :rows].T
    assert np.abs(restored - matrix).max() <= 0.51 * scales.max()
    assert not restored[:, 4].any()


def test_a_model_without_matrix_products_needs_calibration(tmp_path):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "conv",
        [info("x", TensorProto.FLOAT, ["N", 1, 8])],
        [info("y", TensorProto.FLOAT, ["N", 1, 6])],
        [numpy_helper.from_array(np.ones((1, 1, 3), np.float32), "w")],
    )
    path = tmp_path / "conv.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    with pytest.raises(InputError, match="no matrix product") as caught:
        make_variant(path, Precision.INT8)
    assert "--calibration" in caught.value.fix


def test_calibration_data_gives_integer_activations(dense, tmp_path):
    data = tmp_path / "calibration"
    data.mkdir()
    for seed in range(4):
        values = np.random.default_rng(seed).normal(size=(8, 32)).astype(np.float32)
        np.savez(data / f"{seed}.npz", x=values)
    made = make_variant(dense, Precision.INT8, folder=tmp_path / "out", calibration=data)
    assert "4 runs" in made.method
    assert read_onnx(made.path).nodes["QuantizeLinear"] >= 2
    feed = {"x": np.random.default_rng(9).normal(size=(16, 32)).astype(np.float32)}
    assert measure_drift(_side(dense), _side(made.path), [feed], None).cosine > 0.99


def test_what_cannot_be_made_says_why_and_leaves_nothing(dense, model, tmp_path):
    with pytest.raises(InputError, match="fp99"):
        parse_precisions("int8,fp99")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"no \.npz"):
        make_variant(dense, Precision.INT8, calibration=empty)
    (empty / "x.npz").write_bytes(b"no")
    with pytest.raises(InputError, match=r"x\.npz"):
        make_variant(dense, Precision.INT8, calibration=empty)
    with pytest.raises(InputError, match="decoder"):
        make_variant(model, Precision.INT8, calibration=empty)
    half = make_variant(dense, Precision.FP16).path
    with pytest.raises(InputError, match="float16 already"):
        make_variant(half, Precision.INT8)
    left = sorted(path.name for path in dense.parent.iterdir() if path.is_file())
    assert left == ["dense.fp16.onnx", "dense.onnx"]


def test_a_decoder_is_compared_on_its_golden_prompts(model, folder):
    golden = read_golden(model)
    assert golden is not None
    assert len(golden.runs) == 2
    same = measure_drift(_side(model), _side(model), [], golden)
    assert (same.relative, same.top1_agreement) == (0.0, 1.0)
    assert (same.golden_right, same.golden_total) == (2, 2)
    other = folder.parents[1] / "tiny-small" / "1" / "model.onnx"
    wrong = measure_drift(_side(model), _side(other), [], golden)
    assert wrong.golden_right == 0
    assert wrong.relative > 0.5


def test_a_model_without_a_tokenizer_has_no_golden_prompts(dense):
    assert read_golden(dense) is None


def test_variants_are_compared_and_drawn(model, tmp_path):
    make_variant(model, Precision.FP16)
    workload = Workload(batches=(1, 2), seconds=0.0, past_tokens=4)
    found = compare_engines(model, workload, lambda text: None)
    assert [(one.variant, one.batch) for one in found.measurements] == [
        ("original", 1), ("fp16", 1), ("original", 2), ("fp16", 2),
    ]  # fmt: skip
    assert [one.variant for one in found.drifts] == ["fp16"]
    assert found.drifts[0].drift.golden_total == 2
    assert found.fastest is not None
    assert len(draw(found).data) == 2 * 4
    write_chart(found, tmp_path / "bench.html")
    text = (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert "fp16 onnxruntime cpu" in text
    with pytest.raises(InputError, match=r"\.html"):
        write_chart(found, tmp_path / "bench.png")


def _measured(variant, rate):
    return Measurement(
        variant=variant, engine="onnxruntime", device="cpu", batch=1, runs=5, p50_milliseconds=1.0,
        p99_milliseconds=1.0, items_per_second=rate, load_seconds=1.0, model_bytes=1,
        memory_bytes=1,
    )  # fmt: skip


def _drifted(variant, *, within):
    drift = Drift(
        relative=0.1, max_abs=1.0, mean_abs=0.1, cosine=0.9, top1_agreement=0.9,
        golden_right=None, golden_total=None,
    )  # fmt: skip
    return VariantDrift(
        variant=variant, engine="onnxruntime", device="cpu", drift=drift, within_limit=within
    )


def test_the_fastest_is_one_whose_drift_is_allowed():
    measured = [_measured(ORIGINAL, 100.0), _measured("fp16", 150.0), _measured("int8", 200.0)]
    drifts = [_drifted("fp16", within=True), _drifted("int8", within=False)]
    best = find_fastest(measured, drifts)
    assert (best.variant, best.speed_up) == ("fp16", 1.5)
    best = find_fastest([_measured(ORIGINAL, 100.0), _measured("fp16", 50.0)], drifts)
    assert (best.variant, best.speed_up) == (ORIGINAL, 1.0)
    assert find_fastest(measured[:1], []) is None


def test_a_plan_that_cannot_be_loaded_is_left_out_with_the_reason(dense, tmp_path):
    plan = tmp_path / "plans" / "sm80"
    plan.mkdir(parents=True)
    (plan / "model.plan").write_bytes(b"plan")
    workload = Workload(batches=(1,), seconds=0.0, plans=(plan,))
    found = compare_engines(dense, workload, lambda text: None)
    (reason,) = [one.reason for one in found.skipped if one.engine.startswith("plan ")]
    assert "plan.json cannot be read" in reason
