"""TensorRT: a serialized plan on an NVIDIA GPU.

Written against TensorRT 10 and 11 and against ``tensorrt_rtx``, which has the same API. It needs a
GPU to run; without one every path up to deserialization is real and the rest is not exercised here.
Keys and values travel between host and device in each step, which is simple and right; keeping
them on the device is the first thing to change for a large model.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.engines.contract import (
    CacheShape,
    EngineLoadError,
    EngineStepError,
    StepInputs,
    StepOutputs,
    Support,
    cache_names,
)

PLAN_FILE = "model.plan"
_CUDA_SUCCESS = 0
_CUDA_HOST_TO_DEVICE = 1
_CUDA_DEVICE_TO_HOST = 2


class Device:
    """Device memory and one stream, through NVIDIA's own ``cuda-python``."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._buffers: dict[str, tuple[int, int]] = {}
        self.stream = int(self._check("cudaStreamCreate", self._runtime.cudaStreamCreate()))

    @classmethod
    def open(cls) -> Device:
        """Open the current device.

        Raises:
            EngineLoadError: cuda-python or the driver is missing.
        """
        try:
            runtime = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise EngineLoadError(
                f"cuda-python is not installed: {error}; install the extra `tensorrt` or `rtx`"
            ) from error
        try:
            return cls(runtime)
        except EngineStepError as error:
            raise EngineLoadError(str(error)) from error

    def reserve(self, name: str, size_bytes: int) -> int:
        """Return the address of a buffer of at least this size; it grows by doubling."""
        address, size = self._buffers.get(name, (0, 0))
        if size >= size_bytes and address:
            return address
        if address:
            self._check("cudaFree", self._runtime.cudaFree(address))
            del self._buffers[name]
        size = max(size_bytes, 2 * size, 256)
        address = int(self._check("cudaMalloc", self._runtime.cudaMalloc(size)))
        self._buffers[name] = (address, size)
        return address

    def upload(self, name: str, array: npt.NDArray[Any]) -> int:
        """Copy an array to its buffer and return the address."""
        address = self.reserve(name, array.nbytes)
        self._copy(address, array.ctypes.data, array.nbytes, _CUDA_HOST_TO_DEVICE)
        return address

    def download(self, name: str, array: npt.NDArray[Any]) -> None:
        """Copy a buffer into an array."""
        self._copy(array.ctypes.data, self._buffers[name][0], array.nbytes, _CUDA_DEVICE_TO_HOST)

    def synchronize(self) -> None:
        """Wait for the stream; errors of asynchronous work come out here.

        Raises:
            EngineStepError: what was queued has failed.
        """
        self._check("cudaStreamSynchronize", self._runtime.cudaStreamSynchronize(self.stream))

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        if size:
            direction = self._runtime.cudaMemcpyKind(kind)
            result = self._runtime.cudaMemcpyAsync(to, source, size, direction, self.stream)
            self._check("cudaMemcpyAsync", result)

    def _check(self, call: str, result: Any) -> Any:
        """Return the value of a call, or raise what it reported."""
        status, *values = result
        if int(status) != _CUDA_SUCCESS:
            raise EngineStepError(f"{call} failed: {getattr(status, 'name', status)}")
        return values[0] if values else None


