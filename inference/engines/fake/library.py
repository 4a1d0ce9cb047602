"""The fake library: Runtime, Engine and Context of TensorRT over an ONNX model.

A plan is the bytes of an ONNX file, and ONNX Runtime computes what the kernels would.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from enum import Enum, IntEnum
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from inference.engines.contract import Array, Signature, TensorSpec
from inference.engines.fake.device import CudaStatus, DeviceFaultError, FakeDevice
from inference.engines.fake.program import FaultKind
from inference.engines.onnx import OnnxEngine, session_options
from inference.engines.profiles import Profile

_LARGEST_SIZE = 1 << 16


class _ErrorCode(IntEnum):
    """TensorRT's error codes that are reported here."""

    FAILED_ALLOCATION = 5
    FAILED_INITIALIZATION = 6
    FAILED_EXECUTION = 7


class _TensorLocation(Enum):
    DEVICE = 0
    HOST = 1


class _TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class _Logger:
    """Base class of loggers."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class _ErrorRecorder:
    """Base class of error recorders."""


def make_module(device: FakeDevice, profiles: Sequence[Profile] = ()) -> Any:
    """Return what stands in for the module ``tensorrt``.

    Args:
        device: Computes and fails.
        profiles: Optimization profiles of every plan; without any there is one that takes all.
    """
    return SimpleNamespace(
        __version__="fake",
        ILogger=_Logger,
        IErrorRecorder=_ErrorRecorder,
        TensorLocation=_TensorLocation,
        TensorIOMode=_TensorIOMode,
        nptype=lambda dtype: dtype,
        Runtime=partial(FakeRuntime, device=device, profiles=profiles),
    )


class FakeRuntime:
    """Stands in for ``tensorrt.Runtime``."""

    def __init__(self, logger: Any, *, device: FakeDevice, profiles: Sequence[Profile]) -> None:
        self.logger = logger
        self.error_recorder: Any = None
        self._device = device
        self._profiles = profiles

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        """Load a model from its bytes; None when it cannot be loaded."""
        fault = self._device.program.take(FaultKind.DESERIALIZE_NONE)
        if fault is not None:
            reason = fault.message or "Error Code 6: the plan was built for another version"
            self.report(_ErrorCode.FAILED_INITIALIZATION, reason)
            return None
        import onnxruntime  # noqa: PLC0415 - heavy, and only a loaded fake needs it

        try:
            session = onnxruntime.InferenceSession(plan, session_options(1))
        except Exception as error:  # noqa: BLE001 - as TensorRT: any reason, logged, gives None
            self.report(_ErrorCode.FAILED_INITIALIZATION, f"magicTag does not match: {error}")
            return None
        return FakeEngine(self, session, self._device, self._profiles)

    def report(self, code: _ErrorCode, message: str) -> None:
        """Tell an error to the logger and to the recorder, as TensorRT does."""
        self.logger.log(_Logger.ERROR, f"{code.name}: {message}")
        if self.error_recorder is not None:
            self.error_recorder.report_error(code, message)


class FakeEngine:
    """Stands in for ``tensorrt.ICudaEngine``."""

    def __init__(
        self, runtime: FakeRuntime, session: Any, device: FakeDevice, profiles: Sequence[Profile]
    ) -> None:
        self.runtime = runtime
        self.device = device
        self.session = session
        self.signature: Signature = OnnxEngine(session, "cpu").signature
        self.profiles = list(profiles) or [
            {spec.name: _everything(spec) for spec in self.signature.inputs}
        ]
        self._tensors = (*self.signature.inputs, *self.signature.outputs)

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs."""
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        """At least one."""
        return len(self.profiles)

    def spec(self, name: str) -> TensorSpec:
        """Return what is known about a tensor."""
        return next(spec for spec in self._tensors if spec.name == name)

    def get_tensor_name(self, number: int) -> str:
        """Return the name of a tensor."""
        return self._tensors[number].name

    def get_tensor_mode(self, name: str) -> _TensorIOMode:
        """Say whether it goes in or comes out."""
        return _TensorIOMode.INPUT if self.signature.input(name) else _TensorIOMode.OUTPUT

    def get_tensor_location(self, _name: str) -> _TensorLocation:
        """All are on the device."""
        return _TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> np.dtype[Any]:
        """Return the type of an element."""
        return self.spec(name).dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return the sizes; -1 for one that varies."""
        return tuple(size if isinstance(size, int) else -1 for size in self.spec(name).shape)

    def get_tensor_profile_shape(self, name: str, number: int) -> tuple[tuple[int, ...], ...]:
        """Return the range of an input in a profile."""
        return self.profiles[number][name]

    def create_execution_context(self) -> FakeContext:
        """Make a context."""
        return FakeContext(self)


class FakeContext:
    """Stands in for ``tensorrt.IExecutionContext``."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, number: int, _stream: int) -> bool:
        """Switch; shapes have to be set again after it."""
        self._shapes.clear()
        self._profile = number
        return 0 <= number < len(self._engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Take the shape of an input if the profile does."""
        low, _, high = self._engine.profiles[self._profile][name]
        fits = len(shape) == len(low) and all(
            a <= size <= b for a, size, b in zip(low, shape, high, strict=True)
        )
        if fits:
            self._shapes[name] = shape
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return the sizes that follow from the inputs; -1 where they do not."""
        return tuple(_evaluate(size, self._sizes()) for size in self._engine.spec(name).shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Take the place of a tensor."""
        self._addresses[name] = address
        return address > 0

    def execute_async_v3(self, stream: int) -> bool:
        """Queue the computation with the shapes and places of now."""
        engine = self._engine
        fault = engine.device.program.take(
            FaultKind.EXECUTE_FALSE, FaultKind.OUT_OF_MEMORY, FaultKind.ASYNC_ERROR,
            FaultKind.DEVICE_LOST, FaultKind.HANG, FaultKind.SEGFAULT, FaultKind.NAN_OUTPUT,
        )  # fmt: skip
        if fault is not None and fault.kind is FaultKind.SEGFAULT:
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault is not None and fault.kind is FaultKind.OUT_OF_MEMORY:
            engine.runtime.report(_ErrorCode.FAILED_ALLOCATION, fault.message or "out of memory")
            return False
        if fault is not None and fault.kind is FaultKind.EXECUTE_FALSE:
            engine.runtime.report(_ErrorCode.FAILED_EXECUTION, fault.message or "enqueue failed")
            return False
        shapes = {spec.name: self.get_tensor_shape(spec.name) for spec in engine.signature.outputs}
        kind = None if fault is None else fault.kind
        work = partial(_compute, engine, {**shapes, **self._shapes}, dict(self._addresses), kind)
        engine.device.enqueue(stream, work)
        return True

    def _sizes(self) -> dict[str, int]:
        """Return the value of each named size, from the inputs."""
        return {
            name: value
            for spec in self._engine.signature.inputs
            for name, value in zip(spec.shape, self._shapes.get(spec.name, ()), strict=False)
            if isinstance(name, str)
        }


def _compute(
    engine: FakeEngine,
    shapes: Mapping[str, tuple[int, ...]],
    addresses: Mapping[str, int],
    fault: FaultKind | None,
) -> None:
    """Do what the kernels would do, or fail as they would."""
    if fault is FaultKind.HANG:
        threading.Event().wait()
    if fault is FaultKind.ASYNC_ERROR:
        raise DeviceFaultError(CudaStatus.cudaErrorLaunchOutOfResources)
    if fault is FaultKind.DEVICE_LOST:
        engine.device.lose()
        raise DeviceFaultError(CudaStatus.cudaErrorDevicesUnavailable)

    def view(spec: TensorSpec) -> Array:
        return engine.device.view(addresses[spec.name], shapes[spec.name], spec.dtype)

    feeds = {spec.name: view(spec) for spec in engine.signature.inputs}
    results = engine.session.run(None, feeds)
    for number, (spec, result) in enumerate(zip(engine.signature.outputs, results, strict=True)):
        spoiled = fault is FaultKind.NAN_OUTPUT and number == 0
        view(spec)[...] = np.nan if spoiled else result


def _everything(spec: TensorSpec) -> tuple[tuple[int, ...], ...]:
    """Return a range that takes every shape of an input."""
    return tuple(
        tuple(size if isinstance(size, int) else varying for size in spec.shape)
        for varying in (0, 1, _LARGEST_SIZE)
    )


def _evaluate(size: int | str, sizes: Mapping[str, int]) -> int:
    """Return the value of a size: a number, a name, or a sum of those; -1 where it is not known."""
    if isinstance(size, int):
        return size
    if size in sizes:
        return sizes[size]
    terms = [term.strip() for term in size.split("+")]
    if all(term in sizes or term.isdecimal() for term in terms):
        return sum(sizes[term] if term in sizes else int(term) for term in terms)
    return -1
