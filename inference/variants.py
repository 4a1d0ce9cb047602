"""Lower precision on purpose: keeps each model on the variant that the degradation level asks for.

A variant is the same version in another precision, declared in ``model.toml``. It is loaded beside the
running model and takes over once its golden examples are right; one that is wrong is left alone until
the version changes. A worker that was restarted begins with the model itself and is moved again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from inference.degradation import Level
from inference.engine_host import EngineHost
from inference.errors import ServiceError

_log = structlog.get_logger(__name__)

# Often enough to follow a level, which is kept for seconds at least.
_INTERVAL_SECONDS = 0.5


class VariantKeeper:
    """Moves models between precisions.

    Args:
        hosts: The served models.
        variant: Name of the variant to degrade to; empty does nothing.
        level: The degradation level in force.
    """

    def __init__(
        self, hosts: Mapping[str, EngineHost], variant: str, level: Callable[[], Level]
    ) -> None:
        self._hosts = hosts
        self._variant = variant
        self._level = level
        self._wrong: dict[str, int] = {}

    async def run(self) -> None:
        """Follow the level until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            await self.follow()

    async def follow(self) -> None:
        """Move every model that is not where it should be."""
        for model, host in list(self._hosts.items()):
            wanted = self.wanted(host)
            if host.ready is None or host.ready.variant == wanted:
                continue
            if wanted and self._wrong.get(model) == host.version:
                continue
            await self._move(host, wanted)

    def wanted(self, host: EngineHost) -> str:
        """Return the variant that a model should run as now; empty is the model itself."""
        if not self._variant or self._level() < Level.SHORT_ANSWERS:
            return ""
        metadata = host.metadata()
        declared = metadata is not None and self._variant in metadata.variants
        return self._variant if declared else ""

    async def _move(self, host: EngineHost, wanted: str) -> None:
        version = host.version
        try:
            loaded = await host.use_variant(wanted)
        except ServiceError as error:  # the worker went away, or loads a version: later, then
            _log.warning("variant_not_changed", model=host.model, reason=error.message)
            return
        if loaded.reason:
            self._wrong[host.model] = version
            _log.warning("variant_refused", model=host.model, variant=wanted, reason=loaded.reason)
        else:
            _log.info("variant_changed", model=host.model, variant=wanted or "none")