class TensorRtContext:
    """Executes one step at a time on a stream."""

    def __init__(self, context: Any, device: Device, shape: CacheShape, dtypes: Mapping[str, Any]):
        self._context = context
        self._device = device
        self._past = cache_names(shape.layers, "past_key_values")
        self._outputs = ["logits", *cache_names(shape.layers, "present")]
        self._dtypes = dtypes

    def execute(self, inputs: StepInputs) -> StepOutputs:
        """Run one step; see `Context.execute`."""
        feed: dict[str, npt.NDArray[Any]] = dict(zip(self._past, inputs.past, strict=True))
        feed["input_ids"] = inputs.input_ids
        feed["attention_mask"] = inputs.attention_mask
        feed["position_ids"] = inputs.position_ids
        # Held until the stream is done: an asynchronous copy may still read from them.
        _held = [self._bind_input(name, array) for name, array in feed.items()]
        outputs = {name: self._bind_output(name) for name in self._outputs}
        if not self._context.execute_async_v3(self._device.stream):
            raise EngineStepError("execute_async_v3 returned False")
        for name, array in outputs.items():
            self._device.download(name, array)
        self._device.synchronize()
        logits, *present = (array.astype(np.float32, copy=False) for array in outputs.values())
        return StepOutputs(logits, present)

    def _bind_input(self, name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        contiguous = np.ascontiguousarray(array, dtype=self._dtypes[name])
        if not self._context.set_input_shape(name, contiguous.shape):
            raise EngineStepError(
                f"the plan does not take {name} of shape {contiguous.shape}; "
                "see its optimization profiles"
            )
        self._set_address(name, self._device.upload(name, contiguous))
        return contiguous

    def _bind_output(self, name: str) -> npt.NDArray[Any]:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise EngineStepError(f"the shape of {name} is not known: {shape}")
        array = np.empty(shape, dtype=self._dtypes[name])
        self._set_address(name, self._device.reserve(name, array.nbytes))
        return array

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise EngineStepError(f"set_tensor_address refused {name}")


class TensorRtEngine:
    """A deserialized plan."""

    device = "cuda"

    def __init__(self, kind: str, engine: Any, device: Device, shape: CacheShape, nptype: Any):
        self.kind = kind
        self._engine = engine
        self._device = device
        self._shape = shape
        self._nptype = nptype

    def create_context(self) -> TensorRtContext:
        """Make an execution context.

        Raises:
            EngineLoadError: TensorRT made none, most often for lack of device memory.
        """
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineLoadError("create_execution_context returned None: out of device memory?")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        dtypes = {name: self._nptype(self._engine.get_tensor_dtype(name)) for name in names}
        return TensorRtContext(context, self._device, self._shape, dtypes)


class TensorRtRuntime:
    """Deserializes plans with ``tensorrt`` or ``tensorrt_rtx``."""

    def __init__(self, kind: str, module: ModuleType | None, device: Device | None = None) -> None:
        self._kind = kind
        self._module = module
        self._device = device

    @classmethod
    def from_installed(cls, kind: str) -> TensorRtRuntime:
        """Take the module of that name, if it is installed."""
        try:
            return cls(kind, importlib.import_module(kind))
        except (ImportError, OSError):
            return cls(kind, None)

    def is_supported(self) -> Support:
        """Say whether the module can be imported."""
        if self._module is None:
            return Support(False, f"the module {self._kind} cannot be imported")
        return Support(True)

    def load(self, folder: Path, shape: CacheShape) -> TensorRtEngine:
        """Deserialize ``folder/model.plan``.

        `deserialize_cuda_engine` reports a missing driver, a damaged file and a plan of another
        version or GPU all by returning None; what it logged is the only reason there is.

        Raises:
            EngineLoadError: with the reason from the log.
        """
        if self._module is None:
            raise EngineLoadError(self.is_supported().reason)
        path = folder / PLAN_FILE
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise EngineLoadError(f"{path}: {error}") from error
        logger = _make_logger(self._module)
        runtime = self._module.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            reason = "; ".join(logger.errors) or "TensorRT gave no reason"
            raise EngineLoadError(f"{self._kind} cannot deserialize {path}: {reason}")
        device = self._device or Device.open()
        return TensorRtEngine(self._kind, engine, device, shape, self._module.nptype)


def _make_logger(module: ModuleType) -> Any:
    """Make a TensorRT logger that keeps the errors; its base class exists at run time only."""

    class Logger(module.ILogger):  # type: ignore[misc, name-defined]
        """Collects errors."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Take one message of the library."""
            if severity in {module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR}:
                self.errors.append(message)

    return Logger()
