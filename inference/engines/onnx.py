"""ONNX Runtime: the embedded engine, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference.engines.contract import (
    CacheShape,
    EngineLoadError,
    EngineStepError,
    StepInputs,
    StepOutputs,
    Support,
    cache_names,
)

MODEL_FILE = "model.onnx"


class OnnxContext:
    """Runs a session; ONNX Runtime keeps no state between runs, so this holds names only."""

    def __init__(self, session: Any, shape: CacheShape) -> None:
        self._session = session
        self._past = cache_names(shape.layers, "past_key_values")
        self._outputs = ["logits", *cache_names(shape.layers, "present")]

    def execute(self, inputs: StepInputs) -> StepOutputs:
        """Run one step; see `Context.execute`."""
        feed: dict[str, Any] = dict(zip(self._past, inputs.past, strict=True))
        feed["input_ids"] = inputs.input_ids
        feed["attention_mask"] = inputs.attention_mask
        feed["position_ids"] = inputs.position_ids
        try:
            logits, *present = self._session.run(self._outputs, feed)
        except Exception as error:
            raise EngineStepError(f"onnxruntime: {error}") from error
        return StepOutputs(logits, present)


class OnnxEngine:
    """A loaded session with the provider that really serves it."""

    kind = "onnxruntime"

    def __init__(self, session: Any, shape: CacheShape) -> None:
        self._session = session
        self._shape = shape
        # get_providers() names what was bound, not what was asked for: onnxruntime falls back to
        # the CPU without an exception (microsoft/onnxruntime #23372).
        provider = str(session.get_providers()[0])
        self.device = provider.removesuffix("ExecutionProvider").lower()

    def create_context(self) -> OnnxContext:
        """Make an execution context."""
        return OnnxContext(self._session, self._shape)


class OnnxRuntime:
    """Loads ``model.onnx`` with a fixed number of threads."""

    def __init__(self, threads: int = 1, providers: Sequence[str] = ("CPUExecutionProvider",)):
        self._threads = threads
        self._providers = list(providers)

    def is_supported(self) -> Support:
        """Say whether onnxruntime can be imported."""
        try:
            import onnxruntime  # noqa: F401, PLC0415 - heavy, and only this engine needs it
        except ImportError as error:
            return Support(False, f"onnxruntime cannot be imported: {error}")
        return Support(True)

    def load(self, folder: Path, shape: CacheShape) -> OnnxEngine:
        """Load ``folder/model.onnx`` and check that its inputs and outputs are the expected ones."""
        import onnxruntime  # noqa: PLC0415 - heavy, and only this engine needs it

        path = folder / MODEL_FILE
        if not path.is_file():
            raise EngineLoadError(f"{path} does not exist")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # Spinning threads would show an idle engine as busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=self._providers)
        except Exception as error:
            raise EngineLoadError(f"onnxruntime cannot load {path}: {error}") from error
        _check_tensors(session, shape, path)
        return OnnxEngine(session, shape)


def _check_tensors(session: Any, shape: CacheShape, path: Path) -> None:
    """Compare tensor names with the decoder interface."""
    wanted_in = {"input_ids", "attention_mask", "position_ids"}
    wanted_in.update(cache_names(shape.layers, "past_key_values"))
    wanted_out = {"logits", *cache_names(shape.layers, "present")}
    missing = sorted(
        (wanted_in - {tensor.name for tensor in session.get_inputs()})
        | (wanted_out - {tensor.name for tensor in session.get_outputs()})
    )
    if missing:
        raise EngineLoadError(f"{path} lacks the tensors {', '.join(missing)}")
