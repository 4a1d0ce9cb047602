"""TensorRT: a serialized plan on an NVIDIA GPU.

Written against TensorRT 10 and 11 and against ``tensorrt_rtx``, which has the same API: named
tensors, ``execute_async_v3``, one stream for each context. TensorRT says *that* something failed by
None and False, and why only to its logger and its error recorder; both are kept here and asked.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from inference.engines.contract import (
    Array,
    DeviceLostError,
    EngineLoadError,
    EngineStepError,
    OutOfMemoryError,
    Placement,
    Signature,
    Support,
    Tensor,
    TensorSpec,
)
from inference.engines.cuda import Cuda, DeviceBuffer, DeviceMemory, DeviceTensor
from inference.engines.profiles import Profile, choose_profile, describe_misfit
from inference.engines.reasons import ReasonLog

PLAN_FILE = "model.plan"


class TensorRtContext:
    """Executes one run at a time on a stream of its own."""

    def __init__(self, engine: TensorRtEngine, context: Any, memory: DeviceMemory) -> None:
        self._engine = engine
        self._context = context
        self._memory = memory
        self._profile = 0

    def run(
        self,
        feeds: Mapping[str, Tensor],
        fetches: Sequence[str] | None = None,
        resident: frozenset[str] = frozenset(),
    ) -> dict[str, Tensor]:
        """Queue inputs, computation and outputs, and wait for the stream; see `Context.run`."""
        if self._context is None:
            raise EngineStepError("the context is closed")
        signature = self._engine.signature
        missing = [spec.name for spec in signature.inputs if spec.name not in feeds]
        if missing:
            raise EngineStepError(f"the inputs {', '.join(missing)} are missing")
        self._use_profile({spec.name: feeds[spec.name].shape for spec in signature.inputs})
        # Held until the stream is done: an asynchronous copy may still read from them.
        held: list[object] = []
        try:
            held = [self._bind_input(spec, feeds[spec.name]) for spec in signature.inputs]
            outputs = {
                spec.name: self._bind_output(spec, stays=spec.name in resident)
                for spec in signature.outputs
            }
            if not self._context.execute_async_v3(self._memory.stream):
                raise self._failure("execute_async_v3 returned False")
            names = list(outputs) if fetches is None else fetches
            results: dict[str, Tensor] = {
                name: outputs[name] if name in resident else self._fetch(outputs[name])
                for name in names
            }
            self._memory.synchronize()
        except EngineStepError as error:
            raise self._settled(error) from error
        finally:
            held.clear()
        return results

    def close(self) -> None:
        """Give back the device memory of the execution."""
        self._context = None
        self._memory.close()

    def _use_profile(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Switch to the optimization profile that fits best."""
        profiles = self._engine.profiles
        if len(profiles) < 2:
            return
        wanted = choose_profile(profiles, shapes, self._profile)
        if wanted is None:
            raise EngineStepError(describe_misfit(profiles, shapes))
        if wanted != self._profile:
            if not self._context.set_optimization_profile_async(wanted, self._memory.stream):
                raise self._failure(f"set_optimization_profile_async refused profile {wanted}")
            self._profile = wanted

    def _bind_input(self, spec: TensorSpec, tensor: Tensor) -> object:
        """Put an input where the plan reads it; what comes back must live as long as the run."""
        if not self._context.set_input_shape(spec.name, tuple(tensor.shape)):
            shapes = {spec.name: tensor.shape}
            raise self._failure(describe_misfit(self._engine.profiles, shapes))
        if isinstance(tensor, DeviceTensor) and tensor.memory is self._memory:
            self._set_address(spec.name, tensor.buffer.address)
            return tensor
        array = np.ascontiguousarray(tensor, dtype=spec.dtype)
        if spec.name in self._engine.host_tensors:
            self._set_address(spec.name, array.ctypes.data)
        else:
            buffer = self._memory.named(spec.name, array.nbytes)
            self._memory.upload(buffer.address, array)
            self._set_address(spec.name, buffer.address)
        return array

    def _bind_output(self, spec: TensorSpec, *, stays: bool) -> Array | DeviceTensor:
        """Give an output a place: on the host, in a kept buffer, or in one of its own."""
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if any(size < 0 for size in shape):
            raise self._failure(f"the shape of {spec.name} is not known before the run: {shape}")
        if spec.name in self._engine.host_tensors:
            array = np.empty(shape, spec.dtype)
            self._set_address(spec.name, array.ctypes.data)
            return array
        size = int(np.prod(shape, dtype=np.int64)) * spec.dtype.itemsize
        buffer: DeviceBuffer
        buffer = self._memory.allocate(size) if stays else self._memory.named(spec.name, size)
        self._set_address(spec.name, buffer.address)
        return DeviceTensor(self._memory, buffer, shape, spec.dtype)

    def _fetch(self, output: Array | DeviceTensor) -> Array:
        """Queue the copy of an output, unless it is on the host already."""
        if not isinstance(output, DeviceTensor):
            return output
        array = np.empty(output.shape, output.dtype)
        self._memory.download(output.buffer.address, array)
        return array

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise self._failure(f"set_tensor_address refused {name}")

    def _failure(self, what: str) -> EngineStepError:
        """Return the error for a call that said no, with what TensorRT told its recorder."""
        reasons = self._engine.reasons
        text = reasons.take()
        message = f"{self._engine.kind}: {what}: {text or 'TensorRT gave no reason'}"
        if reasons.out_of_memory(text):
            return OutOfMemoryError(message)
        return EngineStepError(message)

    def _settled(self, error: EngineStepError) -> EngineStepError:
        """Wait for what is queued, so that host memory may go; a lost device outdoes the error."""
        if error.fatal:
            return error
        try:
            self._memory.synchronize()
        except EngineStepError as later:
            return type(later)(f"{error}; then {later}") if later.fatal else error
        return error


