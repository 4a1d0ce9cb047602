"""CUDA through NVIDIA's ``cuda-python``: checked calls, one stream, and memory that is kept.

Every call of ``cuda.bindings.runtime`` returns a tuple of a status and values, and reports errors of
earlier asynchronous work too. Here a status is an exception of the engine's error tree, so that a
lost device, a full one and a bad argument are told apart.
"""

from __future__ import annotations

import importlib
import math
from collections import defaultdict
from types import ModuleType
from typing import Any

import numpy as np

from inference.engines.contract import (
    Array,
    DeviceLostError,
    EngineLoadError,
    EngineStepError,
    OutOfMemoryError,
)

_SUCCESS = 0
_OUT_OF_MEMORY = 2
# NVIDIA on each of these: "This leaves the process in an inconsistent state and any further CUDA work
# will return the same error. To continue using CUDA, the process must be terminated and relaunched";
# or the device is not there any more (46, 100, 101), or answers nothing else (4, 709, 999).
LOST_STATUSES = frozenset(
    {4, 46, 100, 101, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999}
)
_HOST_TO_DEVICE = 1
_DEVICE_TO_HOST = 2
# TensorRT wants an address for a tensor without elements too.
_SMALLEST_BYTES = 256


class Cuda:
    """Checked calls of the CUDA runtime."""

    def __init__(self, module: ModuleType | Any) -> None:
        self._module = module

    @classmethod
    def open(cls) -> Cuda:
        """Take the installed cuda-python.

        Raises:
            EngineLoadError: it is not installed.
        """
        try:
            return cls(importlib.import_module("cuda.bindings.runtime"))
        except (ImportError, OSError) as error:
            raise EngineLoadError(
                f"cuda-python is not installed: {error}; install the extra `tensorrt` or `rtx`"
            ) from error

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function and return its value.

        Raises:
            EngineStepError: what it reported; the class says what that means.
        """
        status, *values = getattr(self._module, name)(*arguments)
        number = int(status)
        if number == _SUCCESS:
            return values[0] if values else None
        message = f"{name} failed: {getattr(status, 'name', 'CUDA status')} ({number})"
        if number in LOST_STATUSES:
            raise DeviceLostError(message)
        if number == _OUT_OF_MEMORY:
            raise OutOfMemoryError(message)
        raise EngineStepError(message)

    def copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        """Queue a copy."""
        if size:
            direction = self._module.cudaMemcpyKind(kind)
            self.call("cudaMemcpyAsync", to, source, size, direction, stream)


class DeviceBuffer:
    """A piece of device memory, given back when nobody holds it any more."""

    __slots__ = ("_memory", "address", "size_bytes")

    def __init__(self, memory: DeviceMemory, address: int, size_bytes: int) -> None:
        self._memory = memory
        self.address = address
        self.size_bytes = size_bytes

    def __del__(self) -> None:
        self._memory.recycle(self.address, self.size_bytes)


class DeviceTensor:
    """An output that stayed on the device; see `ResidentTensor`."""

    __slots__ = ("buffer", "dtype", "memory", "shape")

    def __init__(
        self,
        memory: DeviceMemory,
        buffer: DeviceBuffer,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self.memory = memory
        self.buffer = buffer
        self.shape = shape
        self.dtype = dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Copy to the host."""
        array = np.empty(self.shape, self.dtype)
        self.memory.download(self.buffer.address, array)
        self.memory.synchronize()
        return array if dtype is None else array.astype(dtype, copy=False)


class DeviceMemory:
    """One stream, and the memory of the execution on it. Used by one thread.

    Memory that is given back is kept for the next tensor of its size class (a power of two): a
    decode step then allocates nothing, and since there is one stream, memory that is used again is
    written only after what was queued before has read it.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._free: dict[int, list[int]] = defaultdict(list)
        self._named: dict[str, DeviceBuffer] = {}
        self._lost = False
        self.reserved_bytes = 0
        """All that is taken from the device, in use or kept."""
        self.stream = int(cuda.call("cudaStreamCreate"))
        self._closed = False

    def allocate(self, size_bytes: int) -> DeviceBuffer:
        """Return a buffer of at least this size.

        Raises:
            OutOfMemoryError: not even what was kept for other sizes makes room for it.
        """
        size = 1 << math.ceil(math.log2(max(size_bytes, _SMALLEST_BYTES)))
        kept = self._free[size]
        if kept:
            return DeviceBuffer(self, kept.pop(), size)
        try:
            address = int(self._cuda.call("cudaMalloc", size))
        except OutOfMemoryError:
            self.trim()
            address = int(self._cuda.call("cudaMalloc", size))
        self.reserved_bytes += size
        return DeviceBuffer(self, address, size)

    def named(self, name: str, size_bytes: int) -> DeviceBuffer:
        """Return the buffer of a name; it grows, by doubling, and never shrinks."""
        buffer = self._named.pop(name, None)
        if buffer is None or buffer.size_bytes < size_bytes:
            buffer = None  # given back before the larger one is taken
            buffer = self.allocate(size_bytes)
        self._named[name] = buffer
        return buffer

    def upload(self, address: int, array: Array) -> None:
        """Queue a copy to the device; the array must live until `synchronize`."""
        self._cuda.copy(address, array.ctypes.data, array.nbytes, _HOST_TO_DEVICE, self.stream)

    def download(self, address: int, array: Array) -> None:
        """Queue a copy to the host; the array is filled after `synchronize`."""
        self._cuda.copy(array.ctypes.data, address, array.nbytes, _DEVICE_TO_HOST, self.stream)

    def synchronize(self) -> None:
        """Wait for the stream; errors of asynchronous work come out here.

        Raises:
            EngineStepError: what was queued has failed.
        """
        try:
            self._cuda.call("cudaStreamSynchronize", self.stream)
        except DeviceLostError:
            self._lost = True
            raise

    def recycle(self, address: int, size_bytes: int) -> None:
        """Take memory back from a buffer that nobody holds."""
        if self._closed:
            self._release(address, size_bytes)
        else:
            self._free[size_bytes].append(address)

    def trim(self) -> None:
        """Give back to the device what is kept."""
        for size, addresses in self._free.items():
            while addresses:
                self._release(addresses.pop(), size)

    def close(self) -> None:
        """Give everything back; a tensor that is still held goes when it is let go."""
        if self._closed:
            return
        self._closed = True
        self._named.clear()
        self.trim()
        if not self._lost:
            self._quietly("cudaStreamDestroy", self.stream)

    def _release(self, address: int, size_bytes: int) -> None:
        self.reserved_bytes -= size_bytes
        if not self._lost:
            self._quietly("cudaFree", address)

    def _quietly(self, name: str, argument: int) -> None:
        """Call what gives something back; a device that is lost has nothing to take."""
        try:
            self._cuda.call(name, argument)
        except EngineStepError:
            self._lost = True
