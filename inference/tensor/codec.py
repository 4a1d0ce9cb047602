"""Tensors of the Open Inference Protocol (REST, version 2): JSON, and the binary data extension.

Both ways into the service use these functions, the ordinary one and the fast lane, so that a request
means the same on both. Errors name the place. The binary extension is Triton's, which KServe's and
Triton's clients speak by default: the JSON comes first, its length in the header
``Inference-Header-Content-Length``, then the bytes of each tensor that has ``binary_data_size``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from inference.errors import InvalidRequestError, UnsupportedError
from inference.tensor.datatypes import BOOL, BYTES, FP16, TensorInfo, pack_bytes, unpack_bytes
from inference.tensor.datatypes import to_buffer as array_bytes
from inference.tensor.requests import BatchOutputs
from inference.worker.frames import Buffer

HEADER_LENGTH = "inference-header-content-length"
_MAX_ID_CHARACTERS = 256
# Structs of small tensors are kept; that is where compiling one costs more than using it.
_KEPT_VALUES = 4096
_KEPT_HEADS = 256
# Frames that are tried before it is clear that clients do not write alike.
_MOST_FRAMES = 16
_structs: dict[tuple[str, int], struct.Struct] = {}
_NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that the client asks for, by its place in the model's order."""

    index: int
    binary: bool


@dataclass(slots=True)
class InferRequest:
    """What a body says, in the model's order of inputs."""

    id: str
    """Empty where the client gave none."""
    rows: int
    shapes: tuple[tuple[int, ...], ...]
    data: tuple[Buffer, ...]
    wanted: tuple[WantedOutput, ...]


