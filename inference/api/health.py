"""Health, metrics and status. None of these waits for a worker."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from inference.faults import FaultControl
from inference.health import HealthReport
from inference.metrics import CONTENT_TYPE, OPEN_METRICS_CONTENT_TYPE
from inference.service import VERSION, InferenceService

router = APIRouter()


def service_of(request: Request) -> InferenceService:
    """Return the application's service."""
    service: InferenceService = request.app.state.service
    return service


def faults_of(request: Request) -> FaultControl:
    """Return the application's fault control."""
    faults: FaultControl = request.app.state.faults
    return faults


Service = Annotated[InferenceService, Depends(service_of)]
Faults = Annotated[FaultControl, Depends(faults_of)]


@router.get("/health", tags=["health"], responses={503: {"description": "Not healthy"}})
async def health(service: Service, verbose: bool = False) -> JSONResponse:
    """Five layers of the serving model; ``?verbose=true`` adds all models and what changed."""
    report = service.health()
    content = {"healthy": report.ok, "model": report.model, "layers": _layers(report)}
    if verbose:
        content["models"] = {
            model: {
                "state": service.hosts[model].state().value,
                "load_phase": service.hosts[model].load_phase().name.lower(),
                "layers": _layers(service.health_of(model)),
            }
            for model in service.hosts
        }
        content["consistency"] = service.peers.describe()
        content["history"] = service.history.recent()
    return JSONResponse(content, 200 if report.ok else 503)


def _layers(report: HealthReport) -> dict[str, Any]:
    return {
        name: {"ok": layer.ok, "reason": layer.reason, "age_seconds": layer.age_seconds}
        for name, layer in report.layers.items()
    }


@router.get("/health/live", tags=["health"], responses={503: {"description": "Restart me"}})
async def live(service: Service) -> JSONResponse:
    """200 while restarting this process would not help: load and dead engines are not its fault."""
    alive = service.supervised
    return JSONResponse({"live": alive}, 200 if alive else 503)


@router.get("/health/ready", tags=["health"], responses={503: {"description": "Send no traffic"}})
async def ready(service: Service) -> JSONResponse:
    """200 while traffic should come; no loaded model is never ready."""
    reason = service.not_ready_reason()
    return JSONResponse({"ready": not reason, "reason": reason}, 503 if reason else 200)


@router.get("/health/startup", tags=["health"], responses={503: {"description": "Starting"}})
async def startup(service: Service) -> JSONResponse:
    """200 once a golden prompt was answered right for the first time."""
    return JSONResponse({"started": service.started}, 200 if service.started else 503)


@router.get("/metrics", tags=["monitoring"], response_class=Response)
async def metrics(request: Request, service: Service, faults: Faults) -> Response:
    """Prometheus text format; OpenMetrics, with exemplars, for those who ask for it."""
    await faults.metrics_open.wait()  # closed by the injected fault `metrics_hang` only
    if "application/openmetrics-text" in request.headers.get("accept", ""):
        return Response(service.metrics.render_open_metrics(), media_type=OPEN_METRICS_CONTENT_TYPE)
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/api/system/status", tags=["monitoring"])
async def status(service: Service) -> dict[str, Any]:
    """One look at everything, for people and dashboards; needs no token and tells no secret."""
    return {
        "name": "galen",
        "version": VERSION,
        "uptime_seconds": service.clock() - service.started_at,
        "ready": not (reason := service.not_ready_reason()),
        "reason": reason,
        "degradation": {
            "level": int(service.degradation.level),
            "reason": service.degradation.reason,
            "since_seconds": service.degradation.since_seconds,
        },
        "draining": service.draining,
        "serving_model": service.serving_model,
        "models": {model: _model_status(service, model) for model in service.hosts},
    }


def _model_status(service: InferenceService, model: str) -> dict[str, Any]:
    """Describe one model."""
    host = service.hosts[model]
    status = host.supervisor.status
    record = host.heartbeat()
    return {
        "state": host.state().value,
        "load_phase": host.load_phase().name.lower(),
        "reason": status.reason,
        "up": host.up,
        "version": host.version,
        "engine": host.ready.engine if host.ready else None,
        "device": host.ready.device if host.ready else None,
        "worker_pid": status.worker.pid if status.worker else None,
        "queue_depth": host.dispatcher.queue.depth,
        "running": host.dispatcher.running,
        "slots": host.dispatcher.max_slots,
        "batch_size": record.batch_size,
        "steps": host.totals().steps,
        "step_age_seconds": host.step_age_seconds(),
        "resident_memory_bytes": status.usage.resident_memory_bytes,
        "load_seconds": host.load_seconds,
        "restarts": {reason.value: count for reason, count in status.restarts.items()},
        "load_failures": status.load_failures + host.reload_failures,
        "restart_budget_left": status.budget_left,
    }
