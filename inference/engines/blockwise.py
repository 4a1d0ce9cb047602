"""8-bit weights, one scale for each block of 32: ONNX Runtime's operator ``MatMulNBits``.

Weights only: the operator quantizes activations by itself, row by row. Quantizing them for the whole
tensor at once, as dynamic quantization does, makes an answer depend on who else is in the batch and
on where a prompt was cut: on the demonstration model by 2% of the largest score, against nothing
that can be seen with this one.

The layout is the operator's, from its description in ONNX Runtime's list of contributed operators:
``B`` is [columns, blocks, 32] unsigned bytes around a zero of 128, ``scales`` is [columns * blocks].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 32
_DOMAIN = "com.microsoft"
_ZERO = 128
_LARGEST = 127
# Activations in 8 bits too, row by row: the fast path of the operator on a CPU.
_INT8_ARITHMETIC = 4


def quantize_weights(model: Any) -> int:
    """Replace the matrix products with constant float32 weights in a model's graph.

    Args:
        model: An ``onnx.ModelProto``; it is changed.

    Returns:
        How many were replaced.
    """
    from onnx import helper, numpy_helper  # noqa: PLC0415 - an extra, and heavy

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[str, tuple[int, int]] = {}
    replaced = 0
    for node in graph.node:
        name = node.input[1] if node.op_type == "MatMul" else ""
        if name not in weights or len(weights[name].dims) != 2 or weights[name].data_type != 1:
            continue
        if name not in made:
            matrix = numpy_helper.to_array(weights[name])
            packed, scales = pack(matrix)
            graph.initializer.append(numpy_helper.from_array(packed, f"{name}_q8"))
            graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scales"))
            made[name] = matrix.shape
        rows, columns = made[name]
        node.CopyFrom(
            helper.make_node(
                "MatMulNBits",
                [node.input[0], f"{name}_q8", f"{name}_scales"],
                list(node.output),
                node.name,
                domain=_DOMAIN,
                K=rows,
                N=columns,
                bits=8,
                block_size=BLOCK,
                accuracy_level=_INT8_ARITHMETIC,
            )
        )
        replaced += 1
    still_used = {name for node in graph.node for name in node.input}
    for name in made:
        if name not in still_used:
            graph.initializer.remove(weights[name])
    if replaced and not any(opset.domain == _DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return replaced


def pack(
    matrix: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Quantize a matrix [rows, columns]; each block of a column gets a scale of its own."""
    rows, columns = matrix.shape
    blocks = -(-rows // BLOCK)
    padded = np.zeros((columns, blocks * BLOCK), np.float32)
    padded[:, :rows] = matrix.T
    grouped = padded.reshape(columns, blocks, BLOCK)
    scales = np.abs(grouped).max(axis=2) / _LARGEST
    steps = np.round(grouped / np.where(scales == 0, 1, scales)[..., np.newaxis])
    packed = (steps + _ZERO).astype(np.uint8)
    return packed, scales.astype(np.float32).ravel()
