from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from inference.engines.offline import InputError
from inference.engines.onnx_file import hash_model, read_onnx


def save(path: Path, *nodes, inputs=(), weights=(), outputs=("y",)) -> Path:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "g",
        [info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [info(name, TensorProto.FLOAT, None) for name in outputs],
        list(weights),
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_it_agrees_with_the_onnx_package(folder):
    path = folder / "model.onnx"
    found, truth = read_onnx(path), onnx.load(path)
    weights = [numpy_helper.to_array(weight) for weight in truth.graph.initializer]
    assert found.opsets == {"ai.onnx": 17}
    assert found.ir_version == truth.ir_version
    assert found.initializers == len(weights)
    assert found.initializer_bytes == sum(array.nbytes for array in weights)
    assert found.precision == "float32"
    assert sum(found.nodes.values()) == len(truth.graph.node)
    assert found.nodes["MatMul"] == sum(node.op_type == "MatMul" for node in truth.graph.node)
    for mine, theirs in ((found.inputs, truth.graph.input), (found.outputs, truth.graph.output)):
        assert [tensor.name for tensor in mine] == [tensor.name for tensor in theirs]
    assert found.inputs[0].dtype == "int64"
    assert found.inputs[3].shape == ("B", 2, "P", 8)


def test_graphs_inside_nodes_count_and_weights_named_as_inputs_are_no_inputs(tmp_path):
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
        return helper.make_graph([helper.make_node("Neg", ["x"], [name])], name, [], [out])

    path = save(
        tmp_path / "m.onnx",
        helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
        inputs=(("x", [-1, None, "wide"]), ("w", [2])),
        weights=[helper.make_tensor("w", TensorProto.FLOAT16, [2], [1.0, 2.0])],
    )
    found = read_onnx(path)
    assert found.nodes == {"Neg": 2, "If": 1}
    assert [(tensor.name, tensor.shape) for tensor in found.inputs] == [("x", (None, None, "wide"))]
    assert found.precision == "float16"
    assert found.initializer_bytes == 4


def test_weight_files_belong_to_the_hash(tmp_path):
    weight = numpy_helper.from_array(np.ones(4, "float32"), "w")
    path = tmp_path / "m.onnx"
    save(path, helper.make_node("Neg", ["w"], ["y"]), weights=[weight])
    alone = hash_model(path)
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0
    )
    found = read_onnx(path)
    assert found.external_files == ("m.data",)
    assert found.initializer_bytes == 16
    before = hash_model(path, found.external_files)
    (tmp_path / "m.data").write_bytes(b"\0" * 16)
    assert len({alone, before, hash_model(path, found.external_files)}) == 3


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_weights_outside_the_folder_are_not_read(folder, name):
    with pytest.raises(InputError, match="outside"):
        hash_model(folder / "model.onnx", (name,))


def test_missing_empty_and_foreign_files_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_onnx(tmp_path / "none.onnx")
    for name, content in (
        ("empty.onnx", b""),
        ("text.onnx", b"hello world\n"),
        ("a.onnx", b"\n\0"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_onnx(tmp_path / name)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_an_input_error_or_still_a_model(folder, tmp_path_factory, data):
    content = bytearray((folder / "model.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "m.onnx"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with suppress(InputError):  # and nothing else
        assert read_onnx(path).opsets
