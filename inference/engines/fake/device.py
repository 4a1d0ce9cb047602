"""The fake device: memory that is checked, and a stream that computes when it is waited for."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from inference.engines.contract import Array
from inference.engines.fake.program import FaultKind, FaultProgram

GIB = 1024**3


class CudaStatus(IntEnum):
    """The statuses of ``cudaError_t`` that this device knows."""

    cudaSuccess = 0  # noqa: N815 - NVIDIA's names
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorDevicesUnavailable = 46  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorLaunchOutOfResources = 701  # noqa: N815


class DeviceFaultError(Exception):
    """Work on the stream failed with a status."""

    def __init__(self, status: CudaStatus) -> None:
        super().__init__(status.name)
        self.status = status


class FakeDevice:
    """Memory and streams.

    Nothing that is queued happens before the stream is waited for, so that code which lets go of
    memory too early is found out.

    Args:
        program: The faults to come.
        memory_bytes: What `cudaMalloc` can give in all.
    """

    def __init__(self, program: FaultProgram | None = None, memory_bytes: int = 4 * GIB) -> None:
        self.program = program or FaultProgram()
        self.memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._allocated: dict[int, Array] = {}
        self._streams: dict[int, list[Callable[[], None]]] = {}
        self._broken: CudaStatus | None = None
        self.calls: dict[str, int] = {}
        """How often each function was called."""
        functions: tuple[Callable[..., tuple[Any, ...]], ...] = (
            self._memory_info, self._malloc, self._free, self._memcpy, self._stream_create,
            self._stream_destroy, self._stream_synchronize,
        )  # fmt: skip
        names = (
            "cudaMemGetInfo", "cudaMalloc", "cudaFree", "cudaMemcpyAsync", "cudaStreamCreate",
            "cudaStreamDestroy", "cudaStreamSynchronize",
        )  # fmt: skip
        pairs = zip(names, functions, strict=True)
        self.cuda = SimpleNamespace(
            cudaMemcpyKind=int, **{name: self._checked(name, call) for name, call in pairs}
        )
        """Stands in for ``cuda.bindings.runtime``."""

    @property
    def used_bytes(self) -> int:
        """Memory that was allocated and not freed."""
        return sum(array.nbytes for array in self._allocated.values())

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Queue work on a stream."""
        self._streams[stream].append(work)

    def lose(self, status: CudaStatus = CudaStatus.cudaErrorDevicesUnavailable) -> None:
        """Fail every call from now on."""
        self._broken = status

    def view(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return device memory as an array, as a kernel would see it.

        Raises:
            DeviceFaultError: it reaches outside of what is allocated; the device is lost then.
        """
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = self._find(address, size)
        if memory is None:
            self.lose(CudaStatus.cudaErrorIllegalAddress)
            raise DeviceFaultError(CudaStatus.cudaErrorIllegalAddress)
        return memory.view(dtype).reshape(shape)

    def _checked(self, name: str, function: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
        """Wrap a function: counted, and failing once the device is lost."""

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls[name] = self.calls.get(name, 0) + 1
            if self._broken is not None:
                return (self._broken, None)
            return function(*arguments)

        return call

    def _find(self, address: int, size: int) -> Array | None:
        """Return the allocated memory at an address, cut to the size."""
        with self._lock:
            for start, array in self._allocated.items():
                if start <= address and address + size <= start + array.nbytes:
                    return array[address - start : address - start + size]
        return None

    def _memory_info(self) -> tuple[Any, ...]:
        if self.program.take(FaultKind.DEVICE_MISSING):
            return (CudaStatus.cudaErrorNoDevice, None, None)
        return (CudaStatus.cudaSuccess, self.memory_bytes - self.used_bytes, self.memory_bytes)

    def _malloc(self, size: int) -> tuple[Any, ...]:
        with self._lock:
            if self.used_bytes + size > self.memory_bytes:
                return (CudaStatus.cudaErrorMemoryAllocation, None)
            memory = np.full(size, 0xA5, np.uint8)  # as on a device, what was there before
            self._allocated[memory.ctypes.data] = memory
            return (CudaStatus.cudaSuccess, memory.ctypes.data)

    def _free(self, address: int) -> tuple[Any, ...]:
        with self._lock:
            freed = self._allocated.pop(address, None)
        return (CudaStatus.cudaErrorInvalidValue if freed is None else CudaStatus.cudaSuccess,)

    def _memcpy(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        on_device = to if kind == 1 else source
        if stream not in self._streams or self._find(on_device, size) is None:
            return (CudaStatus.cudaErrorInvalidValue,)
        self.enqueue(stream, partial(_move, to, source, size))
        return (CudaStatus.cudaSuccess,)

    def _stream_create(self) -> tuple[Any, ...]:
        with self._lock:
            stream = max(self._streams, default=0) + 1
            self._streams[stream] = []
        return (CudaStatus.cudaSuccess, stream)

    def _stream_destroy(self, stream: int) -> tuple[Any, ...]:
        known = self._streams.pop(stream, None)
        return (CudaStatus.cudaErrorInvalidValue if known is None else CudaStatus.cudaSuccess,)

    def _stream_synchronize(self, stream: int) -> tuple[Any, ...]:
        if stream not in self._streams:
            return (CudaStatus.cudaErrorInvalidValue,)
        queued, self._streams[stream] = self._streams[stream], []
        try:
            for work in queued:
                work()
        except DeviceFaultError as fault:
            return (fault.status,)
        return (CudaStatus.cudaSuccess,)


def _move(to: int, source: int, size: int) -> None:
    ctypes.memmove(to, source, size)
