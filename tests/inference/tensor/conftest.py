"""Repositories of tensor models, and a live service on them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from inference.demo.tensors import write_tiny_mlp
from inference.tensor.golden import write_golden

TYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}  # fmt: skip


def _save(folder: Path, name: str, nodes, inputs, outputs) -> Path:
    folder.mkdir(parents=True)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value(*i) for i in inputs], [value(*o) for o in outputs])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(
        helper.make_model(graph, opset_imports=opset, ir_version=8), str(folder / "model.onnx")
    )
    text = f'name = "{name}"\nversion = 1\nkind = "tensor"\n'
    (folder / "model.toml").write_text(text, encoding="utf-8")
    return folder


def write_echo(root: Path) -> Path:
    """A model with an input and an output of every datatype, [N, anything]."""
    folder = _save(
        root / "echo" / "1",
        "echo",
        [helper.make_node("Identity", [f"in_{t}"], [f"out_{t}"]) for t in TYPES],
        [(f"in_{name}", kind, ["N", "L"]) for name, kind in TYPES.items()],
        [(f"out_{name}", kind, ["N", "L"]) for name, kind in TYPES.items()],
    )
    one = {f"in_{name}": np.ones((1, 1)) for name in TYPES if name != "BYTES"}
    arrays = {
        key: value.astype(helper.tensor_dtype_to_np_dtype(TYPES[key[3:]]))
        for key, value in one.items()
    }
    arrays["in_BYTES"] = np.array([["a"]])
    write_golden(folder, arrays, {"out_FP32": np.ones((1, 1), np.float32)})
    return folder


def write_roots(root: Path) -> Path:
    """Square roots of [N, any length]: not finite for negative values."""
    folder = _save(
        root / "roots" / "1",
        "roots",
        [helper.make_node("Sqrt", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", "L"])],
        [("y", TensorProto.FLOAT, ["N", "L"])],
    )
    write_golden(folder, {"x": np.full((1, 3), 4.0, np.float32)}, {"y": np.full((1, 3), 2.0)})
    return folder


@pytest.fixture(scope="session")
def tensor_repository(tmp_path_factory: pytest.TempPathFactory, tools) -> Path:
    """Three tensor models and a language model."""
    root = tmp_path_factory.mktemp("tensors")
    write_tiny_mlp(root, "mlp")
    write_echo(root)
    write_roots(root)
    tools.write_version(root, "tiny", 1, seed=1)
    return root


@pytest.fixture(scope="module")
def tensor_live(tensor_repository: Path, tmp_path_factory: pytest.TempPathFactory, tools):
    """A service shared by tests that leave it as they found it."""
    models = ("mlp", "echo", "roots", "tiny")
    with tools.run_service(
        tensor_repository, tmp_path_factory.mktemp("state"), models=models
    ) as live:
        for model in models:
            tools.eventually(
                lambda name=model: live.client.get(f"/v2/models/{name}/ready").status_code == 200,
                f"{model} is ready",
            )
        yield live
