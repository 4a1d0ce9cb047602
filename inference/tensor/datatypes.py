"""Tensor datatypes of the Open Inference Protocol and what they are in memory.

https://github.com/kserve/open-inference-protocol, "Tensor Data Types". All are little endian. BYTES
elements travel as a length of four bytes, little endian, followed by that many bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype; ``code`` is its number on the wire to a worker."""

    name: str
    code: int
    dtype: np.dtype[Any]
    """``object`` for BYTES."""
    pack: str
    """Character of `struct`; empty where values cannot come as JSON numbers."""

    @property
    def size_bytes(self) -> int:
        """Bytes of one element; 0 for BYTES, which has no fixed size."""
        return 0 if self.dtype == object else self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether values can be not finite."""
        return self.dtype.kind == "f"


def _table() -> tuple[Datatype, ...]:
    rows = (
        ("BOOL", "?", ""), ("UINT8", "u1", "B"), ("UINT16", "<u2", "H"), ("UINT32", "<u4", "I"),
        ("UINT64", "<u8", "Q"), ("INT8", "i1", "b"), ("INT16", "<i2", "h"), ("INT32", "<i4", "i"),
        ("INT64", "<i8", "q"), ("FP16", "<f2", ""), ("FP32", "<f4", "f"), ("FP64", "<f8", "d"),
        ("BYTES", "O", ""),
    )  # fmt: skip
    return tuple(
        Datatype(name, code, np.dtype(dtype), pack)
        for code, (name, dtype, pack) in enumerate(rows, start=1)
    )


DATATYPES = _table()
_BY_DTYPE = {datatype.dtype: datatype for datatype in DATATYPES}
BY_NAME = {datatype.name: datatype for datatype in DATATYPES}
BY_CODE = {datatype.code: datatype for datatype in DATATYPES}
BOOL, FP16, BYTES = BY_NAME["BOOL"], BY_NAME["FP16"], BY_NAME["BYTES"]


def datatype_of(dtype: np.dtype[Any]) -> Datatype:
    """Return the datatype of a numpy type.

    Raises:
        ValueError: the protocol has none.
    """
    try:
        return _BY_DTYPE[dtype]
    except KeyError:
        raise ValueError(f"the protocol has no datatype for {dtype}") from None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A model's input or output. Axis 0 is the batch; -1 is an axis that a request chooses."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def to_wire(self) -> list[Any]:
        """Return what `from_wire` takes."""
        return [self.name, self.datatype.name, list(self.shape)]

    @classmethod
    def from_wire(cls, values: Sequence[Any]) -> TensorInfo:
        """Rebuild a spec from a message."""
        name, datatype, shape = values
        return cls(name, BY_NAME[datatype], tuple(shape))


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """Return the wire form of BYTES elements."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def unpack_bytes(data: bytes | bytearray | memoryview) -> list[bytes]:
    """Return the elements of a BYTES tensor.

    Raises:
        ValueError: the lengths do not fit the data.
    """
    elements: list[bytes] = []
    view, at = memoryview(data), 0
    while at < len(view):
        if at + _LENGTH.size > len(view):
            raise ValueError("the data ends inside the length of an element")
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if at + length > len(view):
            raise ValueError(f"element {len(elements)} of {length} bytes is cut off")
        elements.append(bytes(view[at : at + length]))
        at += length
    return elements


def to_array(
    datatype: Datatype, shape: Sequence[int], data: bytes | bytearray | memoryview
) -> npt.NDArray[Any]:
    """Return an array on the data of a tensor, without a copy except for BYTES.

    Raises:
        ValueError: the data does not fill the shape.
    """
    if datatype.size_bytes:
        return np.frombuffer(data, dtype=datatype.dtype).reshape(shape)
    array = np.empty(int(np.prod(shape)), dtype=object)
    array[:] = [element.decode("utf-8") for element in unpack_bytes(data)]
    return array.reshape(shape)


def to_buffer(array: npt.NDArray[Any]) -> bytes | memoryview:
    """Return the wire form of an array, without a copy where it is contiguous."""
    if array.dtype == object:
        return pack_bytes(
            element if isinstance(element, bytes) else str(element).encode()
            for element in array.ravel()
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
