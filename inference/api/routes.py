"""The table of inference routes, and what happens around each of them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from inference.api import model_repository, oip, openai
from inference.api.auditing import record_access
from inference.api.http import Exchange, Receive, Scope, Send, Shape
from inference.api.spans import begin, end
from inference.connections import TOO_MANY_PER_ADDRESS
from inference.errors import (
    INTERNAL_MESSAGE,
    ClientGoneError,
    EndpointNotFoundError,
    MethodNotAllowedError,
    OverloadedError,
    RateLimitedError,
    ServiceError,
)
from inference.metrics import UNKNOWN
from inference.service import InferenceService

_log = structlog.get_logger(__name__)

Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """One path with its method; ``counted`` routes are user load."""

    method: str
    path: str
    handler: Handler
    counted: bool = False
    summary: str = ""
    open: bool = False
    """Whether it needs no API key: probes have none, and administration has its token."""

    @property
    def pattern(self) -> re.Pattern[str]:
        """The path as a regular expression with named groups."""
        escaped = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path)
        return re.compile(rf"{escaped}/?")


ROUTES = (
    Route("POST", "/v1/completions", openai.completions, True, "Complete a prompt"),
    Route("POST", "/v1/chat/completions", openai.chat_completions, True, "Answer a message"),
    Route("GET", "/v1/models", openai.models, summary="List the models"),
    Route("GET", "/v1/models/{model}", openai.model, summary="Describe a model"),
    Route("GET", "/v2", oip.server_metadata, summary="Server metadata"),
    Route("GET", "/v2/health/live", oip.live, summary="Liveness", open=True),
    Route("GET", "/v2/health/ready", oip.ready, summary="Readiness", open=True),
    Route("POST", "/v2/repository/index", model_repository.index, summary="Models and versions"),
    Route("POST", "/v2/repository/models/{model}/load", model_repository.load,
          summary="Take a model into service", open=True),
    Route("POST", "/v2/repository/models/{model}/unload", model_repository.unload,
          summary="Take a model out of service", open=True),
    Route("POST", "/v2/repository/models/{model}/versions/{version}/load", model_repository.load,
          summary="Take a version into service", open=True),
    Route("POST", "/v2/repository/models/{model}/versions/{version}/unload",
          model_repository.unload, summary="Take a version out of service", open=True),
    Route("GET", "/v2/models/{model}", oip.model_metadata, summary="Model metadata"),
    Route("GET", "/v2/models/{model}/ready", oip.model_ready, summary="Model readiness"),
    Route("POST", "/v2/models/{model}/infer", oip.infer, True, "Infer"),
    Route("GET", "/v2/models/{model}/versions/{version}", oip.model_metadata,
          summary="Model metadata of a version"),
    Route("GET", "/v2/models/{model}/versions/{version}/ready", oip.model_ready,
          summary="Readiness of a version"),
    Route("POST", "/v2/models/{model}/versions/{version}/infer", oip.infer, True,
          "Infer with a version"),
)  # fmt: skip


def is_inference_path(path: str) -> bool:
    """Say whether a path belongs to the protocols, known or not."""
    return path in {"/v1", "/v2"} or path.startswith(("/v1/", "/v2/"))


def check_connection(exchange: Exchange) -> None:
    """Refuse user load on a connection over the limit of their number.

    Raises:
        OverloadedError: there are too many in all.
        RateLimitedError: there are too many of this client.
    """
    refusal = exchange.scope.get("state", {}).get("refusal")
    if not refusal:
        return
    kind = RateLimitedError if refusal == TOO_MANY_PER_ADDRESS else OverloadedError
    raise kind("too many connections", reason=refusal, retry_after_seconds=1.0)


class InferenceRoutes:
    """Pure ASGI application of the two protocols."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._table = [(route.pattern, route) for route in ROUTES]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        path = scope["path"]
        shape = Shape.OIP if path.startswith("/v2") else Shape.OPENAI
        matches = self._matches(path)
        found = next((m for m in matches if m[0].method == scope["method"]), None)
        endpoint = found[0].path if found else UNKNOWN
        params = found[1] if found else {}
        exchange = Exchange(
            self._service, scope, receive, send, endpoint=endpoint, shape=shape, params=params
        )
        if found is not None and found[0].counted:
            begin(exchange)
        try:
            if found is not None:
                await self._run(found[0], exchange)
            elif matches:
                allowed = ", ".join(route.method for route, _ in matches)
                error = MethodNotAllowedError(f"{path} takes {allowed}", headers={"allow": allowed})
                await exchange.send_error(error)
            else:
                await exchange.send_error(EndpointNotFoundError("no such endpoint"))
        finally:
            exchange.release()
            if found is None or found[0].counted:
                exchange.finish()
                end(exchange)
                record_access(exchange)

    async def _run(self, route: Route, exchange: Exchange) -> None:
        try:
            if route.counted:
                check_connection(exchange)
            if not route.open:
                exchange.identify()
            await route.handler(exchange)
        except ClientGoneError as error:
            exchange.status, exchange.error = error.status, error
        except ServiceError as error:
            await exchange.send_error(error)
        except Exception:  # noqa: BLE001 - a bug is logged, and answered like any error
            # The last line of defence: one bad request must not take the connection's others.
            _log.exception("request_failed", path=route.path, request_id=exchange.request_id)
            await exchange.send_error(ServiceError(INTERNAL_MESSAGE))

    def _matches(self, path: str) -> list[tuple[Route, Mapping[str, str]]]:
        """Return the routes of a path, whatever their method."""
        found = ((pattern.fullmatch(path), route) for pattern, route in self._table)
        return [(route, match.groupdict()) for match, route in found if match]
