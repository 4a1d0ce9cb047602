"""The same model in a lower precision: float16 weights, or 8-bit integer ones.

TensorRT 11 takes the precision from the model, so a variant is made here, in the ONNX, for every
engine alike. Inputs and outputs keep their types: what feeds the model need not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from inference.engines.blockwise import quantize_weights
from inference.engines.contract import Array
from inference.engines.offline import InputError
from inference.engines.onnx_file import read_onnx
from inference.engines.shapes import is_decoder

ONNX_FIX = "pip install 'galen[variants]'"


class Precision(StrEnum):
    """What a variant computes in."""

    FP16 = "fp16"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class VariantFile:
    """A variant that was written."""

    precision: Precision
    path: Path
    method: str
    """How it was made, for people."""
    file_bytes: int
    original_bytes: int


def parse_precisions(text: str) -> list[Precision]:
    """Read precisions separated by commas.

    Raises:
        InputError: one is not known.
    """
    try:
        return list(dict.fromkeys(Precision(part.strip()) for part in text.split(",")))
    except ValueError as error:
        raise InputError(
            f"--precision {text!r} is not a list of precisions",
            fix=f"Write one or more of {', '.join(Precision)}, separated by commas.",
        ) from error


def variant_path(model: Path, precision: Precision, folder: Path | None = None) -> Path:
    """Return where a variant belongs: ``model.onnx`` has ``model.int8.onnx`` beside it."""
    return (folder or model.parent) / f"{model.stem}.{precision}{model.suffix}"


def find_variants(model: Path) -> dict[Precision, Path]:
    """Return the variants that lie beside a model."""
    paths = {precision: variant_path(model, precision) for precision in Precision}
    return {precision: path for precision, path in paths.items() if path.is_file()}


def make_variant(
    model: Path,
    precision: Precision,
    *,
    folder: Path | None = None,
    calibration: Path | None = None,
) -> VariantFile:
    """Write a variant of a model.

    float16 converts weights and arithmetic. int8 without calibration quantizes the weights of matrix
    products only (`inference.engines.blockwise`), which ONNX Runtime computes and TensorRT does not
    know. With calibration it quantizes weights and activations, by what they were on its data, in the
    form that both know (QDQ).

    Args:
        model: The ONNX model in float32.
        precision: What to make.
        folder: Where to write; None is beside the model.
        calibration: Folder of ``.npz`` files, each the inputs of one run by name.

    Raises:
        InputError: the model cannot be converted, or what that needs is not installed.
    """
    summary = read_onnx(model)
    if summary.precision != "float32":
        raise InputError(
            f"{model} is in {summary.precision} already",
            fix="Make variants from the float32 model.",
        )
    target = variant_path(model, precision, folder)
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if precision is Precision.FP16:
            method = _to_fp16(model, part)
        elif calibration is None:
            method = _to_int8(model, part)
        elif is_decoder(summary.inputs):
            raise InputError(
                "a decoder is not quantized with calibration data: its cache grows from run to run",
                fix="Leave --calibration out; its weights are quantized then.",
            )
        else:
            method = _to_qdq(model, part, calibration)
        part.replace(target)
    except ImportError as error:
        raise InputError(f"variants need the package onnx: {error}", fix=ONNX_FIX) from error
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return VariantFile(precision, target, method, target.stat().st_size, model.stat().st_size)


def _to_fp16(model: Path, part: Path) -> str:
    import onnx  # noqa: PLC0415 - an extra, and heavy
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415

    try:
        converted = convert_float_to_float16(onnx.load(model), keep_io_types=True)
    except Exception as error:  # the converter raises what it comes across
        raise InputError(f"{model} cannot be converted to float16: {error}") from error
    onnx.save(converted, part)
    return "float16 weights and arithmetic, float32 inputs and outputs"


def _to_int8(model: Path, part: Path) -> str:
    import onnx  # noqa: PLC0415 - an extra, and heavy

    converted = onnx.load(model)
    replaced = quantize_weights(converted)
    if not replaced:
        raise InputError(
            f"{model} has no matrix product with constant float32 weights",
            fix="Give --calibration: with it every operator that has an 8-bit form is quantized.",
        )
    onnx.save(converted, part)
    return f"int8 weights of {replaced} matrix products, for ONNX Runtime"


def _to_qdq(model: Path, part: Path, calibration: Path) -> str:
    from onnxruntime.quantization import QuantFormat, quantize_static  # noqa: PLC0415

    feeds = list(_read_calibration(calibration))
    try:
        quantize_static(model, part, _Reader(feeds), quant_format=QuantFormat.QDQ)
    except Exception as error:  # as above
        raise InputError(f"{model} cannot be quantized: {error}") from error
    return f"int8 weights and activations (QDQ), calibrated on {len(feeds)} runs"


class _Reader:
    """Feeds for onnxruntime's calibration, which takes whatever has this method."""

    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next inputs, None after the last ones."""
        return next(self._feeds, None)

    def __iter__(self) -> Iterator[Any]:
        return self._feeds


def _read_calibration(folder: Path) -> Iterator[dict[str, Array]]:
    """Read the inputs of runs.

    Raises:
        InputError: there are none, or a file is damaged.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise InputError(
            f"{folder} has no .npz files",
            fix="Save the inputs of typical runs: numpy.savez(FILE, input_name=array, ...)",
        )
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as file:
                yield {name: file[name] for name in file.files}
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not a .npz file: {error}") from error
