"""Runs a model, its variants and plans on the engines that work here, and compares them.

A decoder is measured on one decode step: one new token for each of B sequences with a filled
key-value cache, which is what an inference service does most of the time. Any other model is
measured on one call with B items. Candidates take turns, run by run, so that what else happens on
the machine meets all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from pydantic import BaseModel, ConfigDict, Field

from inference.engines.contract import Context, Engine, EngineError, Signature
from inference.engines.drift import Drift, Side, measure_drift, read_golden
from inference.engines.offline import InputError
from inference.engines.onnx import Device, OnnxRuntime
from inference.engines.onnx_file import TensorInfo, read_onnx
from inference.engines.plans import check_plan, find_plan, read_plan_metadata
from inference.engines.shapes import BATCH, PAST, SEQUENCE, axes, evaluate, is_decoder
from inference.engines.tensorrt import TensorRtRuntime
from inference.engines.variants import find_variants

ORIGINAL = "original"
_WARM_UP_RUNS = 3
_MIN_RUNS = 5
# Fewer runs than this have no 99th percentile: the slowest one stands for it.
_FEW_RUNS = 100
_DRIFT_RUNS = 4
_DEVICES: tuple[Device, ...] = ("cuda", "cpu")
# What numpy has of its own; bfloat16 and the 8-bit floats need a library more.
_FED_TYPES = (
    "float32", "float16", "float64", "int64", "int32", "int16", "int8",
    "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip

Feed = dict[str, npt.NDArray[Any]]


class Measurement(BaseModel):
    """One candidate with one batch size."""

    model_config = ConfigDict(frozen=True)

    variant: str = Field(description="original, fp16, int8, or the target of a plan.")
    engine: str
    device: str = Field(description="The device that computed, as the engine reports it.")
    batch: int
    runs: int
    p50_milliseconds: float
    p99_milliseconds: float
    items_per_second: float = Field(description="Tokens of a decoder, items of another model.")
    load_seconds: float
    model_bytes: int = Field(description="Size of the file and of the weight files beside it.")
    memory_bytes: int = Field(description="Growth of this process from the load to the first runs.")


class VariantDrift(BaseModel):
    """Drift of one candidate from the original on the CPU."""

    model_config = ConfigDict(frozen=True)

    variant: str
    engine: str
    device: str
    drift: Drift
    within_limit: bool = Field(description="Drift below the limit, and every golden answer right.")


class Skipped(BaseModel):
    """A candidate that was not measured."""

    model_config = ConfigDict(frozen=True)

    engine: str
    reason: str


class Fastest(BaseModel):
    """The fastest candidate within the drift limit."""

    model_config = ConfigDict(frozen=True)

    variant: str
    engine: str
    device: str
    speed_up: float = Field(description="Over the original on the CPU; geometric mean of batches.")


class Comparison(BaseModel):
    """All measurements of a model."""

    model_config = ConfigDict(frozen=True)

    file: str
    decoder: bool
    past_tokens: int | None = Field(description="Tokens in the cache of each sequence.")
    precision: str
    threads: int
    measurements: tuple[Measurement, ...]
    drifts: tuple[VariantDrift, ...]
    drift_limit: float
    fastest: Fastest | None
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """What to run."""

    batches: Sequence[int] = (1, 8, 32)
    seconds: float = 2.0
    """Time to measure, for each candidate and batch size."""
    past_tokens: int = 64
    threads: int = 1
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Values of sizes that vary, by name."""
    plans: Sequence[Path] = ()
    """Plans of the same model to compare with."""
    drift_limit: float = 0.1
    """Largest relative drift of a candidate that may be named the fastest."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A loaded model."""

    variant: str
    engine: str
    device: str
    context: Context
    signature: Signature
    load_seconds: float
    model_bytes: int
    memory_bytes: int

    @property
    def side(self) -> Side:
        """As one of two that are compared."""
        return Side(self.context, self.signature)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant} on {self.engine} {self.device}"


