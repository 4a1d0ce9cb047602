"""Runs a model on the engines that work here and compares speed, size and memory.

A decoder is measured on one decode step: one new token for each of B sequences with a filled
key-value cache, which is what an inference service does most of the time. Any other model is
measured on one call with B items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from pydantic import BaseModel, ConfigDict, Field

from inference.engines.offline import InputError
from inference.engines.onnx_file import OnnxSummary, TensorInfo, read_onnx
from inference.engines.shapes import BATCH, PAST, SEQUENCE, axes, evaluate, is_decoder

_WARM_UP_RUNS = 3
_MIN_RUNS = 5
# Fewer runs than this have no 99th percentile: the slowest one stands for it.
_FEW_RUNS = 100
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
# What numpy has of its own; bfloat16 and the 8-bit floats need a library more.
_FED_TYPES = (
    "float32", "float16", "float64", "int64", "int32", "int16", "int8",
    "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip

Feed = dict[str, npt.NDArray[Any]]


class Measurement(BaseModel):
    """One engine with one batch size."""

    model_config = ConfigDict(frozen=True)

    engine: str
    device: str = Field(description="The device that computed, as the engine reports it.")
    batch: int
    runs: int
    p50_milliseconds: float
    p99_milliseconds: float
    items_per_second: float = Field(description="Tokens of a decoder, items of another model.")
    load_seconds: float
    model_bytes: int = Field(description="Size of the file and of the weight files beside it.")
    memory_bytes: int = Field(description="Growth of this process since before the load.")


class Skipped(BaseModel):
    """An engine that was not measured."""

    model_config = ConfigDict(frozen=True)

    engine: str
    reason: str


class Comparison(BaseModel):
    """All measurements of a model."""

    model_config = ConfigDict(frozen=True)

    file: str
    decoder: bool
    past_tokens: int | None = Field(description="Tokens in the cache of each sequence.")
    precision: str
    threads: int
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """What to run."""

    batches: Sequence[int] = (1, 8, 32)
    seconds: float = 2.0
    """Time to measure, for each batch size."""
    past_tokens: int = 64
    threads: int = 1
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Values of sizes that vary, by name."""