def parse_json(body: bytes, header_length: str = "") -> tuple[dict[str, Any], memoryview]:
    """Return the JSON part of a body, and the binary data after it.

    Raises:
        InvalidRequestError: it is not JSON, or the header does not fit.
    """
    length = len(body)
    if header_length:
        if not header_length.isdecimal() or int(header_length) > length:
            raise InvalidRequestError(
                f"Inference-Header-Content-Length must be a number of at most {length} bytes, "
                f"not {header_length[:20]!r}"
            )
        length = int(header_length)
    try:
        document = orjson.loads(memoryview(body)[:length] if header_length else body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(
            f"the body is not JSON: {error}", reason="invalid_json"
        ) from error
    if not isinstance(document, dict):
        raise InvalidRequestError("the body must be a JSON object")
    return document, memoryview(body)[length:] if header_length else _NOTHING


def decode_infer(
    document: Mapping[str, Any],
    binary: memoryview,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
) -> InferRequest:
    """Check a request against the model.

    Raises:
        InvalidRequestError: something does not fit; names the place.
        UnsupportedError: it asks for what is not offered.
    """
    given = document.get("inputs")
    if not isinstance(given, list) or not given:
        raise InvalidRequestError("inputs must be a list of tensors", param="inputs")
    found: dict[str, tuple[tuple[int, ...], Buffer]] = {}
    by_name = {info.name: info for info in inputs}
    at = 0
    for number, tensor in enumerate(given):
        place = f"inputs[{number}]"
        info = _info_of(tensor, by_name, place)
        if info.name in found:
            raise _wrong(f"{place}.name", f"{info.name!r} comes twice")
        shape = _shape(tensor, info, place)
        size = _binary_size(tensor, place)
        if size is None:
            data: Buffer = _pack(info, tensor.get("data"), shape, place)
        else:
            if at + size > len(binary):
                raise _wrong(place, f"{size} bytes of binary data; {len(binary) - at} are left")
            data = binary[at : at + size]
            _check_binary(info, data, shape, place)
            at += size
        found[info.name] = shape, data
    if at != len(binary):
        raise InvalidRequestError(f"{len(binary) - at} bytes of binary data belong to no input")
    missing = [info.name for info in inputs if info.name not in found]
    if missing:
        raise InvalidRequestError(f"the input {missing[0]!r} is missing", param="inputs")
    ordered = [found[info.name] for info in inputs]
    rows = {shape[0] for shape, _ in ordered}
    if len(rows) > 1:
        raise InvalidRequestError(f"the inputs have different batch sizes: {sorted(rows)}")
    return InferRequest(
        id=_id(document),
        rows=rows.pop(),
        shapes=tuple(shape[1:] for shape, _ in ordered),
        data=tuple(data for _, data in ordered),
        wanted=_wanted(document, outputs),
    )


class InferCodec:
    """Reads requests for one model and writes its answers.

    Most requests have the same plain form: one input of a fixed shape with its values as a flat
    list, and no wishes. `decode` knows that form from a few comparisons; `decode_infer` reads all
    others, and finds out what is wrong.
    """

    def __init__(self, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._all = tuple(WantedOutput(index, False) for index in range(len(outputs)))
        self._heads = [_output_head(info) for info in outputs]
        self._shaped_heads: dict[tuple[int, int, tuple[int, ...]], bytes] = {}
        self._frame = b"", b"", 0
        self._frames_to_learn = _MOST_FRAMES
        self._plain = len(self.inputs) == 1 and _is_plain(self.inputs[0])
        if self._plain:
            info = self.inputs[0]
            self._name, self._datatype = info.name, info.datatype.name
            self._row_shape = list(info.shape[1:])
            self._row_values = math.prod(info.shape[1:])
            self._shapes = (info.shape[1:],)

    def read(self, body: bytes, header_length: str = "") -> InferRequest:
        """Read a body; see `parse_json` and `decode_infer`."""
        if not header_length:
            before, after, rows = self._frame
            if rows and body.startswith(before) and body.endswith(after):
                packed = self._pack_text(body[len(before) - 1 : 1 - len(after)], rows)
                if packed is not None:
                    return InferRequest("", rows, self._shapes, (packed,), self._all)
        document, binary = parse_json(body, header_length)
        request = self.decode(document, binary)
        if self._plain and self._frames_to_learn and "id" not in document and not header_length:
            self._frames_to_learn -= 1
            self._learn_frame(body, document, request.rows)
        return request

    def _learn_frame(self, body: bytes, document: dict[str, Any], rows: int) -> None:
        """Remember what is around the values, which most clients write the same each time.

        Another list of values between the same two ends is another plain request, if an empty list
        and a list of one value there are read as such, and everything else as before.
        """
        start = body.find(b"[", body.rfind(b'"data"')) + 1
        end = body.rfind(b"]", 0, max(0, body.rfind(b"]")))
        before, after = body[:start], body[end:]
        for text, values in ((b"", []), (b"0", [0])):
            try:
                found = orjson.loads(before + text + after)
            except orjson.JSONDecodeError:
                return
            wanted = {**document, "inputs": [{**document["inputs"][0], "data": values}]}
            if found != wanted or len(document["inputs"]) != 1:
                return
        if self._decode_plain(document) is not None:
            self._frame = before, after, rows

    def _pack_text(self, text: bytes, rows: int) -> bytes | None:
        """Return the raw bytes of a JSON list of so many rows; None if it is none."""
        try:
            values = orjson.loads(text)
            if type(values) is list and len(values) == rows * self._row_values:
                return _struct(self.inputs[0].datatype.pack, len(values)).pack(*values)
        except (orjson.JSONDecodeError, struct.error, OverflowError, TypeError):
            return None  # the whole body is read then, which finds the fault
        return None

    def decode(self, document: Mapping[str, Any], binary: memoryview) -> InferRequest:
        """Check a request against the model; see `decode_infer`."""
        if self._plain and len(document) <= 2:
            request = self._decode_plain(document)
            if request is not None:
                return request
        return decode_infer(document, binary, self.inputs, self.outputs)

    def encode(
        self, head: bytes, request: InferRequest, answer: BatchOutputs, offset: int
    ) -> tuple[bytes, int]:
        """Return an answer's body, and the length of its JSON if binary data follows, else 0.

        Args:
            head: The JSON object as far as ``"outputs":``, see `answer_head`.
            request: What was asked.
            answer: The outputs of its batch.
            offset: Its first row in the batch.
        """
        parts, payloads = [head], []
        until = offset + request.rows
        separator = b"["
        for wanted in request.wanted:
            array = answer.arrays[wanted.index]
            parts += (separator, self._output_head(wanted.index, request.rows, array.shape[1:]))
            if wanted.binary:
                payload = bytes(array_bytes(array[offset:until]))
                payloads.append(payload)
                parts.append(b'],"parameters":{"binary_data_size":%d}}' % len(payload))
            else:
                values = b",".join(answer.row_json(wanted.index)[offset:until])
                parts += (b'],"data":[', values, b"]}")
            separator = b","
        parts.append(b"]}")
        body = b"".join(parts)
        if not payloads:
            return body, 0
        return body + b"".join(payloads), len(body)

    def _output_head(self, index: int, rows: int, row_shape: tuple[int, ...]) -> bytes:
        """Return an output's JSON as far as its shape's last size; most answers have the same."""
        key = index, rows, row_shape
        head = self._shaped_heads.get(key)
        if head is None:
            shape = b",".join(b"%d" % size for size in (rows, *row_shape))
            head = self._heads[index] + shape
            if len(self._shaped_heads) < _KEPT_HEADS:
                self._shaped_heads[key] = head
        return head

    def _decode_plain(self, document: Mapping[str, Any]) -> InferRequest | None:
        """Read a request of the plain form; None if it has another one, or a fault."""
        given = document.get("inputs")
        own_id = document.get("id", "")
        if type(given) is not list or len(given) != 1 or len(document) != 1 + ("id" in document):
            return None
        tensor = given[0] if type(given[0]) is dict and type(own_id) is str else {}
        shape, data = tensor.get("shape"), tensor.get("data")
        if (
            len(tensor) != 4
            or tensor.get("name") != self._name
            or tensor.get("datatype") != self._datatype
            or type(shape) is not list
            or type(data) is not list
            or shape[1:] != self._row_shape
        ):
            return None
        rows = shape[0]
        wanted = rows * self._row_values if type(rows) is int and rows > 0 else -1
        if len(data) != wanted or len(own_id) > _MAX_ID_CHARACTERS:
            return None
        try:
            packed = _struct(self.inputs[0].datatype.pack, len(data)).pack(*data)
        except (struct.error, OverflowError, TypeError):
            return None
        return InferRequest(own_id, rows, self._shapes, (packed,), self._all)


def _is_plain(info: TensorInfo) -> bool:
    """Say whether an input's values are numbers and its shape is fixed beside the batch."""
    return bool(info.datatype.pack) and all(size >= 0 for size in info.shape[1:])


def answer_head(model: str, version: int) -> bytes:
    """Return the beginning of an answer's JSON, as far as the value of ``id``."""
    names = orjson.dumps({"model_name": model, "model_version": str(version)})
    return names[:-1] + b',"id":'


def merge_binary(document: dict[str, Any], binary: memoryview) -> None:
    """Put binary BYTES tensors into ``data``, for models that take text.

    Raises:
        InvalidRequestError: the sizes do not fit, or it is not UTF-8.
        UnsupportedError: another datatype is binary.
    """
    given = document.get("inputs")
    at = 0
    for number, tensor in enumerate(given if isinstance(given, list) else ()):
        place = f"inputs[{number}]"
        size = _binary_size(tensor, place) if isinstance(tensor, dict) else None
        if size is None:
            continue
        if tensor.get("datatype") != BYTES.name:
            raise UnsupportedError(f"{place}: this model takes BYTES only", param=place)
        if at + size > len(binary):
            raise _wrong(place, f"{size} bytes of binary data; {len(binary) - at} are left")
        tensor["data"] = _texts(binary[at : at + size], place)
        at += size
    if at != len(binary):
        raise InvalidRequestError(f"{len(binary) - at} bytes of binary data belong to no input")


def _info_of(tensor: Any, by_name: Mapping[str, TensorInfo], place: str) -> TensorInfo:
    """Return the model's input that a tensor is for."""
    if not isinstance(tensor, dict):
        raise _wrong(place, "must be a tensor with name, shape, datatype and data")
    name = tensor.get("name")
    info = by_name.get(name) if isinstance(name, str) else None
    if info is None:
        raise _wrong(f"{place}.name", f"{name!r} is no input; there are {', '.join(by_name)}")
    if tensor.get("datatype") != info.datatype.name:
        said = tensor.get("datatype")
        raise _wrong(f"{place}.datatype", f"{said!r}; {name} is {info.datatype.name}")
    return info


def _shape(tensor: Mapping[str, Any], info: TensorInfo, place: str) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if isinstance(shape, list) and len(shape) == len(info.shape):
        for size, wanted in zip(shape, info.shape, strict=True):
            if type(size) is not int or size < 0 or (wanted not in {-1, size}):
                break
        else:
            if shape[0] > 0:
                return tuple(shape)
    raise _wrong(f"{place}.shape", f"{shape!r} does not fit {list(info.shape)} (-1: any size)")


def _binary_size(tensor: Mapping[str, Any], place: str) -> int | None:
    parameters = tensor.get("parameters")
    if not isinstance(parameters, dict):
        return None
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise _wrong(f"{place}.parameters.binary_data_size", "must be a number of bytes")
    if tensor.get("data") is not None:
        raise _wrong(place, "has both data and binary_data_size")
    return size


def _check_binary(info: TensorInfo, data: memoryview, shape: tuple[int, ...], place: str) -> None:
    count = math.prod(shape)
    if info.datatype is BYTES:
        found = len(_texts(data, place))
        if found != count:
            raise _wrong(place, f"{found} elements; the shape {list(shape)} has {count}")
    elif len(data) != count * info.datatype.size_bytes:
        wanted = count * info.datatype.size_bytes
        raise _wrong(
            place, f"{len(data)} bytes; {list(shape)} of {info.datatype.name} has {wanted}"
        )


def _texts(data: memoryview, place: str) -> list[str]:
    """Return the elements of a BYTES tensor as text."""
    try:
        return [element.decode("utf-8") for element in unpack_bytes(data)]
    except ValueError as error:
        raise _wrong(place, f"BYTES that cannot be read: {error}") from error


def _pack(info: TensorInfo, data: Any, shape: tuple[int, ...], place: str) -> bytes:
    """Return the raw bytes of JSON values, flat or nested."""
    if not isinstance(data, list):
        raise _wrong(f"{place}.data", "must be a list")
    if data and type(data[0]) is list:
        data = _flatten(data, shape, f"{place}.data")
    count = math.prod(shape)
    if len(data) != count:
        raise _wrong(f"{place}.data", f"{len(data)} values; the shape {list(shape)} has {count}")
    datatype = info.datatype
    if datatype.pack:
        try:
            return _struct(datatype.pack, count).pack(*data)
        except (struct.error, OverflowError, TypeError) as error:
            raise _bad_value(datatype.pack, data, place) from error
    if datatype is BOOL:
        if any(type(value) is not bool for value in data):
            raise _wrong(f"{place}.data", "must be true or false")
        return bytes(data)
    if datatype is FP16:
        raise UnsupportedError(
            f"{place}: FP16 has no JSON form; send it as binary data", param=place
        )
    if any(type(value) is not str for value in data):
        raise _wrong(f"{place}.data", "must be texts")
    return pack_bytes(value.encode("utf-8", "surrogatepass") for value in data)


def _struct(code: str, count: int) -> struct.Struct:
    found = _structs.get((code, count))
    if found is None:
        found = struct.Struct(f"<{count}{code}")
        if count <= _KEPT_VALUES and len(_structs) < _KEPT_VALUES:
            _structs[code, count] = found
    return found


def _flatten(data: list[Any], shape: tuple[int, ...], place: str) -> list[Any]:
    """Return the values of nested lists, which must have exactly the shape."""
    if len(data) != shape[0]:
        raise _wrong(place, f"{len(data)} rows; the shape {list(shape)} has {shape[0]}")
    for axis, size in enumerate(shape[1:], start=1):
        for item in data:
            if type(item) is not list or len(item) != size:
                raise _wrong(place, f"axis {axis} must have {size} values everywhere")
        data = [value for item in data for value in item]
    return data


def _bad_value(code: str, data: Sequence[Any], place: str) -> InvalidRequestError:
    """Find the value that cannot be packed."""
    single = struct.Struct(f"<{code}")
    for number, value in enumerate(data):
        try:
            single.pack(value)
        except (struct.error, OverflowError, TypeError):
            kind = "a number" if isinstance(value, int | float) else type(value).__name__
            return _wrong(f"{place}.data[{number}]", f"{kind} that the datatype cannot hold")
    return _wrong(f"{place}.data", "values that the datatype cannot hold")


def _id(document: Mapping[str, Any]) -> str:
    value = document.get("id")
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _MAX_ID_CHARACTERS:
        raise InvalidRequestError(
            f"id must be a text of at most {_MAX_ID_CHARACTERS} characters", param="id"
        )
    return value


def _wanted(document: Mapping[str, Any], outputs: Sequence[TensorInfo]) -> tuple[WantedOutput, ...]:
    """Return the outputs that the client asks for; all of them if it names none."""
    parameters = document.get("parameters")
    everywhere = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    given = document.get("outputs")
    if given is None or given == []:
        return tuple(WantedOutput(index, everywhere) for index in range(len(outputs)))
    if not isinstance(given, list):
        raise InvalidRequestError("outputs must be a list", param="outputs")
    names = [info.name for info in outputs]
    wanted = []
    for number, item in enumerate(given):
        place = f"outputs[{number}]"
        name = item.get("name") if isinstance(item, dict) else None
        if name not in names:
            raise _wrong(f"{place}.name", f"{name!r} is no output; there are {', '.join(names)}")
        own = item.get("parameters")
        own = own if isinstance(own, dict) else {}
        if "classification" in own:
            raise UnsupportedError(f"{place}: classification is not supported", param=place)
        binary = own.get("binary_data", everywhere)
        if type(binary) is not bool:
            raise _wrong(f"{place}.parameters.binary_data", "must be true or false")
        wanted.append(WantedOutput(names.index(name), binary))
    return tuple(wanted)


def _output_head(info: TensorInfo) -> bytes:
    """Return the beginning of an output's JSON, as far as the first size of its shape."""
    names = orjson.dumps({"name": info.name, "datatype": info.datatype.name})
    return names[:-1] + b',"shape":['


def _wrong(place: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"{place}: {what}", param=place)