class TensorRtEngine:
    """A deserialized plan."""

    def __init__(self, kind: str, module: Any, engine: Any, cuda: Cuda, reasons: ReasonLog) -> None:
        self.kind = kind
        self.reasons = reasons
        self._engine = engine
        self._cuda = cuda
        self._contexts: list[TensorRtContext] = []
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.host_tensors = frozenset(
            name for name in names if engine.get_tensor_location(name) == module.TensorLocation.HOST
        )
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for name in names:
            is_input = engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(_spec(module, engine, name))
        self.signature = Signature(tuple(inputs), tuple(outputs))
        self.profiles: list[Profile] = [
            {spec.name: _ranges(engine, spec.name, number) for spec in inputs}
            for number in range(engine.num_optimization_profiles)
        ]
        self.device = self.placement().device

    def placement(self) -> Placement:
        """Say where tensors are, and see that the device still answers."""
        self._cuda.call("cudaMemGetInfo")  # asks the driver, which cudaGetDevice does not
        signature = self.signature
        inputs, outputs = self._side(signature.inputs), self._side(signature.outputs)
        reason = "" if inputs == outputs == "cuda" else "the plan reads or writes host memory"
        return Placement("cuda", inputs, outputs, "cuda", reason)

    def create_context(self) -> TensorRtContext:
        """Make an execution context.

        Raises:
            EngineLoadError: TensorRT made none, most often for lack of device memory.
        """
        context = self._engine.create_execution_context()
        if context is None:
            reason = self.reasons.take() or "out of device memory?"
            raise EngineLoadError(f"create_execution_context returned None: {reason}")
        try:
            made = TensorRtContext(self, context, DeviceMemory(self._cuda))
        except EngineStepError as error:
            raise EngineLoadError(str(error)) from error
        self._contexts.append(made)
        return made

    def close(self) -> None:
        """Give back contexts first, then the plan: TensorRT wants that order."""
        for context in self._contexts:
            context.close()
        self._contexts.clear()
        self._engine = None

    def _side(self, tensors: Sequence[TensorSpec]) -> str:
        """Return where a group of tensors is; small ones that decide shapes may be on the host."""
        on_host = all(tensor.name in self.host_tensors for tensor in tensors)
        return "cpu" if tensors and on_host else "cuda"


class TensorRtRuntime:
    """Deserializes plans with ``tensorrt`` or ``tensorrt_rtx``.

    Args:
        kind: Name of the module, as in the metric ``model_info``.
        module: The module; None where it is not installed.
        cuda: The device; None opens the current one.
        file: Name of the plan in a version folder.
    """

    def __init__(
        self,
        kind: str,
        module: ModuleType | Any | None,
        cuda: Cuda | None = None,
        *,
        file: str = PLAN_FILE,
    ) -> None:
        self._kind = kind
        self._module = module
        self._cuda = cuda
        self._file = file

    @classmethod
    def from_installed(cls, kind: str) -> TensorRtRuntime:
        """Take the module of that name, if it is installed."""
        try:
            return cls(kind, importlib.import_module(kind))
        except (ImportError, OSError):  # OSError: the module is there, its libraries are not
            return cls(kind, None)

    def is_supported(self) -> Support:
        """Say whether the module can be imported."""
        if self._module is None:
            return Support(False, f"the module {self._kind} cannot be imported")
        return Support(True)

    def load(self, folder: Path, file: str | None = None) -> TensorRtEngine:
        """Deserialize ``folder/model.plan``.

        `deserialize_cuda_engine` reports a missing driver, a damaged file and a plan of another
        version or GPU all by returning None; what it logged is the only reason there is.

        Raises:
            EngineLoadError: with the reason from the recorder or the log.
            DeviceLostError: no device answers.
        """
        path = folder / (file or self._file)
        if self._module is None:
            raise EngineLoadError(self.is_supported().reason)
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise EngineLoadError(f"{path}: {error}") from error
        log = ReasonLog(self._module)
        runtime = self._module.Runtime(log.logger)
        runtime.error_recorder = log.recorder
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            reason = log.take() or "TensorRT gave no reason"
            raise EngineLoadError(f"{self._kind} cannot deserialize {path}: {reason}")
        try:
            cuda = self._cuda or Cuda.open()
            return TensorRtEngine(self._kind, self._module, engine, cuda, log)
        except DeviceLostError:
            raise
        except EngineStepError as error:
            raise EngineLoadError(str(error)) from error


def _spec(module: Any, engine: Any, name: str) -> TensorSpec:
    """Describe a tensor; TensorRT keeps no names of sizes that vary."""
    dtype = engine.get_tensor_dtype(name)
    try:
        nptype = np.dtype(module.nptype(dtype))
    except TypeError as error:
        raise EngineLoadError(
            f"the tensor {name} has the type {dtype}, which numpy lacks"
        ) from error
    shape = tuple(int(size) if size >= 0 else "?" for size in engine.get_tensor_shape(name))
    return TensorSpec(name, nptype, shape)


def _ranges(engine: Any, name: str, number: int) -> tuple[tuple[int, ...], ...]:
    """Return the smallest, best and largest shape of an input in a profile."""
    return tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, number))
