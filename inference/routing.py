"""Which model answers, by how the engines are and by the level in force, and what moves that level."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from inference.canary import Canary
from inference.degradation import Level
from inference.engine_host import EngineHost
from inference.fallback import FallbackReason, Route, chain_of, choose, may_fall_back
from inference.gate import Gate, host_memory_share
from inference.pressure import PressureMeter, Signals
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)


class Routing:
    """Belongs to the event loop; the models may change under it."""

    def __init__(
        self,
        settings: InferenceSettings,
        gate: Gate,
        meter: PressureMeter,
        hosts: Mapping[str, EngineHost],
        canaries: Mapping[str, Canary],
    ) -> None:
        self._settings = settings
        self._gate = gate
        self._meter = meter
        self._hosts = hosts
        self._canaries = canaries

    def route(self, model: str) -> Route:
        """Return who answers for a model now."""
        level = self._gate.degradation.level
        if level < Level.SMALL_MODEL and not may_fall_back(model, self._settings):
            return Route(model)
        return choose(model, level, self._settings, self.chain(model), self._unusable)

    def chain(self, model: str) -> tuple[str, ...]:
        """Return the models that may answer for one, best first."""
        own, served = self._hosts[model], tuple(self._hosts)
        return chain_of(model, self._settings, served, lambda name: own.alike(self._hosts[name]))

    async def adapt(self) -> None:
        """Let the service's own signals move the degradation level, for ever."""
        interval = min(1.0, self._settings.degradation_raise_seconds / 3)
        default = self._settings.models[0]
        while True:
            await asyncio.sleep(interval)
            if default not in self._hosts:
                continue  # it was unloaded on purpose: there is nothing to keep alive
            try:
                self._gate.adapt(self._signals(default), has_fallback=bool(self.chain(default)))
            except Exception:  # noqa: BLE001 - a loop survives a failing part
                _log.exception("degradation_signals_failed")

    def _unusable(self, model: str) -> FallbackReason:
        host = self._hosts[model]
        if not host.up:
            return FallbackReason.ENGINE_DOWN
        breaker = host.dispatcher.breaker
        if breaker is not None and breaker.refusing:
            return FallbackReason.CIRCUIT_OPEN
        return FallbackReason.NONE

    def _signals(self, model: str) -> Signals:
        """Read what the last interval showed, and how the default model is."""
        known = self._canaries[model].passed_once
        why = self._unusable(model) if known else FallbackReason.NONE
        helped = any(not self._unusable(name) for name in self.chain(model))
        workers = (
            host.supervisor.status.usage.resident_memory_bytes for host in self._hosts.values()
        )
        memory = max(workers, default=0) / self._settings.memory_limit_bytes
        return self._meter.read(
            engine_down=why.value if helped else "",
            memory_share=max(host_memory_share(), memory),
        )