def compare_engines(
    path: Path,
    workload: Workload,
    on_progress: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Measure a model, the variants beside it, and plans.

    Raises:
        InputError: the model cannot be read or run, or a size is not known.
    """
    model = read_onnx(path)
    decoder = is_decoder(model.inputs)
    # Before anything is loaded: a size that is missing is told at once.
    feeds = {batch: make_feed(model.inputs, batch, workload) for batch in workload.batches}
    first = next(iter(feeds.values()))
    candidates, skipped = _load_all(path, workload, first, on_progress, clock)
    measurements: list[Measurement] = []
    for batch, feed in feeds.items():
        on_progress(f"batch {batch}: {', '.join(one.name for one in candidates)}")
        measurements += _measure(candidates, batch, feed, workload.seconds, clock)
    drifts = _drifts(path, candidates, workload, on_progress)
    return Comparison(
        file=str(path),
        decoder=decoder,
        past_tokens=workload.past_tokens if decoder else None,
        precision=model.precision,
        threads=workload.threads,
        measurements=tuple(measurements),
        drifts=tuple(drifts),
        drift_limit=workload.drift_limit,
        fastest=find_fastest(measurements, drifts),
        skipped=tuple(skipped),
    )


def find_fastest(
    measurements: Sequence[Measurement], drifts: Sequence[VariantDrift]
) -> Fastest | None:
    """Name the fastest of those within the drift limit; None where only one could be measured."""
    speeds: dict[tuple[str, str, str], list[float]] = {}
    for one in measurements:
        key = (one.variant, one.engine, one.device)
        speeds.setdefault(key, []).append(math.log(max(one.items_per_second, 1e-9)))
    base = next((key for key in speeds if key[0] == ORIGINAL and key[2] == "cpu"), None)
    allowed = {(one.variant, one.engine, one.device) for one in drifts if one.within_limit}
    rated = [
        (float(np.mean(logs)), key) for key, logs in speeds.items() if key == base or key in allowed
    ]
    if base is None or len(speeds) < 2:
        return None
    best, (variant, engine, device) = max(rated)
    speed_up = math.exp(best - float(np.mean(speeds[base])))
    return Fastest(variant=variant, engine=engine, device=device, speed_up=round(speed_up, 3))


def make_feed(
    inputs: Sequence[TensorInfo], batch: int, workload: Workload, *, seed: int = 0
) -> Feed:
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
        feed[tensor.name] = _fill(tensor, shape, workload.past_tokens, seed)
    return feed


def _fill(
    tensor: TensorInfo, shape: Sequence[int], past_tokens: int, seed: int
) -> npt.NDArray[Any]:
    if tensor.dtype not in _FED_TYPES:
        raise InputError(
            f"the input {tensor.name} has the type {tensor.dtype}, which cannot be made here",
            fix=f"Export the model with an input of {', '.join(_FED_TYPES)}.",
        )
    dtype = np.dtype(tensor.dtype)
    if tensor.name == "position_ids":
        return np.full(shape, past_tokens, dtype)
    if np.issubdtype(dtype, np.floating):
        return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return np.ones(shape, dtype)


def _load_all(
    path: Path,
    workload: Workload,
    feed: Feed,
    on_progress: Callable[[str], None],
    clock: Callable[[], float],
) -> tuple[list[_Candidate], list[Skipped]]:
    """Load everything that can be loaded; say of the rest why not."""
    candidates: list[_Candidate] = []
    skipped: list[Skipped] = []
    files = {ORIGINAL: path, **{str(name): file for name, file in find_variants(path).items()}}
    jobs: list[tuple[str, str, Callable[[], tuple[Engine, Path]]]] = []
    jobs += [
        (variant, f"onnxruntime {device}", _onnx_loader(file, device, workload))
        for variant, file in files.items()
        for device in _DEVICES
    ]
    plans = [find_plan(plan) for plan in workload.plans]
    jobs += [(plan.parent.name, f"plan {plan}", _plan_loader(plan, path)) for plan in plans]
    for variant, name, load in jobs:
        on_progress(f"{name}: loading {variant}")
        try:
            candidates.append(_load(variant, load, feed, clock))
        except _NotHereError as error:
            skipped.append(Skipped(engine=name, reason=str(error)))
        except EngineError as error:
            # Without the original there is nothing to compare; a variant may be left out.
            if variant == ORIGINAL:
                raise InputError(str(error)) from error
            skipped.append(Skipped(engine=f"{variant} on {name}", reason=str(error)))
    if not workload.plans:
        reason = "no plan was given: --plan plans/<target>"
        skipped += [Skipped(engine=kind, reason=reason) for kind in ("tensorrt", "tensorrt_rtx")]
    unique = {(one.engine, one.reason): one for one in skipped}
    return candidates, list(unique.values())


class _NotHereError(Exception):
    """An engine is not there, or not what it was asked to be."""


def _onnx_loader(
    file: Path, device: Device, workload: Workload
) -> Callable[[], tuple[Engine, Path]]:
    def load() -> tuple[Engine, Path]:
        engine = OnnxRuntime(workload.threads, device).load(file.parent, file.name)
        placement = engine.placement()
        if placement.fell_back:
            engine.close()
            raise _NotHereError(placement.reason)
        return engine, file

    return load


def _plan_loader(plan: Path, model: Path) -> Callable[[], tuple[Engine, Path]]:
    def load() -> tuple[Engine, Path]:
        if reasons := check_plan(plan, model):
            raise _NotHereError("; ".join(reasons))
        runtime = TensorRtRuntime.from_installed(read_plan_metadata(plan).engine)
        return runtime.load(plan.parent, plan.name), plan

    return load


def _load(
    variant: str,
    load: Callable[[], tuple[Engine, Path]],
    feed: Feed,
    clock: Callable[[], float],
) -> _Candidate:
    before = _resident_bytes()
    started = clock()
    engine, file = load()
    context = engine.create_context()
    load_seconds = clock() - started
    _run(context, feed, f"{variant} on {engine.kind}")
    size = file.stat().st_size
    if file.suffix == ".onnx":
        size += sum((file.parent / name).stat().st_size for name in read_onnx(file).external_files)
    growth = max(0, _resident_bytes() - before)
    return _Candidate(
        variant, engine.kind, engine.device, context, engine.signature, load_seconds, size, growth
    )


def _run(context: Context, feed: Feed, name: str) -> None:
    try:
        context.run(feed)
    except EngineError as error:
        batch = len(next(iter(feed.values())))
        raise InputError(
            f"{name} cannot run with a batch of {batch}: {error}",
            fix="For a decoder, try a smaller --past: its context may be shorter.",
        ) from error


def _measure(
    candidates: Sequence[_Candidate],
    batch: int,
    feed: Feed,
    seconds: float,
    clock: Callable[[], float],
) -> list[Measurement]:
    """Let the candidates take turns until the time of all is up, at least a few times."""
    for one in candidates:
        for _ in range(_WARM_UP_RUNS):
            _run(one.context, feed, one.name)
    spans: list[list[float]] = [[] for _ in candidates]
    started = clock()
    while len(spans[0]) < _MIN_RUNS or clock() - started < seconds * len(candidates):
        for own, one in zip(spans, candidates, strict=True):
            begin = clock()
            one.context.run(feed)
            own.append(clock() - begin)
    return [_measurement(one, batch, own) for one, own in zip(candidates, spans, strict=True)]


def _measurement(one: _Candidate, batch: int, spans: Sequence[float]) -> Measurement:
    p50, p99 = percentiles(spans)
    return Measurement(
        variant=one.variant,
        engine=one.engine,
        device=one.device,
        batch=batch,
        runs=len(spans),
        p50_milliseconds=round(p50 * 1e3, 3),
        p99_milliseconds=round(p99 * 1e3, 3),
        # From the median: one pause of the machine is not the candidate's.
        items_per_second=round(batch / max(p50, 1e-9), 1),
        load_seconds=round(one.load_seconds, 3),
        model_bytes=one.model_bytes,
        memory_bytes=one.memory_bytes,
    )


def _drifts(
    path: Path,
    candidates: Sequence[_Candidate],
    workload: Workload,
    on_progress: Callable[[str], None],
) -> list[VariantDrift]:
    """Compare every candidate with the original on the CPU."""
    base = next(one for one in candidates if one.variant == ORIGINAL and one.device == "cpu")
    others = [one for one in candidates if one is not base]
    golden = read_golden(path) if others else None
    inputs = read_onnx(path).inputs
    feeds = [make_feed(inputs, 1, workload, seed=seed) for seed in range(_DRIFT_RUNS)]
    found: list[VariantDrift] = []
    for one in others:
        on_progress(f"{one.name}: drift")
        try:
            drift = measure_drift(base.side, one.side, feeds, golden)
        except EngineError as error:
            raise InputError(f"{one.name}: {error}") from error
        right = drift.golden_right == drift.golden_total
        found.append(
            VariantDrift(
                variant=one.variant,
                engine=one.engine,
                device=one.device,
                drift=drift,
                within_limit=right and drift.relative <= workload.drift_limit,
            )
        )
    return found


def percentiles(spans: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99; of fewer than 100 runs the slowest one is the p99."""
    p99 = max(spans) if len(spans) < _FEW_RUNS else float(np.quantile(spans, 0.99))
    return float(np.median(spans)), p99


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
