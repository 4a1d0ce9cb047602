"""Administration, behind a bearer token."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from inference.admission import AdmissionQueue
from inference.api.authority import check_admin_token
from inference.api.health import Faults, Service
from inference.degradation import Level
from inference.dispatch_contract import EngineDispatcher
from inference.faults import FaultControl
from inference.service import InferenceService


class _Body(BaseModel):
    # Strict: `false` is no level, and 0 is no answer to whether to drain.
    model_config = ConfigDict(extra="forbid", strict=True)


class RestartBody(_Body):
    """``POST /admin/engine/restart``."""

    reason: str = Field(default="asked for", max_length=500)
    model: str | None = Field(default=None, description="Whose engine; none is the default model.")


class ReloadBody(_Body):
    """``POST /admin/models/{model}/reload``."""

    version: int | None = Field(
        default=None, ge=0, description="None is the newest that is not quarantined."
    )


def _level(value: Any) -> Level:
    """Read a level; true and false would otherwise be 1 and 0."""
    if isinstance(value, bool) or value not in tuple(Level):
        raise ValueError("must be a whole number from 0 to 4")
    return Level(int(value))


class DegradationBody(_Body):
    """``PUT /admin/degradation``."""

    level: Annotated[Level, BeforeValidator(_level)]
    reason: str = Field(default="", max_length=500)


class LimitsBody(_Body):
    """``PUT /admin/limits``; an absent field stays, null goes back to what is configured."""

    max_queue: int | None = Field(default=None, ge=1, le=10_000)
    max_slots: int | None = Field(default=None, ge=1, le=64)
    requests_per_second: float | None = Field(default=None, gt=0, le=1e6)


class DrainBody(_Body):
    """``PUT /admin/drain``."""

    drain: bool


class FaultBody(_Body):
    """``POST /admin/faults``."""

    fault: str = Field(max_length=64)
    parameters: dict[str, Any] = Field(default_factory=dict)


def require_token(request: Request, service: Service) -> None:
    """Let nobody in without the administrator's token.

    Raises:
        UnauthorizedError: it is missing or wrong.
    """
    check_admin_token(request.headers.get("authorization", ""), service)


router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_token)])
ModelName = Annotated[str, Field(max_length=128)]


@router.post("/engine/restart", status_code=202)
async def restart(body: RestartBody, service: Service) -> dict[str, Any]:
    """Restart a worker; waiting requests stay, and a spent restart budget is renewed."""
    host = service.host(body.model or service.default_model)
    host.restart(body.reason)
    return {"model": host.model, "restarting": True}


@router.post("/models/{model}/reload")
async def reload(model: str, body: ReloadBody, service: Service) -> dict[str, Any]:
    """Load a version beside the running one, prove it on its golden prompts, and swap."""
    return {"model": model, "version": await service.releases.reload(model, body.version)}


@router.post("/models/{model}/rollback")
async def rollback(model: str, service: Service) -> dict[str, Any]:
    """Go back to the previous good version; the one in use is quarantined."""
    return {"model": model, "version": await service.releases.rollback(model)}


@router.put("/degradation")
async def degradation(body: DegradationBody, service: Service) -> dict[str, Any]:
    """Set the degradation level, 0 full service to 4 refuse."""
    service.set_degradation(body.level, body.reason)
    return {"level": int(body.level), "reason": body.reason}


@router.put("/limits")
async def limits(body: LimitsBody, service: Service) -> dict[str, Any]:
    """Change queue, slots and rate limit."""
    service.set_limits({name: getattr(body, name) for name in body.model_fields_set})
    return _limits(service)


@router.post("/cache/clear")
async def clear_cache(service: Service) -> dict[str, Any]:
    """Forget the prefix caches."""
    for host in service.hosts.values():
        host.clear_cache()
    return {"cleared": True}


@router.put("/drain")
async def drain(body: DrainBody, service: Service) -> dict[str, Any]:
    """Refuse new requests while the accepted ones finish, or accept them again."""
    service.drain(enabled=body.drain)
    return {"draining": service.draining, "idle": service.idle}


@router.post("/faults", status_code=201)
async def inject_fault(body: FaultBody, faults: Faults) -> dict[str, Any]:
    """Inject a fault; only where configuration allows it."""
    return asdict(faults.inject(body.fault, body.parameters))


@router.delete("/faults")
async def clear_faults(faults: Faults) -> dict[str, Any]:
    """Clear the faults that can be cleared; a bad model version goes by rollback."""
    faults.clear()
    return {"cleared": True}


@router.delete("/quarantine")
async def clear_quarantine(service: Service) -> dict[str, Any]:
    """Accept quarantined and suspected requests again."""
    return {"cleared": service.poison.quarantine.forget_all()}


@router.get("/state")
async def state(service: Service, faults: Faults) -> dict[str, Any]:
    """Level, limits, versions, faults and restart budget."""
    return {
        "degradation": {
            "level": int(service.degradation.level),
            "reason": service.degradation.reason,
            "since_seconds": service.degradation.since_seconds,
            "admin_level": int(service.gate.admin.level),
            "automatic_level": int(service.gate.automatic.level),
        },
        "draining": service.draining,
        "limits": _limits(service),
        "faults_allowed": service.settings.allow_faults,
        "faults": _faults(faults),
        "poison": service.poison.describe(),
        "repository_problem": service.repository.state_problem,
        "models": {model: _model(service, model) for model in service.hosts},
    }


def _limits(service: InferenceService) -> dict[str, Any]:
    dispatcher = service.hosts[service.default_model].dispatcher
    return {
        "max_queue": dispatcher.queue.max_queue,
        "max_slots": dispatcher.max_slots,
        "requests_per_second": service.gate.rate.rate,
    }


def _admission(dispatcher: EngineDispatcher) -> dict[str, Any]:
    breaker, queue = dispatcher.breaker, dispatcher.queue
    found: dict[str, Any] = {"circuit_breaker": None if breaker is None else breaker.state.value}
    if isinstance(queue, AdmissionQueue):
        found["concurrency_limit"] = queue.limit
        found["gradient"] = None if queue.gradient is None else queue.gradient.gradient
        found["service_seconds"] = queue.drain_rate.service_seconds
    return found


def _faults(faults: FaultControl) -> list[dict[str, Any]]:
    return [asdict(fault) for fault in faults.active()]


def _model(service: InferenceService, model: str) -> dict[str, Any]:
    host = service.hosts[model]
    status = host.supervisor.status
    return {
        "state": host.state().value,
        "reason": status.reason,
        "version": host.version,
        "admission": _admission(host.dispatcher),
        "versions": [asdict(info) for info in service.repository.describe(model)],
        **service.releases.describe(model),
        "restart_budget": {
            "left": status.budget_left,
            "of": service.settings.restart_budget,
            "window_seconds": service.settings.restart_window_seconds,
        },
    }
