"""Composition: the protocols as pure ASGI in front, FastAPI behind for everything else."""

from __future__ import annotations

from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from structlog.contextvars import bind_contextvars, clear_contextvars

from inference.api import admin, health
from inference.api.auditing import AdminAuditor, administers
from inference.api.bodies import RefusedBody, bounded
from inference.api.http import (
    Receive,
    Scope,
    Send,
    Shape,
    error_content,
    error_headers,
    request_id_from,
)
from inference.api.openapi import describe
from inference.api.routes import InferenceRoutes, is_inference_path
from inference.errors import (
    INTERNAL_MESSAGE,
    EndpointNotFoundError,
    InvalidRequestError,
    MethodNotAllowedError,
    ServiceError,
)
from inference.faults import FaultControl
from inference.metrics import UNKNOWN
from inference.service import VERSION, InferenceService
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)

_ROUTERS = (health.router, admin.router)


class InferenceApp:
    """The ASGI application; `service` is open to whoever runs it."""

    def __init__(self, service: InferenceService) -> None:
        self.service = service
        self._routes = InferenceRoutes(service)
        self._rest = _fastapi(service)
        self._auditor = AdminAuditor(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and is_inference_path(scope["path"]):
            serve = self._routes.__call__
        else:
            serve = self._serve_rest
        if scope["type"] == "http" and administers(scope):
            await self._auditor.run(serve, scope, receive, send)
        else:
            await serve(scope, receive, send)

    async def _serve_rest(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                receive = bounded(receive, self.service.settings.body_timeout_seconds)
            await self._rest(scope, receive, self._with_headers(scope, send))
        except Exception:
            # Starlette raises again what `_on_bug` has logged and answered; the server would then
            # close a connection on which the client may already have sent its next request.
            if not scope.get("state", {}).get("bug_answered"):
                raise

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        """Give every answer of FastAPI the headers that the protocols' answers have."""
        if scope["type"] != "http":
            return send
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = request_id_from(given)
        scope.setdefault("state", {})["request_id"] = request_id
        clear_contextvars()
        bind_contextvars(request_id=request_id)

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                level = int(self.service.degradation.level)
                common = [
                    (b"x-request-id", request_id.encode("ascii")),
                    (b"x-galen-degradation", str(level).encode("ascii")),
                ]
                message["headers"] = [*message.get("headers", ()), *common]
            await send(message)

        return send_with_headers


def create_app(settings: InferenceSettings) -> InferenceApp:
    """Build the application; workers start with its lifespan.

    Raises:
        NotFoundError: the repository lacks a model that should be served.
        OSError: the state directory cannot be written.
    """
    return InferenceApp(InferenceService(settings))


def _fastapi(service: InferenceService) -> FastAPI:
    """Build the part that is not on the hot path."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="Galen inference service",
        version=VERSION,
        description="OpenAI and Open Inference Protocol routes, health, metrics, administration.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.service = service
    app.state.faults = FaultControl(service)
    for router in _ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    describe(app)
    return app


def _error_response(request: Request, error: ServiceError) -> JSONResponse:
    content = error_content(error, Shape.OPENAI, request.state.request_id)
    return JSONResponse(content, error.status, error_headers(error))


async def _on_service_error(request: Request, error: Exception) -> JSONResponse:
    """Render our own errors."""
    known = error if isinstance(error, ServiceError) else ServiceError(INTERNAL_MESSAGE)
    return _error_response(request, known)


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Render FastAPI's validation errors as 400, like those of the protocols."""
    first: dict[str, Any] = {}
    if isinstance(error, RequestValidationError):
        first = dict(next(iter(error.errors()), {}))
    where = ".".join(str(part) for part in first.get("loc", ()))
    message = f"{where}: {first.get('msg', 'invalid')}"
    reason = "invalid_json" if first.get("type") == "json_invalid" else None
    return _error_response(
        request, InvalidRequestError(message, reason=reason, param=where or None)
    )


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Render unknown endpoints and wrong methods, and count them as such."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    rendered: ServiceError
    if status == HTTPStatus.NOT_FOUND:
        rendered = EndpointNotFoundError("no such endpoint")
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(_methods(request)))
        rendered = MethodNotAllowedError(
            f"{request.url.path} takes {allowed}", headers={"allow": allowed}
        )
    elif isinstance(error, RefusedBody):
        rendered = error.error
    else:
        rendered = InvalidRequestError(HTTPStatus(status).phrase)
    metrics = request.app.state.service.metrics
    metrics.received(UNKNOWN, UNKNOWN)
    metrics.finished(UNKNOWN, UNKNOWN, rendered.status, 0.0)
    return _error_response(request, rendered)


def _methods(request: Request) -> set[str]:
    """Return what a path takes, over all of its routes; Starlette's own answer stops at one."""
    return {
        method
        for routes in (request.app.routes, *(router.routes for router in _ROUTERS))
        for route in routes
        if isinstance(route, Route) and route.path_regex.match(request.url.path)
        for method in route.methods or ()
    }


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    """Answer in the usual shape when we are wrong; the traceback is in the log."""
    request.state.bug_answered = True
    _log.error(
        "request_failed",
        path=request.url.path,
        request_id=request.state.request_id,
        exc_info=error,
    )
    return _error_response(request, ServiceError(INTERNAL_MESSAGE))
