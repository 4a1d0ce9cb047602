"""The tensor workload: what it reads from a model, computes, and refuses."""

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from inference.demo.tensors import write_tiny_mlp
from inference.engines.contract import EngineLoadError
from inference.model import read_metadata
from inference.tensor.datatypes import BY_NAME, pack_bytes, to_array, unpack_bytes
from inference.worker.faults import FaultInjector
from inference.worker.frames import BatchDone, RunBatch, Tensor
from inference.worker.heartbeat import HeartbeatWriter
from inference.worker.tensors import load_tensors
from inference.worker.wire import Failed, Start
from inference.worker.workload import LoadContext

FP32, INT64, BYTES = BY_NAME["FP32"], BY_NAME["INT64"], BY_NAME["BYTES"]


def _load(folder: Path, faults: FaultInjector | None = None):
    start = Start(str(folder), "onnx", 1, 0, [])
    heartbeat = HeartbeatWriter.private()
    injector = faults or FaultInjector(time.monotonic)
    return load_tensors(folder, LoadContext(start, injector, heartbeat, time.monotonic)), heartbeat


def _write(folder: Path, nodes, inputs, outputs, toml: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value(*i) for i in inputs], [value(*o) for o in outputs])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(
        helper.make_model(graph, opset_imports=opset, ir_version=8), str(folder / "model.onnx")
    )
    head = 'name = "m"\nversion = 3\nkind = "tensor"\n'
    (folder / "model.toml").write_text(head + toml, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_mlp(tmp_path_factory.mktemp("models"))


def _row(x) -> RunBatch:
    return RunBatch(5, len(x), float("inf"), [Tensor(FP32, x.shape, (x.tobytes(),))])


def test_it_computes_a_batch_and_reports_progress(mlp: Path):
    workload, heartbeat = _load(mlp)
    (golden,) = read_metadata(mlp).golden
    steps = heartbeat.record.steps

    (done,) = workload.start(_row(golden.inputs["x"]))

    assert isinstance(done, BatchDone)
    (tensor,) = done.tensors
    assert (done.number, done.rows, done.invalid_rows) == (5, 2, ())
    y = to_array(tensor.datatype, tensor.shape, bytes(tensor.data[0]))
    np.testing.assert_allclose(y, golden.outputs["y"], rtol=1e-3, atol=1e-3)
    assert heartbeat.record.steps == steps + 1
    assert heartbeat.record.running_ids == ()
    assert workload.prove() == ""


def test_it_describes_the_model_as_the_model_does(tmp_path: Path):
    nodes = [
        helper.make_node("Identity", ["a"], ["same"]),
        helper.make_node("Identity", ["t"], ["text"]),
    ]
    folder = _write(
        tmp_path,
        nodes,
        [("a", TensorProto.INT64, ["N", "L"]), ("t", TensorProto.STRING, ["N", 1])],
        [("same", TensorProto.INT64, ["N", "L"]), ("text", TensorProto.STRING, ["N", 1])],
    )

    workload, _ = _load(folder)
    ready = workload.describe()

    assert ready.version == 3
    assert ready.device == "cpu"
    assert ready.inputs == [["a", "INT64", [-1, -1]], ["t", "BYTES", [-1, 1]]]
    assert ready.outputs == [["same", "INT64", [-1, -1]], ["text", "BYTES", [-1, 1]]]
    numbers = np.arange(6, dtype=np.int64).reshape(2, 3)
    words = pack_bytes([b"one", b""])
    batch = RunBatch(
        1, 2, 1e9, [Tensor(INT64, (2, 3), (numbers.tobytes(),)), Tensor(BYTES, (2, 1), (words,))]
    )
    (done,) = workload.start(batch)
    assert bytes(done.tensors[0].data[0]) == numbers.tobytes()
    assert unpack_bytes(bytes(done.tensors[1].data[0])) == [b"one", b""]


def test_only_the_row_that_is_not_finite_fails(tmp_path: Path):
    folder = _write(
        tmp_path,
        [helper.make_node("Sqrt", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 2])],
        [("y", TensorProto.FLOAT, ["N", 2])],
    )
    workload, heartbeat = _load(folder)

    (done,) = workload.start(_row(np.array([[1, 4], [9, -1], [0, 0]], np.float32)))

    assert done.invalid_rows == (1,)
    assert heartbeat.record.invalid_outputs == 1


def test_huge_sums_of_finite_values_are_finite(tmp_path: Path):
    folder = _write(
        tmp_path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 2])],
        [("y", TensorProto.FLOAT, ["N", 2])],
    )
    workload, _ = _load(folder)

    (done,) = workload.start(_row(np.full((3, 2), 3e38, np.float32)))

    assert done.invalid_rows == ()


def test_a_model_whose_rows_touch_each_other_is_not_batched(tmp_path: Path):
    golden = "[[golden]]\ninputs = {x = [[1.0, 2.0]]}\noutputs = {y = [[1.0, 1.0]]}\n"
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=0)]
    ends = [("x", TensorProto.FLOAT, ["N", 2])], [("y", TensorProto.FLOAT, ["N", 2])]

    with pytest.raises(EngineLoadError, match=r"influence each other.*max_batch_rows = 1"):
        _load(_write(tmp_path / "a", nodes, *ends, golden))

    workload, _ = _load(_write(tmp_path / "b", nodes, *ends, "max_batch_rows = 1\n" + golden))
    assert workload.describe().max_batch_rows == 1


def test_an_output_without_rows_fails_the_batch(tmp_path: Path):
    folder = _write(
        tmp_path,
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)],
        [("x", TensorProto.FLOAT, ["N", 2])],
        [("y", TensorProto.FLOAT, ["M", 1])],
    )
    workload, _ = _load(folder)

    (failed,) = workload.start(_row(np.ones((3, 2), np.float32)))

    assert isinstance(failed, Failed)
    assert "output y has the shape [1, 1] for 3 rows" in failed.message


@pytest.mark.parametrize(
    ("shape", "toml", "words"),
    [
        ([4, 2], "", "axis 0 of the input x is fixed at 4"),
        ([], "", "the input x is a scalar"),
        (["N", 2], "[[golden]]\ninputs = {z = [[1]]}\noutputs = {y = [[1]]}\n", "inputs .*z.*x"),
        (["N", 2], "[[golden]]\ninputs = {x = [['a']]}\noutputs = {y = [[1]]}\n", "cannot be fed"),
        (["N", 2], "[[golden]]\ninputs = {x = [[1]]}\noutputs = {y = [[1]]}\n", "does not run"),
    ],
)
def test_what_cannot_be_served_is_refused_at_load(shape, toml, words, tmp_path: Path):
    folder = _write(
        tmp_path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape)],
        toml,
    )

    with pytest.raises(EngineLoadError, match=words):
        _load(folder)


def test_a_model_of_one_row_says_so(tmp_path: Path):
    folder = _write(
        tmp_path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, [1, 2])],
        [("y", TensorProto.FLOAT, [1, 2])],
    )

    workload, _ = _load(folder)

    assert workload.describe().max_batch_rows == 1


@pytest.mark.parametrize("kind", ["nan", "wrong"])
def test_injected_corruption_is_seen_by_the_proof(kind: str, mlp: Path):
    faults = FaultInjector(time.monotonic)
    workload, _ = _load(mlp, faults)
    assert workload.prove() == ""

    faults.inject("corrupt_output", {"kind": kind})

    assert "golden example 1" in workload.prove()
