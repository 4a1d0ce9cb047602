"""Two small tensor models with known costs, for tests, demonstrations and benchmarks.

`write_tiny_mlp` is as cheap as a model gets (about 4 us a call on one core), so that what is
measured is the server. `write_costly` takes about 4 ms for one row and 18 ms for 32, because reading
its weights costs as much as ten rows: batches pay. Both take ``x`` FP32 [N, 64] and give ``y`` FP32
[N, 10]. Needs the package ``onnx``, which is not among the service's own dependencies.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.engines.onnx import MODEL_FILE
from inference.model import METADATA_FILE
from inference.tensor.golden import write_golden

INPUTS, OUTPUTS = 64, 10
_OPSET = 17
_IR_VERSION = 8  # what onnxruntime 1.20 reads
_GOLDEN_ROWS = 2

Weights = npt.NDArray[np.float32]


def write_tiny_mlp(root: Path, model: str = "tiny-mlp", version: int = 1, *, seed: int = 1) -> Path:
    """Write ``root/model/version`` with a perceptron of 64, 32 and 10 units; return the folder."""
    return _write(root, model, version, _layers(seed, hidden=32, repeats=0))


def write_costly(
    root: Path, model: str = "costly", version: int = 1, *, seed: int = 1, width: int = 4096
) -> Path:
    """Write ``root/model/version`` with a model of 64 MiB that is costly to call; return the folder.

    One 4096 x 4096 matrix is applied three times, which is beyond common caches; a smaller
    ``width`` gives the same graph at a fraction of the cost, for tests.
    """
    return _write(root, model, version, _layers(seed, hidden=width, repeats=3))


def _layers(seed: int, hidden: int, repeats: int) -> list[tuple[Weights, Weights]]:
    """Return weights and biases in order; a repeated layer is the same object."""
    rng = np.random.default_rng(seed)

    def layer(inputs: int, outputs: int) -> tuple[Weights, Weights]:
        # He's scale keeps the size of values from layer to layer.
        scale = np.float32((2.0 / inputs) ** 0.5)
        weights = rng.standard_normal((inputs, outputs), dtype=np.float32) * scale
        return weights, rng.standard_normal(outputs, dtype=np.float32) * np.float32(0.1)

    first = layer(INPUTS, hidden)
    middle = layer(hidden, hidden) if repeats else first
    return [first, *[middle] * repeats, layer(hidden, OUTPUTS)]


def _write(root: Path, model: str, version: int, layers: list[tuple[Weights, Weights]]) -> Path:
    import onnx  # noqa: PLC0415 - only who makes models needs it

    folder = root / model / str(version)
    folder.mkdir(parents=True)
    onnx.save(_graph(onnx, layers), str(folder / MODEL_FILE))
    lines = [f'name = "{model}"', f"version = {version}", 'kind = "tensor"', ""]
    (folder / METADATA_FILE).write_text("\n".join(lines), encoding="utf-8")
    x = np.linspace(-1, 1, _GOLDEN_ROWS * INPUTS, dtype=np.float32).reshape(_GOLDEN_ROWS, INPUTS)
    write_golden(folder, {"x": x}, {"y": _compute(layers, x)})
    return folder


def _compute(layers: list[tuple[Weights, Weights]], x: Weights) -> Weights:
    """Compute the model without its file, in double precision: what the golden example says."""
    value = x.astype(np.float64)
    for number, (weights, bias) in enumerate(layers):
        value = value @ weights.astype(np.float64) + bias
        if number < len(layers) - 1:
            value = np.maximum(value, 0.0)
    return value.astype(np.float32)


def _graph(onnx: Any, layers: list[tuple[Weights, Weights]]) -> Any:
    helper, tensors = onnx.helper, onnx.numpy_helper
    names: dict[int, str] = {}
    constants, nodes = [], []

    def constant(array: Weights) -> str:
        if id(array) not in names:
            names[id(array)] = f"c{len(names)}"
            constants.append(tensors.from_array(array, names[id(array)]))
        return names[id(array)]

    value = "x"
    make: Callable[..., Any] = helper.make_node
    for number, (weights, bias) in enumerate(layers):
        last = number == len(layers) - 1
        out = "y" if last else f"g{number}"
        nodes.append(make("Gemm", [value, constant(weights), constant(bias)], [out]))
        if not last:
            value = f"r{number}"
            nodes.append(make("Relu", [out], [value]))
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", kind, ["N", INPUTS])],
        [helper.make_tensor_value_info("y", kind, ["N", OUTPUTS])],
        constants,
    )
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
