"""Health in five layers, from the hardware up to the value of an answer.

device: the engine runs on the device that was asked for. runtime: the worker process lives.
engine: the model is loaded. context: pending work makes progress. canary: a golden prompt went
through the real queue and came back with the right text, not long ago.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inference.canary import Canary
from inference.engine_host import EngineHost
from inference.settings import InferenceSettings
from inference.worker.supervisor import SupervisorState


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: fine, not fine, or unknown (None), which counts as not fine."""

    ok: bool | None
    reason: str = ""
    age_seconds: float | None = 0.0
    tolerated: bool = False
    """Not fine, and traffic may come all the same: the settings say so."""

    @property
    def word(self) -> str:
        """``ok``, ``failing`` or ``unknown``."""
        return "unknown" if self.ok is None else "ok" if self.ok else "failing"


@dataclass(frozen=True, slots=True)
class HealthReport:
    """All five layers of the model that serves."""

    model: str
    layers: Mapping[str, Layer]

    @property
    def ok(self) -> bool:
        """Whether every layer is fine."""
        return all(layer.ok for layer in self.layers.values())


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
        "canary": _canary(canary, now),
    }
    return HealthReport(host.model, layers)


def _device(host: EngineHost, settings: InferenceSettings, now: float) -> Layer:
    """Compare the device in use with the one that the engine is meant for."""
    lost = host.supervisor.status.device_lost
    if lost:
        return Layer(ok=False, reason=f"the device was lost: {lost}")
    if host.ready is None:
        return Layer(None, "no model is loaded", None)
    if host.device_fallback:
        tolerated = settings.allow_device_fallback
        return Layer(ok=False, reason=host.device_fallback, tolerated=tolerated)
    return Layer(ok=True, age_seconds=max(0.0, now - host.heartbeat().ready_at))


def _context(host: EngineHost, settings: InferenceSettings) -> Layer:
    """Judge progress."""
    if not host.up:
        return Layer(None, "no model is loaded", None)
    age = host.step_age_seconds()
    if age > settings.stall_seconds:
        return Layer(ok=False, reason=f"work is pending and no step finished for {age:.1f} s")
    return Layer(ok=True)


def _canary(canary: Canary, now: float) -> Layer:
    """Judge the value of answers; a proof that is too old is no proof."""
    result = canary.result
    if result.ok is None:
        return Layer(None, result.reason or "no golden prompt was answered yet", None)
    if not result.ok:
        return Layer(ok=False, reason=result.reason, age_seconds=now - result.asked_at)
    age = now - result.proven_at
    if age > canary.age_limit_seconds:
        newest = f"; the newest: {result.reason}" if result.reason else ""
        reason = f"the last right golden prompt is {age:.1f} s old{newest}"
        return Layer(ok=False, reason=reason, age_seconds=age)
    return Layer(ok=True, reason=result.reason, age_seconds=age)
