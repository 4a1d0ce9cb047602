"""What goes into the audit log, for requests and for administration."""

from __future__ import annotations

from collections.abc import MutableMapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import orjson

from inference.api.http import Exchange, Receive, Scope, Send
from inference.rates import TokenBucket
from inference.service import InferenceService
from inference.worker.supervisor import RestartReason

_REPOSITORY = "/v2/repository/models/"
_MOST_BODY_BYTES = 4096
# Whoever has no token must not be able to push the lines of those who have one out of the files.
_REFUSED_PER_SECOND = 2.0


def record_access(exchange: Exchange) -> None:
    """Record a request to a model, where that is wanted."""
    service = exchange.service
    if not service.settings.audit_access:
        return
    entry = _head(service, "access", exchange.scope, exchange.request_id)
    entry |= {
        "who": None if exchange.client is None else exchange.client.name,
        "route": exchange.endpoint,
        "model": exchange.model,
        "answered_by": exchange.answered_by or None,
        "status": exchange.status,
        "reason": None if exchange.error is None else exchange.error.reason,
        "degradation": exchange.level,
        "seconds": round(service.clock() - exchange.started_at, 6),
    }
    if exchange.trace is not None:
        entry["trace_id"] = exchange.trace.trace_id
    answer = None if exchange.ticket is None else exchange.ticket.answer
    if answer is not None:
        entry["prompt_tokens"] = answer.prompt_tokens
        entry["completion_tokens"] = answer.completion_tokens
    if service.settings.audit_prompts and exchange.request is not None:
        entry["prompt"] = exchange.request.text
        entry["answer"] = None if answer is None else answer.text
    service.audit.record(entry)


def administers(scope: Scope) -> bool:
    """Say whether a request wants to change the service."""
    path, method = scope["path"], scope["method"]
    return method not in {"GET", "HEAD", "OPTIONS"} and (
        path.startswith(("/admin/", _REPOSITORY)) or path == "/admin"
    )


class AdminAuditor:
    """Records calls of administration: what was asked, what became of it, what it changed."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._refused = TokenBucket(_REFUSED_PER_SECOND, service.clock)

    async def run(self, app: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a call with an application and record it."""
        call = _Call(receive, send)
        before, began = _state(self._service), self._service.clock()
        try:
            await app(scope, call.receive, call.send)
        finally:
            seconds = self._service.clock() - began
            self._record(scope, call, before, seconds)

    def _record(self, scope: Scope, call: _Call, before: dict[str, Any], seconds: float) -> None:
        known = call.status not in {HTTPStatus.UNAUTHORIZED, 0}
        if not known and self._refused.take() > 0.0:
            return
        after = _state(self._service)
        entry = _head(self._service, "admin", scope, call.request_id)
        entry |= {
            "who": "admin" if known else None,
            "path": scope["path"],
            "status": call.status or None,
            "reason": call.reason,
            "changed": {
                name: {"old": before.get(name), "new": after.get(name)}
                for name in sorted(before.keys() | after.keys())
                if before.get(name) != after.get(name)
            },
            "seconds": round(seconds, 6),
        }
        if known:
            entry["parameters"] = call.parameters
        self._service.audit.record(entry)


class _Call:
    """Looks at the bytes of one call as they pass."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.status = 0
        self.request_id = ""
        self._receive = receive
        self._send = send
        self._asked = bytearray()
        self._answered = bytearray()

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        _keep(self._asked, message)
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.request_id = dict(message["headers"]).get(b"x-request-id", b"").decode("latin-1")
        else:
            _keep(self._answered, message)
        await self._send(message)

    @property
    def parameters(self) -> Any:
        """The body, if it is JSON and not long."""
        return _parsed(self._asked)

    @property
    def reason(self) -> str | None:
        """Why it was refused, in either protocol's shape."""
        answer = _parsed(self._answered) if self.status >= HTTPStatus.BAD_REQUEST else None
        if not isinstance(answer, dict):
            return None
        inner = answer.get("error")
        return (inner if isinstance(inner, dict) else answer).get("reason")


def _keep(buffer: bytearray, message: MutableMapping[str, Any]) -> None:
    if len(buffer) <= _MOST_BODY_BYTES:
        buffer += message.get("body", b"")[: _MOST_BODY_BYTES + 1]


def _parsed(buffer: bytearray) -> Any:
    if not 0 < len(buffer) <= _MOST_BODY_BYTES:
        return None
    try:
        return orjson.loads(buffer)
    except orjson.JSONDecodeError:
        return None


def _head(service: InferenceService, kind: str, scope: Scope, request_id: str) -> dict[str, Any]:
    client = scope.get("client")
    return {
        "time": datetime.fromtimestamp(service.wall_clock(), UTC).isoformat(),
        "kind": kind,
        "request_id": request_id,
        "address": client[0] if client else None,
        "method": scope["method"],
    }


def _state(service: InferenceService) -> dict[str, Any]:
    """Return what administration can change, by name."""
    state: dict[str, Any] = {
        "degradation.level": int(service.degradation.level),
        "draining": service.draining,
        "requests_per_second": service.gate.rate.rate,
    }
    for model, host in list(service.hosts.items()):
        state[f"{model}.version"] = host.version
        state[f"{model}.max_queue"] = host.dispatcher.queue.max_queue
        state[f"{model}.max_slots"] = host.dispatcher.max_slots
        state[f"{model}.restarts_planned"] = host.supervisor.status.restarts.get(
            RestartReason.PLANNED, 0
        )
    return state
