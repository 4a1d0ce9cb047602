"""Fault injection for drills: names, parameters with bounds, and where each one goes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inference.engine_host import EngineHost
from inference.errors import ForbiddenError, InvalidRequestError
from inference.service import InferenceService
from inference.worker import faults as worker_faults
from inference.worker.wire import Fault

_log = structlog.get_logger(__name__)

METRICS_HANG = "metrics_hang"
MODEL_LOAD_FAILURE = "model_load_failure"
MIB = 1024 * 1024


class _Parameters(BaseModel):
    """What every fault takes."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="Whose engine; none is the default model")
    persistent: bool = Field(default=False, description="Come back after a restart of the worker")


class _SlowParameters(_Parameters):
    step_seconds: float = Field(default=0.2, gt=0, le=60, description="Each step takes this long")


class _CorruptParameters(_Parameters):
    kind: str = Field(default="nan", pattern="^(nan|wrong)$", description="nan or wrong")


class _PoisonParameters(_Parameters):
    persistent: bool = Field(default=True, description="Like a bug of the model: a restart stays")
    marker: str = Field(min_length=1, max_length=200, description="Text that does the harm")
    kind: str = Field(default="crash", pattern="^(crash|hang)$", description="crash or hang")


class _LeakParameters(_Parameters):
    bytes_per_second: int = Field(default=16 * MIB, ge=1024, le=512 * MIB)


_PARAMETERS: Mapping[str, type[_Parameters]] = {
    worker_faults.ENGINE_HANG: _Parameters,
    worker_faults.ENGINE_CRASH: _Parameters,
    worker_faults.ENGINE_SLOW: _SlowParameters,
    worker_faults.CORRUPT_OUTPUT: _CorruptParameters,
    worker_faults.HOST_MEMORY_LEAK: _LeakParameters,
    worker_faults.ENGINE_ERROR: _Parameters,
    worker_faults.DEVICE_LOST: _Parameters,
    worker_faults.POISON_TEXT: _PoisonParameters,
    MODEL_LOAD_FAILURE: _Parameters,
    METRICS_HANG: _Parameters,
}


@dataclass(frozen=True, slots=True)
class ActiveFault:
    """A fault that was injected; a worker's restart may have cured it since."""

    fault: str
    parameters: Mapping[str, Any]
    injected_at_seconds: float
    worker_pid: int | None = None
    """The worker that has it; None where the fault is not in a worker."""
    version: int | None = None
    """The bad version of a model, until it is rolled back."""


class FaultControl:
    """Injects faults where configuration allows it, and knows which are active."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._active: list[ActiveFault] = []
        self.metrics_open = asyncio.Event()
        self.metrics_open.set()

    def active(self) -> list[ActiveFault]:
        """Return the faults that are active; those of a dead worker are gone with it."""
        pids = {
            host.supervisor.status.worker.pid
            for host in self._service.hosts.values()
            if host.supervisor.status.worker is not None
        }
        self._active = [item for item in self._active if self._lasts(item, pids)]
        return list(self._active)

    def _lasts(self, item: ActiveFault, pids: set[int]) -> bool:
        """Say whether a fault is still there."""
        if item.version is not None:
            model = item.parameters.get("model", self._service.default_model)
            return item.version == self._service.repository.active(model)
        if item.worker_pid is not None and not item.parameters.get("persistent"):
            return item.worker_pid in pids
        return True

    def inject(self, name: str, parameters: Mapping[str, Any]) -> ActiveFault:
        """Inject a fault.

        Raises:
            ForbiddenError: configuration does not allow faults.
            InvalidRequestError: there is no such fault, or a parameter does not fit.
            ConflictError: the engine is not in a state to have it.
        """
        self.check_allowed()
        values = _validated(name, parameters)
        host = self._service.host(values.model or self._service.default_model)
        pid = version = None
        if name == METRICS_HANG:
            self.metrics_open.clear()
        elif name == MODEL_LOAD_FAILURE:
            version = self._break_model(host)
        else:
            pid = self._inject_worker(host, name, values)
        details = values.model_dump(exclude_none=True)
        active = ActiveFault(name, details, self._service.wall_clock(), pid, version)
        self._active.append(active)
        _log.warning("fault_injected", fault=name, **details)
        return active

    def clear(self) -> None:
        """Clear what can be cleared; a bad model version goes by rollback only.

        Raises:
            ForbiddenError: configuration does not allow faults.
        """
        self.check_allowed()
        self.metrics_open.set()
        for host in self._service.hosts.values():
            host.clear_faults()
        self._active = [item for item in self._active if item.version is not None]
        _log.warning("faults_cleared")

    def check_allowed(self) -> None:
        """Refuse where configuration does not allow faults.

        Raises:
            ForbiddenError: it does not.
        """
        if not self._service.settings.allow_faults:
            raise ForbiddenError(
                "fault injection is off; start the service with allow_faults = true",
                reason="faults_not_allowed",
            )

    def _inject_worker(self, host: EngineHost, name: str, values: _Parameters) -> int | None:
        fault = Fault(name, values.model_dump(exclude={"model", "persistent"}))
        host.inject(fault)
        if values.persistent:
            host.persistent_faults.append(fault)
        worker = host.supervisor.status.worker
        return worker.pid if worker is not None else None

    def _break_model(self, host: EngineHost) -> int:
        """Roll out a version that cannot be loaded, past the check that a reload makes."""
        repository = self._service.repository
        version = repository.add_corrupt_version(host.model)
        repository.activate(host.model, version)
        host.restart(f"roll out version {version}")
        return version


def _validated(name: str, parameters: Mapping[str, Any]) -> _Parameters:
    """Check a fault's name and parameters."""
    if name not in _PARAMETERS:
        known = ", ".join(sorted(_PARAMETERS))
        raise InvalidRequestError(f"no fault {name!r}; there are {known}", param="fault")
    try:
        return _PARAMETERS[name].model_validate(dict(parameters))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(
            f"parameters.{where}: {first['msg']}", param=f"parameters.{where}"
        ) from error
