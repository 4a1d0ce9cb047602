"""Reads what an ONNX file says about itself, without the `onnx` package.

An ONNX file is one protocol-buffer message (https://protobuf.dev/programming-guides/encoding). Only
the fields below are decoded and weights are skipped unread, so a file of gigabytes takes
milliseconds. Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from inference.engines.offline import InputError

# TensorProto.DataType: name and bits of one element.
_TYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16),
    6: ("int32", 32), 7: ("int64", 64), 8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16),
    11: ("float64", 64), 12: ("uint32", 32), 13: ("uint64", 64), 14: ("complex64", 64),
    15: ("complex128", 128), 16: ("bfloat16", 16), 17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8), 19: ("float8e5m2", 8), 20: ("float8e5m2fnuz", 8), 21: ("uint4", 4),
    22: ("int4", 4), 23: ("float4e2m1", 4), 24: ("float8e8m0", 8),
}  # fmt: skip
# Weights are floats, or integers of a quantized model; int64 and bool are shapes, indices and masks.
_NOT_WEIGHTS = frozenset({"int64", "bool", "string"})
_MAX_NESTING = 32  # graphs inside If and Loop; a damaged file must not exhaust the stack
_HASH_CHUNK_BYTES = 1 << 20

_Value = int | memoryview


class TensorInfo(BaseModel):
    """An input or output of a model."""

    model_config = ConfigDict(frozen=True)

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] = Field(
        description="Sizes; a text is a named size that may vary, None one without a name."
    )


class OnnxSummary(BaseModel):
    """What an ONNX file holds."""

    model_config = ConfigDict(frozen=True)

    producer: str
    ir_version: int
    opsets: dict[str, int] = Field(description="Operator-set version by domain; ai.onnx is ONNX's.")
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: dict[str, int] = Field(description="Number of nodes by operator, most frequent first.")
    initializers: int
    initializer_bytes: int
    initializer_bytes_by_type: dict[str, int] = Field(description="Largest first.")
    precision: str = Field(description="Type of most weight bytes; 'none' for a model without.")
    external_files: tuple[str, ...] = Field(description="Files beside the model that hold weights.")


class _Tally:
    """Counts over all graphs of a file."""

    def __init__(self) -> None:
        self.nodes: Counter[str] = Counter()
        self.bytes_by_type: Counter[str] = Counter()
        self.initializers = 0
        self.external: set[str] = set()


def read_onnx(path: Path) -> OnnxSummary:
    """Read an ONNX file.

    Raises:
        InputError: the file cannot be read or is not an ONNX model.
    """
    try:
        with path.open("rb") as file:
            # Not closed by hand: a view that a traceback still holds would make close() fail.
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise InputError(f"{path} cannot be read: {error}", fix="Give an ONNX file.") from error
    try:
        return _model(view)
    except (ValueError, IndexError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} is not an ONNX model: {error}", fix="Export the model to ONNX again."
        ) from error


def hash_model(path: Path, external_files: tuple[str, ...] = ()) -> str:
    """Return the SHA-256 of an ONNX file and of the weight files that belong to it, in hex.

    Without weight files this is what ``sha256sum`` prints for the model.

    Raises:
        InputError: a file is missing, or lies outside the model's folder.
    """
    digest = hashlib.sha256()
    for name in ("", *sorted(external_files)):
        part = PurePosixPath(name)
        if part.is_absolute() or ".." in part.parts:
            raise InputError(f"{path} keeps weights outside its folder: {name!r}")
        source = path.parent / part if name else path
        try:
            with source.open("rb") as file:
                while chunk := file.read(_HASH_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise InputError(f"{source} cannot be read: {error}") from error
    return digest.hexdigest()


def _model(view: memoryview) -> OnnxSummary:
    producer, ir_version, graph = "", 0, None
    opsets: dict[str, int] = {}
    for number, value in _fields(view):
        if number == 1:
            ir_version = _int(value)
        elif number == 2:
            producer = _text(value)
        elif number == 7:
            graph = _bytes(value)
        elif number == 8:
            entry = dict(_fields(_bytes(value)))
            opsets[_text(entry.get(1, _EMPTY)) or "ai.onnx"] = _int(entry.get(2, 0))
    if graph is None or not opsets:
        raise ValueError("it has no graph or no operator set")
    tally = _Tally()
    inputs, outputs = _graph(graph, tally, 0)
    by_type = dict(tally.bytes_by_type.most_common())
    weights = [name for name in by_type if name not in _NOT_WEIGHTS and by_type[name]]
    return OnnxSummary(
        producer=producer,
        ir_version=ir_version,
        opsets=opsets,
        inputs=inputs,
        outputs=outputs,
        nodes=dict(tally.nodes.most_common()),
        initializers=tally.initializers,
        initializer_bytes=sum(by_type.values()),
        initializer_bytes_by_type=by_type,
        precision=weights[0] if weights else "none",
        external_files=tuple(sorted(tally.external)),
    )


def _graph(
    view: memoryview, tally: _Tally, depth: int
) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Tally one graph and return its inputs, less those that only name a weight, and outputs."""
    if depth > _MAX_NESTING:
        raise ValueError("its graphs are nested too deep")
    weights: set[str] = set()
    inputs: list[TensorInfo] = []
    outputs: list[TensorInfo] = []
    for number, value in _fields(view):
        if number == 1:
            _node(_bytes(value), tally, depth)
        elif number == 5:
            weights.add(_initializer(_bytes(value), tally))
        elif number == 11:
            inputs.append(_tensor(_bytes(value)))
        elif number == 12:
            outputs.append(_tensor(_bytes(value)))
    return tuple(tensor for tensor in inputs if tensor.name not in weights), tuple(outputs)


