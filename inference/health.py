"""Health in five layers, from the hardware up to the value of an answer.

device: the engine runs on the device that was asked for. runtime: the worker process lives.
engine: the model is loaded. context: pending work makes progress. canary: a golden prompt went
through the real queue and came back with the right text, not long ago.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from inference.engine_host import EngineHost
from inference.errors import ServiceError
from inference.model import GoldenPrompt, GoldenTensors
from inference.settings import InferenceSettings
from inference.worker.supervisor import SupervisorState

_log = structlog.get_logger(__name__)

Golden = GoldenPrompt | GoldenTensors
Ask = Callable[[str, Golden], Awaitable[str]]
"""Puts a golden example to a model; says what was wrong with the answer, or nothing."""
_EXPECTED_DEVICE = {"onnx": "cpu"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: fine, not fine, or unknown (None), which counts as not fine."""

    ok: bool | None
    reason: str = ""
    age_seconds: float | None = 0.0


@dataclass(frozen=True, slots=True)
class HealthReport:
    """All five layers of the model that serves."""

    model: str
    layers: Mapping[str, Layer]

    @property
    def ok(self) -> bool:
        """Whether every layer is fine."""
        return all(layer.ok for layer in self.layers.values())


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """The newest golden prompt of a model."""

    ok: bool
    reason: str
    at: float
    seconds: float


class Canary:
    """Asks one model its golden prompts, in turn, for ever."""

    def __init__(
        self,
        host: EngineHost,
        settings: InferenceSettings,
        ask: Ask,
        clock: Callable[[], float],
    ) -> None:
        self._host = host
        self._settings = settings
        self._ask = ask
        self._clock = clock
        self._turns = itertools.count()
        self.result: CanaryResult | None = None
        self.passed_once = False

    async def run(self) -> None:
        """Ask at the interval until cancelled; at once when the engine comes up."""
        while True:
            if self._host.up:
                await self.check()
                await asyncio.sleep(self._settings.canary_interval_seconds)
            else:
                self.result = None
                await asyncio.sleep(min(0.05, self._settings.canary_interval_seconds))

    async def check(self) -> None:
        """Ask one golden prompt and judge the answer by its value."""
        metadata = self._host.metadata()
        if metadata is None or not metadata.golden:
            self._judge(self._clock(), "the model has no golden prompts")
            return
        golden = metadata.golden[next(self._turns) % len(metadata.golden)]
        started = self._clock()
        try:
            reason = await self._ask(self._host.model, golden)
        except ServiceError as error:
            self._judge(started, f"{error.reason}: {error.message}")
            return
        self._judge(started, reason)

    def layer(self) -> Layer:
        """Return the layer; a result that is too old is no result."""
        result = self.result
        if result is None:
            return Layer(None, "no golden prompt was answered yet", None)
        age = self._clock() - result.at
        settings = self._settings
        limit = 2 * settings.canary_interval_seconds + settings.canary_deadline_seconds
        if age > limit:
            return Layer(ok=False, reason=f"the last canary is {age:.1f} s old", age_seconds=age)
        return Layer(result.ok, result.reason, age)

    def _judge(self, started: float, reason: str) -> None:
        now = self._clock()
        before = self.result
        self.result = CanaryResult(not reason, reason, now, now - started)
        self.passed_once = self.passed_once or not reason
        if before is None or before.ok != self.result.ok:
            _log.info("canary_changed", model=self._host.model, ok=self.result.ok, reason=reason)


def judge(
    host: EngineHost, canary: Canary, settings: InferenceSettings, now: float
) -> HealthReport:
    """Judge all layers of a model; reads memory only."""
    status = host.supervisor.status
    alive = status.state in {SupervisorState.STARTING, SupervisorState.RUNNING}
    layers = {
        "device": _device(host, settings, now),
        "runtime": Layer(alive, "" if alive else f"{status.state}: {status.reason}"),
        "engine": Layer(host.up, "" if host.up else f"{status.state}: {status.reason}"),
        "context": _context(host, settings),
        "canary": canary.layer(),
    }
    return HealthReport(host.model, layers)


def _device(host: EngineHost, settings: InferenceSettings, now: float) -> Layer:
    """Compare the device in use with the one that the engine is meant for."""
    ready = host.ready
    if ready is None:
        return Layer(None, "no model is loaded", None)
    expected = _EXPECTED_DEVICE.get(settings.engine, "cuda")
    if ready.device != expected:
        return Layer(ok=False, reason=f"runs on {ready.device}, not on {expected}")
    return Layer(ok=True, age_seconds=max(0.0, now - host.heartbeat().ready_at))


def _context(host: EngineHost, settings: InferenceSettings) -> Layer:
    """Judge progress."""
    if not host.up:
        return Layer(None, "no model is loaded", None)
    age = host.step_age_seconds()
    if age > settings.stall_seconds:
        return Layer(ok=False, reason=f"work is pending and no step finished for {age:.1f} s")
    return Layer(ok=True)
