"""ONNX Runtime: the embedded engine on a CPU, and on an NVIDIA GPU with ``onnxruntime-gpu``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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

MODEL_FILE = "model.onnx"
Device = Literal["auto", "cpu", "cuda"]

_PROVIDER = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_NUMPY_TYPE = {
    "float": "float32", "double": "float64", "bool": "bool", "string": "object",
}  # fmt: skip
# Where these run, the weights are. Small integer work on shapes stays on the CPU even in a session
# that is wholly CUDA's, by onnxruntime's own choice, and says nothing about the model.
_WEIGHTY = re.compile(r"MatMul|Gemm|Conv|Attention|LSTM|GRU|MoE|Einsum")
# Wording of onnxruntime 1.20 to 1.31: its exceptions have no type of their own for these.
_NO_MEMORY = re.compile(
    r"bad_alloc|bad allocation|out of memory|Failed to allocate memory|CUDA failure 2:",
    re.IGNORECASE,
)
_LOST = re.compile(
    r"CUDA failure (4|46|100|101|214|220|700|702|710|71[4-9]|999):"
    r"|device-side assert|no CUDA-capable device|illegal memory access"
)


class OrtResidentTensor:
    """An output that onnxruntime keeps on the device."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        return tuple(self.value.shape())

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        return _numpy_type(self.value.data_type())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Copy to the host."""
        array: Array = self.value.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)


class OnnxContext:
    """Runs a session. ONNX Runtime keeps no state between runs, so there is nothing to give back.

    Args:
        session: The loaded model.
        resident_on: Device that resident outputs stay on; None is the host, where an array is as
            near as it gets.
    """

    def __init__(self, session: Any, resident_on: str | None = None) -> None:
        self._session = session
        self._resident_on = resident_on
        self._outputs = [tensor.name for tensor in session.get_outputs()]

    def run(
        self,
        feeds: Mapping[str, Tensor],
        fetches: Sequence[str] | None = None,
        resident: frozenset[str] = frozenset(),
    ) -> dict[str, Tensor]:
        """Run the session; see `Context.run`."""
        names = self._outputs if fetches is None else fetches
        bound = self._resident_on is not None and bool(resident)
        try:
            if bound or any(isinstance(tensor, OrtResidentTensor) for tensor in feeds.values()):
                return self._run_bound(feeds, names, resident)
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:  # onnxruntime raises types of its own without a common base
            raise _step_error(error) from error

    def _run_bound(
        self, feeds: Mapping[str, Tensor], names: Sequence[str], resident: frozenset[str]
    ) -> dict[str, Tensor]:
        """Run with outputs that stay where they are made."""
        binding = self._session.io_binding()
        for name, tensor in feeds.items():
            if isinstance(tensor, OrtResidentTensor):
                binding.bind_ortvalue_input(name, tensor.value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(tensor))
        for name in names:
            stays = name in resident and self._resident_on is not None
            binding.bind_output(name, self._resident_on if stays else "cpu")
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return {
            name: OrtResidentTensor(value) if name in resident else value.numpy()
            for name, value in zip(names, binding.get_outputs(), strict=True)
        }

    def close(self) -> None:
        """Nothing to do: the session holds everything."""


class OnnxEngine:
    """A loaded session with the device that really serves it."""

    kind = "onnxruntime"

    def __init__(self, session: Any, wanted: str) -> None:
        self._session = session
        self._wanted = wanted
        self.signature = Signature(
            tuple(map(_spec, session.get_inputs())), tuple(map(_spec, session.get_outputs()))
        )
        self.device = self.placement().device

    def placement(self) -> Placement:
        """Ask the session where nodes, inputs and outputs were put."""
        return find_placement(self._session, self._wanted)

    def create_context(self) -> OnnxContext:
        """Make an execution context."""
        return OnnxContext(self._session, None if self.device == "cpu" else "cuda")

    def close(self) -> None:
        """Let go of the session; its memory goes back once no context holds it either."""
        self._session = None


class OnnxRuntime:
    """Loads ``model.onnx`` with a fixed number of threads.

    Args:
        threads: Threads inside one session.
        device: ``auto`` is CUDA where the installed onnxruntime was built with it, else the CPU.
    """

    def __init__(self, threads: int = 1, device: Device = "auto") -> None:
        self._threads = threads
        self._device = device

    def is_supported(self) -> Support:
        """Say whether onnxruntime can be imported."""
        try:
            import onnxruntime  # noqa: F401, PLC0415 - heavy, and only this engine needs it
        except ImportError as error:
            return Support(False, f"onnxruntime cannot be imported: {error}")
        return Support(True)

    def load(self, folder: Path, file: str | None = None) -> OnnxEngine:
        """Load ``folder/model.onnx``, on the CPU where CUDA does not take it: `placement` tells."""
        import onnxruntime  # noqa: PLC0415 - heavy, and only this engine needs it

        path = folder / (file or MODEL_FILE)
        if not path.is_file():
            raise EngineLoadError(f"{path} does not exist")
        available = onnxruntime.get_available_providers()
        wanted: str = self._device
        if wanted == "auto":
            wanted = "cuda" if _PROVIDER["cuda"] in available else "cpu"
        # A provider that is not there would be dropped with a warning; ask for what there is.
        providers = [_PROVIDER[name] for name in dict.fromkeys((wanted, "cpu"))]
        providers = [provider for provider in providers if provider in available]
        try:
            session = onnxruntime.InferenceSession(
                str(path), session_options(self._threads), providers=providers
            )
        except Exception as error:  # onnxruntime raises types of its own without a common base
            raise EngineLoadError(f"onnxruntime cannot load {path}: {error}") from error
        return OnnxEngine(session, wanted)


def session_options(threads: int) -> Any:
    """Return options as the service runs sessions."""
    import onnxruntime  # noqa: PLC0415 - heavy, and only this engine needs it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would show an idle engine as busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # So that `placement` can say where each node went; since onnxruntime 1.24, ignored before.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 3
    return options


def find_placement(session: Any, wanted: str) -> Placement:
    """Say where a session computes, not where it was asked to.

    onnxruntime falls back to the CPU without an exception, as a whole where CUDA cannot be used
    (microsoft/onnxruntime #23372) and node by node where a kernel is missing.
    """
    bound = _device_of(str(session.get_providers()[0]))
    weights, reason = bound, ""
    if bound != wanted:
        reason = (
            f"onnxruntime computes on {bound}: its {_PROVIDER.get(wanted, wanted)} is not installed "
            "or could not be started (pip install onnxruntime-gpu; driver, CUDA and cuDNN)"
        )
    elif elsewhere := _nodes_elsewhere(session, wanted):
        weights = "mixed"
        found = ", ".join(f"{count} {kind}" for kind, count in elsewhere.most_common(5))
        reason = f"these nodes do not run on {wanted}: {found}"
    inputs = _memory_device(session, "get_input_memory_infos", bound)
    outputs = _memory_device(session, "get_output_memory_infos", bound)
    return Placement(weights, inputs, outputs, wanted, reason)


def _nodes_elsewhere(session: Any, wanted: str) -> Counter[str]:
    """Count the nodes with weights that run on another device, by operator."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return Counter()
    return Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if _device_of(part.ep_name) != wanted
        for node in part.get_nodes()
        if _WEIGHTY.search(node.op_type)
    )


