"""The fast lane: tensor requests that are as plain as most are, without a task for each.

A scope, a task, a cycle and a dozen awaits cost several times what the request itself does: reading
its JSON, giving its bytes to the batch, writing its answer. Here a connection hands over a request
that came whole, the batch's end calls back, and the answer is one write.

Only what is plain may come this way. Anything else (a header that is not known to be harmless, a body
in pieces, an input that does not fit, tracing, an audit of access) takes the ordinary way, which gives
the same answers; a test sends the same requests both ways and compares. A request is refused here only
once it was understood, so that nothing is counted twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import orjson
import structlog

from inference.api.deadlines import timeout_seconds
from inference.api.http import Shape, error_content, error_headers, request_id_from
from inference.api.oip_tensors import BINARY_TYPES, JSON_TYPES
from inference.engine_host import EngineHost
from inference.errors import INTERNAL_MESSAGE, ServiceError
from inference.metrics import BoundMetrics
from inference.model import ModelKind
from inference.queueing import Priority
from inference.service import InferenceService
from inference.tensor.codec import InferRequest, answer_head
from inference.tensor.requests import TensorTicket

_log = structlog.get_logger(__name__)

ENDPOINT = "/v2/models/{model}/infer"
_BEFORE, _AFTER = b"/v2/models/", b"/infer"
_JSON_TYPES = frozenset(name.encode() for name in JSON_TYPES)
_BINARY_TYPES = frozenset(name.encode() for name in BINARY_TYPES)
_MEANT = frozenset({
    b"content-length", b"content-type", b"inference-header-content-length", b"x-galen-priority",
    b"x-request-id", b"x-request-timeout-ms",
})  # fmt: skip
# Headers that change nothing about the answer. What is not here takes the ordinary way, so that a
# header which gets a meaning there is never ignored here.
_HARMLESS = frozenset({
    b"accept", b"accept-encoding", b"accept-language", b"cache-control", b"connection", b"cookie",
    b"dnt", b"host", b"origin", b"pragma", b"referer", b"user-agent", b"via", b"x-forwarded-for",
    b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto", b"x-real-ip",
})  # fmt: skip
_PRIORITIES = {name.lower().encode(): value for name, value in Priority.__members__.items()}
Header = tuple[bytes, bytes]


class Connection(Protocol):
    """The connection that a request came on."""

    def answer(self, exchange: FastExchange, status: int, head: bytes, body: bytes) -> None:
        """Write an answer: the head's own lines, and the body."""
        ...


class _NoEvent:
    """Nobody waits for a fast exchange's messages."""

    def set(self) -> None:
        """Do nothing."""


class _Target:
    """A model that can be asked on the lane."""

    __slots__ = ("counters", "head", "host", "model", "tensors", "version")

    def __init__(self, host: EngineHost, counters: BoundMetrics) -> None:
        self.model = host.model
        self.host = host
        self.tensors = host.tensors
        self.counters = counters
        self.version = -1
        self.head = b""
        """The beginning of every answer's JSON, which changes with the version only."""


@dataclass(frozen=True, slots=True)
class PlainHead:
    """What the head of a plain request says. Most clients send the same one again and again."""

    url: bytes
    headers: list[Header]
    target: _Target
    priority: Priority
    length: int
    """Bytes of the body."""
    request_id: str
    seconds: float
    """Deadline, as the client shortened it."""
    header_length: str


class FastExchange:
    """A request on the fast lane; for its connection it looks like uvicorn's own cycle."""

    __slots__ = (
        "answered_by", "body", "complete", "connection", "disconnected", "fallback", "head",
        "keep_alive", "level", "request", "request_id", "response_complete", "started_at", "ticket",
    )  # fmt: skip

    message_event: ClassVar[_NoEvent] = _NoEvent()
    response_started: ClassVar[bool] = False

    def __init__(self, connection: Connection, head: PlainHead, started_at: float) -> None:
        self.connection = connection
        self.head = head
        self.started_at = started_at
        self.body = b""
        self.complete = False
        """Whether the whole request is there."""
        self.request_id = ""
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False
        self.answered_by = self.fallback = ""
        self.level = 0
        self.request: InferRequest | None = None
        self.ticket: TensorTicket | None = None


