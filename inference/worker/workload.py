"""What a worker runs: one version of a model, as the worker's shell sees it.

The shell (`inference.worker.process`) owns the socket, signals, the heartbeat's state, draining and
the swap of versions; a workload owns the engine and everything that is particular to its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from inference.engines.contract import Engine, EngineLoadError, Placement, Runtime
from inference.engines.onnx import Device, OnnxRuntime
from inference.model import ModelFormatError, ModelKind, ModelMetadata
from inference.worker.faults import FaultInjector
from inference.worker.heartbeat import HeartbeatWriter, LoadPhase
from inference.worker.wire import Message, Ready, Request, Start

_PLAN_ENGINES = frozenset({"tensorrt", "tensorrt_rtx"})


class Workload(Protocol):
    """A loaded version. The shell calls it from one thread; `prove` only before it serves."""

    def describe(self) -> Ready:
        """Say what was loaded, and on which device it computes, as verified after loading."""
        ...

    @property
    def placement(self) -> Placement:
        """Where the model is, asked of the library anew; may raise `DeviceLostError`."""
        ...

    @property
    def active(self) -> int:
        """Requests that were started and have not ended; a swap waits for them."""
        ...

    def start(self, request: Request) -> Sequence[Message]:
        """Begin a request and return its first messages; it may end at once."""
        ...

    def step(self) -> Sequence[Message]:
        """Do the next piece of work for everything that is active."""
        ...

    def cancel(self, number: int) -> Sequence[Message]:
        """Give up an active request; nothing happens if it has ended."""
        ...

    def clear_cache(self) -> None:
        """Forget what was kept from earlier requests."""
        ...

    def prove(self) -> str:
        """Answer the version's golden examples; return what was wrong, or nothing."""
        ...

    def use_heartbeat(self, heartbeat: HeartbeatWriter) -> None:
        """Report to another record from now on."""
        ...

    def close(self) -> None:
        """Give back the engine's memory; nothing is active any more."""
        ...


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What a workload needs to load a version."""

    start: Start
    faults: FaultInjector
    heartbeat: HeartbeatWriter
    clock: Callable[[], float]
    variant: str = ""
    """Name of a variant in ``model.toml``; empty is the model itself."""

    def enter(self, phase: LoadPhase) -> None:
        """Say where the load is."""
        self.heartbeat.enter(phase, self.clock())


WorkloadLoader = Callable[[Path, LoadContext], Workload]


def workload_loader(kind: ModelKind) -> WorkloadLoader:
    """Return what loads models of a kind."""
    # They import what is imported here.
    from inference.worker.generation import load_generation  # noqa: PLC0415
    from inference.worker.tensors import load_tensors  # noqa: PLC0415

    loaders: dict[ModelKind, WorkloadLoader] = {
        ModelKind.DECODER: load_generation,
        ModelKind.TENSOR: load_tensors,
    }
    return loaders[kind]


def load_engine(folder: Path, metadata: ModelMetadata, context: LoadContext) -> Engine:
    """Load the model of a version folder, or its variant, and see where it went.

    Raises:
        EngineError: it cannot be loaded, or it fell back to another device and must not.
        ModelFormatError: there is no such variant.
    """
    start = context.start
    runtime = make_runtime(start)
    support = runtime.is_supported()
    if not support.supported:
        raise EngineLoadError(support.reason)
    context.enter(LoadPhase.DESERIALIZE)
    engine = runtime.load(folder, _variant_file(folder, metadata, context))
    placement = engine.placement()
    if placement.fell_back and not start.allow_device_fallback:
        engine.close()
        raise EngineLoadError(
            f"the model is on {placement.device} and not on {placement.wanted}, which "
            f"allow_device_fallback = false forbids: {placement.reason}"
        )
    return engine


def _variant_file(folder: Path, metadata: ModelMetadata, context: LoadContext) -> str | None:
    """Return the name of a variant's file."""
    if not context.variant:
        return None
    if context.start.engine in _PLAN_ENGINES:
        raise EngineLoadError("a plan has no variants: make each precision a version of its own")
    variant = metadata.variants.get(context.variant)
    if variant is None:
        raise ModelFormatError(f"{folder} declares no variant {context.variant!r}")
    return variant.file


def make_runtime(start: Start) -> Runtime:
    """Return the runtime that was asked for: ``onnx``, ``tensorrt``, ``tensorrt_rtx``, or a fake."""
    engine = start.engine
    if engine == "onnx":
        return OnnxRuntime(start.threads, cast("Device", start.device))
    if engine not in _PLAN_ENGINES:
        from inference.engines.fake import FakeTensorRtRuntime  # noqa: PLC0415 - for rehearsals

        return FakeTensorRtRuntime()
    from inference.engines.tensorrt import TensorRtRuntime  # noqa: PLC0415 - needs a GPU

    return TensorRtRuntime.from_installed(engine)


def check_folder(folder: Path, engine: str) -> None:
    """Refuse a version folder whose plan cannot run here, before TensorRT is asked.

    Raises:
        EngineLoadError: with every reason; TensorRT itself would only return no engine.
    """
    if engine not in _PLAN_ENGINES:
        return
    # Only plans need it, and a worker that imports little starts quickly.
    from inference.engines.onnx import MODEL_FILE  # noqa: PLC0415
    from inference.engines.plans import check_plan  # noqa: PLC0415
    from inference.engines.tensorrt import PLAN_FILE  # noqa: PLC0415

    model = folder / MODEL_FILE
    reasons = check_plan(folder / PLAN_FILE, model if model.is_file() else None)
    if reasons:
        raise EngineLoadError(f"{folder / PLAN_FILE}: {'; '.join(reasons)}")