def _memory_device(session: Any, method: str, otherwise: str) -> str:
    """Return where inputs or outputs are; one on the GPU is enough, sizes may stay on the CPU."""
    if not hasattr(session, method):
        return otherwise
    names = {str(info.name).lower() for info in getattr(session, method)()}
    return "cuda" if "cuda" in names else otherwise if not names else "cpu"


def _device_of(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()


def _spec(tensor: Any) -> TensorSpec:
    sizes = tuple(
        size if isinstance(size, int | str) and size != "" else "?" for size in tensor.shape
    )
    return TensorSpec(str(tensor.name), _numpy_type(str(tensor.type)), sizes)


def _numpy_type(ort_type: str) -> np.dtype[Any]:
    """Turn ``tensor(float)`` into a numpy type.

    Raises:
        EngineLoadError: numpy has no such type.
    """
    name = ort_type.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(_NUMPY_TYPE.get(name, name))
    except TypeError as error:
        raise EngineLoadError(
            f"a tensor of the type {ort_type} cannot be fed or fetched"
        ) from error


def _step_error(error: Exception) -> EngineStepError:
    """Find out what an exception of onnxruntime means for the process."""
    text = f"onnxruntime: {error}"
    if _LOST.search(text):
        return DeviceLostError(text)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return OutOfMemoryError(text)
    return EngineStepError(text)