class FastLane:
    """Decides who may come this way, and answers; belongs to the event loop."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        watched = service.tracing is not None or service.settings.audit_access
        # Nobody watches each request, or asks who it is: as long as this service lives.
        self._open = not watched and service.gate.anonymous
        self._targets: dict[bytes, _Target] = {}
        self._next_id = _request_ids()
        self._on_done = self._done
        self._lines: dict[tuple[int, str, str], bytes] = {}
        """Header lines by level, model and fallback; there are a few of each."""

    def begin(
        self, connection: Connection, url: bytes, headers: list[Header], last: PlainHead | None
    ) -> FastExchange | None:
        """Return an exchange for a request whose head is plain, or None.

        Args:
            connection: Where the answer goes.
            url: The path, and whatever follows it.
            headers: All of them, names in lower case.
            last: Head of the request before on this connection, if that was plain.
        """
        target = self._target(url) if self._open else None
        if target is None:
            return None
        if last is None or last.target is not target or last.headers != headers:
            last = self._read_head(url, headers, target)
            if last is None:
                return None
        return FastExchange(connection, last, self._service.clock())

    def again(self, connection: Connection, head: PlainHead) -> FastExchange | None:
        """Return an exchange for a request with the same head once more, or None."""
        target = head.target
        if not self._open or self._service.hosts.get(target.model) is not target.host:
            return None
        return FastExchange(connection, head, self._service.clock())

    def _read_head(self, url: bytes, headers: list[Header], target: _Target) -> PlainHead | None:
        found: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in _MEANT:
                found[name] = value
            elif name not in _HARMLESS:
                return None
        length = found.get(b"content-length", b"")
        header_length = found.get(b"inference-header-content-length", b"")
        known = _BINARY_TYPES if header_length else _JSON_TYPES
        priority = _PRIORITIES.get(found.get(b"x-galen-priority", b"normal").lower())
        if (
            priority is None
            or found.get(b"content-type", b"") not in known
            or not length.isdigit()
            or not 0 < int(length) <= self._service.settings.tensor_max_body_bytes
        ):
            return None
        timeout = found.get(b"x-request-timeout-ms", b"").decode("latin-1")
        try:
            seconds = timeout_seconds(timeout, self._service.settings.tensor_deadline_seconds)
        except ServiceError:
            return None
        return PlainHead(
            url=url,
            headers=headers,
            target=target,
            priority=priority,
            length=int(length),
            request_id=found.get(b"x-request-id", b"").decode("latin-1"),
            seconds=seconds,
            header_length=header_length.decode("latin-1"),
        )

    def submit(self, exchange: FastExchange) -> bool:
        """Admit a whole request; return False if it should take the ordinary way after all."""
        service, head = self._service, exchange.head
        try:
            request = head.target.tensors.codec.read(exchange.body, head.header_length)
        except ServiceError:
            return False
        exchange.request = request
        exchange.request_id = (
            request_id_from(head.request_id) if head.request_id else self._next_id()
        )
        ticket = TensorTicket(
            request_id=exchange.request_id,
            model=head.target.model,
            rows=request.rows,
            shapes=request.shapes,
            data=request.data,
            deadline=exchange.started_at + head.seconds,
            on_done=self._on_done,
            owner=exchange,
            priority=head.priority,
        )
        head.target.counters.received()
        try:
            route = service.tensors.submit(ticket)
        except ServiceError as error:
            exchange.level = int(service.gate.degradation.level)
            self._refuse(exchange, error)
            return True
        exchange.ticket = ticket
        exchange.answered_by = route.model
        if route is not service.tensors.calm_route:
            exchange.level = int(service.gate.degradation.level)
        if route.reason:
            exchange.fallback = route.reason.value
            exchange.level = int(service.level_of(ticket, route.model))
        return True

    def cancel(self, exchange: FastExchange) -> None:
        """Give up a request whose client has left."""
        exchange.disconnected = True
        if exchange.ticket is not None:
            self._service.tensors.cancel(exchange.ticket, exchange.answered_by)

    def _target(self, url: bytes) -> _Target | None:
        """Return the tensor model that a path names, or None; models come and go."""
        known = self._targets.get(url)
        if known is not None and self._service.hosts.get(known.model) is known.host:
            return known
        if not (url.startswith(_BEFORE) and url.endswith(_AFTER)):
            return None
        name = url[len(_BEFORE) : -len(_AFTER)].decode("latin-1")
        host = self._service.hosts.get(name)
        if host is None or host.kind is not ModelKind.TENSOR:
            return None
        counters = known.counters if known else self._service.metrics.bound(name, ENDPOINT)
        target = self._targets[url] = _Target(host, counters)
        return target

    def _done(self, ticket: TensorTicket, error: ServiceError | None) -> None:
        """Answer; called by the batch's end, a deadline or a cancellation."""
        exchange = ticket.owner
        # Nothing may point in a circle: the collector of cycles would have to look for it.
        ticket.owner = exchange.ticket = None
        if exchange.disconnected:
            self._count(exchange, 499)
            return
        try:
            if error is None:
                self._answer(exchange, ticket)
                return
        except Exception:  # noqa: BLE001 - logged; one answer must not take its batch along
            _log.exception("request_failed", path=ENDPOINT, request_id=exchange.request_id)
            error = ServiceError(INTERNAL_MESSAGE)
        self._refuse(exchange, error)

    def _answer(self, exchange: FastExchange, ticket: TensorTicket) -> None:
        request, answer = exchange.request, ticket.answer
        if request is None or answer is None:
            raise RuntimeError("an exchange ends without its request or its answer")
        target = exchange.head.target
        if exchange.answered_by != target.model:
            host = self._service.hosts[exchange.answered_by]
            target = _Target(host, target.counters)
        request_id = exchange.request_id.encode()
        own_id = orjson.dumps(request.id) if request.id else b'"%b"' % request_id
        if answer.version != target.version:
            target.version = answer.version
            target.head = answer_head(target.model, answer.version)
        body, json_length = target.tensors.codec.encode(
            b'%b%b,"outputs":' % (target.head, own_id), request, answer, ticket.offset
        )
        if json_length:
            kind = (
                b"content-type: application/octet-stream\r\n"
                b"inference-header-content-length: %d\r\n" % json_length
            )
        else:
            kind = b"content-type: application/json\r\n"
        target.counters.finished(200, self._service.clock() - exchange.started_at)
        exchange.connection.answer(exchange, 200, kind + self._common(exchange, request_id), body)

    def _refuse(self, exchange: FastExchange, error: ServiceError) -> None:
        """Answer with an error."""
        body = orjson.dumps(error_content(error, Shape.OIP, exchange.request_id))
        lines = "".join(f"{name}: {value}\r\n" for name, value in error_headers(error).items())
        head = b"content-type: application/json\r\n" + lines.encode("latin-1")
        self._count(exchange, error.status)
        common = self._common(exchange, exchange.request_id.encode())
        exchange.connection.answer(exchange, error.status, head + common, body)

    def _common(self, exchange: FastExchange, request_id: bytes) -> bytes:
        key = exchange.level, exchange.answered_by, exchange.fallback
        lines = self._lines.get(key)
        if lines is None:
            level, model, fallback = key
            names = f"x-galen-model: {model}\r\n" if model else ""
            names += f"x-galen-fallback: {fallback}\r\n" if fallback else ""
            lines = f"x-galen-degradation: {level}\r\n{names}x-request-id: ".encode("latin-1")
            self._lines[key] = lines
        return b"%b%b\r\n" % (lines, request_id)

    def _count(self, exchange: FastExchange, status: int) -> None:
        seconds = self._service.clock() - exchange.started_at
        exchange.head.target.counters.finished(status, seconds)


def _request_ids() -> Callable[[], str]:
    """Return what makes ids like those of `request_id_from`, without asking the kernel each time."""
    number = secrets.randbits(63)

    def make() -> str:
        nonlocal number
        # A step that is odd and large visits every number once, in no order that can be seen.
        number = (number + 0x9E3779B97F4A7C15) & 0xFFFF_FFFF_FFFF_FFFF
        return f"req-{number:016x}"

    return make