def _node(view: memoryview, tally: _Tally, depth: int) -> None:
    kind = domain = ""
    for number, value in _fields(view):
        if number == 4:
            kind = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            for inner, graph in _fields(_bytes(value)):
                if inner in {6, 11}:
                    _graph(_bytes(graph), tally, depth + 1)
    tally.nodes[f"{domain}.{kind}" if domain not in {"", "ai.onnx"} else kind] += 1


def _initializer(view: memoryview, tally: _Tally) -> str:
    """Tally one weight tensor and return its name."""
    dims: list[int] = []
    kind, name, text_bytes = 0, "", 0
    for number, value in _fields(view):
        if number == 1:  # one size, or several packed into one field
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 2:
            kind = _int(value)
        elif number == 6:
            text_bytes += len(_bytes(value))
        elif number == 8:
            name = _text(value)
        elif number == 13:
            entry = dict(_fields(_bytes(value)))
            if _text(entry.get(1, _EMPTY)) == "location":
                tally.external.add(_text(entry.get(2, _EMPTY)))
    dtype, bits = _TYPES.get(kind, (f"type{kind}", 0))
    tally.bytes_by_type[dtype] += text_bytes or -(-math.prod(dims) * bits // 8)
    tally.initializers += 1
    return name


def _tensor(view: memoryview) -> TensorInfo:
    """Read a ValueInfoProto; what is no plain tensor has the type 'other' and no shape."""
    entry = dict(_fields(view))
    kind = dict(_fields(_bytes(entry.get(2, _EMPTY))))
    tensor = dict(_fields(_bytes(kind.get(1, _EMPTY))))
    shape: list[int | str | None] = []
    for number, value in _fields(_bytes(tensor.get(2, _EMPTY))):
        if number == 1:
            size = dict(_fields(_bytes(value)))
            length = _int(size.get(1, _UNKNOWN))
            name = _text(size.get(2, _EMPTY)) or None
            # A negative size, which some exporters write for "varies", looks like a huge one.
            shape.append(length if length < _UNKNOWN else name)
    dtype = _TYPES.get(_int(tensor.get(1, 0)), ("other", 0))[0]
    return TensorInfo(name=_text(entry.get(1, _EMPTY)), dtype=dtype, shape=tuple(shape))


_EMPTY = memoryview(b"")
_UNKNOWN = 1 << 63


def _fields(view: memoryview) -> Iterator[tuple[int, _Value]]:
    """Yield number and value of each field of a message."""
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(view, at)
            yield key >> 3, value
            continue
        if wire not in {1, 2, 5}:
            raise ValueError(f"a field of the unknown wire type {wire}")
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            size, at = _varint(view, at)
        if at + size > len(view):
            raise ValueError("it is cut off")
        yield key >> 3, view[at : at + size]
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Read a base-128 number; return it and the place after it."""
    value = shift = 0
    while True:
        if at >= len(view):
            raise ValueError("it is cut off")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has too many bytes")


def _varints(view: memoryview) -> Iterator[int]:
    at = 0
    while at < len(view):
        value, at = _varint(view, at)
        yield value


def _int(value: _Value) -> int:
    if not isinstance(value, int):
        raise TypeError("a number was expected")
    return value


def _bytes(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a message was expected")
    return value


def _text(value: _Value) -> str:
    return bytes(_bytes(value)).decode("utf-8")