def compare_engines(
    path: Path,
    workload: Workload,
    on_progress: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Measure a model.

    Raises:
        InputError: the model cannot be read or run, or a size is not known.
    """
    model = read_onnx(path)
    decoder = is_decoder(model.inputs)
    # Before anything is loaded: a size that is missing is told at once.
    feeds = {batch: make_feed(model.inputs, batch, workload) for batch in workload.batches}
    measurements: list[Measurement] = []
    skipped = [
        Skipped(engine=kind, reason="plans are not compared by this version")
        for kind in ("tensorrt", "tensorrt_rtx")
    ]
    for provider in _PROVIDERS:
        name = f"onnxruntime {_device(provider)}"
        on_progress(f"{name}: loading")
        loaded = _load(path, model, provider, workload.threads, clock)
        if isinstance(loaded, str):
            skipped.append(Skipped(engine=name, reason=loaded))
            continue
        for batch, feed in feeds.items():
            on_progress(f"{name}: batch {batch}")
            measurements.append(
                _measure(loaded, batch, feed, seconds=workload.seconds, clock=clock)
            )
    return Comparison(
        file=str(path),
        decoder=decoder,
        past_tokens=workload.past_tokens if decoder else None,
        precision=model.precision,
        threads=workload.threads,
        measurements=tuple(measurements),
        skipped=tuple(skipped),
    )


def make_feed(inputs: Sequence[TensorInfo], batch: int, workload: Workload) -> Feed:
    """Make inputs of a batch; values do not matter for time, but they must be valid.

    Raises:
        InputError: a size that varies has no value, or a type is not supported.
    """
    decoder = is_decoder(inputs)
    sizes = {**workload.sizes, BATCH: batch}
    if decoder:
        sizes |= {SEQUENCE: 1, PAST: workload.past_tokens}
    feed: Feed = {}
    for tensor in inputs:
        try:
            shape = [evaluate(axis, sizes) for axis in axes(tensor, decoder=decoder)]
        except KeyError as error:
            raise InputError(
                f"the input {tensor.name} has the size {error.args[0]!r}, which varies",
                fix=f"Give its value: --size '{error.args[0]}=N'",
            ) from error
        feed[tensor.name] = _fill(tensor, shape, workload.past_tokens)
    return feed


def _fill(tensor: TensorInfo, shape: Sequence[int], past_tokens: int) -> npt.NDArray[Any]:
    if tensor.dtype not in _FED_TYPES:
        raise InputError(
            f"the input {tensor.name} has the type {tensor.dtype}, which cannot be made here",
            fix=f"Export the model with an input of {', '.join(_FED_TYPES)}.",
        )
    dtype = np.dtype(tensor.dtype)
    if tensor.name == "position_ids":
        return np.full(shape, past_tokens, dtype)
    if np.issubdtype(dtype, np.floating):
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return np.ones(shape, dtype)


@dataclass(frozen=True, slots=True)
class _Loaded:
    session: Any
    device: str
    load_seconds: float
    model_bytes: int
    memory_before_bytes: int


def _load(
    path: Path, model: OnnxSummary, provider: str, threads: int, clock: Callable[[], float]
) -> _Loaded | str:
    """Load a model, or say why this provider is left out."""
    import onnxruntime  # noqa: PLC0415 - heavy, and its own size must not count as the model's

    if provider not in onnxruntime.get_available_providers():
        return "not part of the installed onnxruntime"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # As the service runs it; and spinning threads would disturb what else runs here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    before = _resident_bytes()
    started = clock()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises types of its own without a common base
        raise InputError(f"onnxruntime cannot load {path}: {error}") from error
    # onnxruntime falls back to the CPU without an exception (microsoft/onnxruntime #23372).
    if session.get_providers()[0] != provider:
        return f"onnxruntime fell back to {session.get_providers()[0]}"
    load_seconds = clock() - started
    parts = (path, *(path.parent / name for name in model.external_files))
    size = sum(part.stat().st_size for part in parts)
    return _Loaded(session, _device(provider), load_seconds, size, before)


def _measure(
    loaded: _Loaded, batch: int, feed: Feed, *, seconds: float, clock: Callable[[], float]
) -> Measurement:
    """Run until the time is up, at least a few times."""
    spans: list[float] = []
    try:
        for _ in range(_WARM_UP_RUNS):
            loaded.session.run(None, feed)
        started = clock()
        while len(spans) < _MIN_RUNS or clock() - started < seconds:
            begin = clock()
            loaded.session.run(None, feed)
            spans.append(clock() - begin)
    except Exception as error:  # as above
        raise InputError(
            f"onnxruntime cannot run the model with a batch of {batch}: {error}",
            fix="For a decoder, try a smaller --past: its context may be shorter.",
        ) from error
    p50, p99 = percentiles(spans)
    return Measurement(
        engine="onnxruntime",
        device=loaded.device,
        batch=batch,
        runs=len(spans),
        p50_milliseconds=round(p50 * 1e3, 3),
        p99_milliseconds=round(p99 * 1e3, 3),
        items_per_second=round(batch * len(spans) / max(sum(spans), 1e-9), 1),
        load_seconds=round(loaded.load_seconds, 3),
        model_bytes=loaded.model_bytes,
        memory_bytes=max(0, _resident_bytes() - loaded.memory_before_bytes),
    )


def percentiles(spans: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99; of fewer than 100 runs the slowest one is the p99."""
    p99 = max(spans) if len(spans) < _FEW_RUNS else float(np.quantile(spans, 0.99))
    return float(np.median(spans)), p99


def _device(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
