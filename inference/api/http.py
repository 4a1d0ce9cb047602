"""One HTTP exchange on an inference route, as pure ASGI.

Starlette's middleware and request classes cost more than the bundled model's answer and hide
disconnects (vllm-project/vllm #10087); the inference routes therefore speak ASGI themselves.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, TypeVar

import orjson
import structlog
from pydantic import BaseModel, ValidationError

from inference.errors import (
    ClientGoneError,
    InvalidRequestError,
    MemoryLimitError,
    RateLimitedError,
    RequestTimeoutError,
    RequestTooLargeError,
    ServiceError,
    UnsupportedMediaTypeError,
)
from inference.keys import Client
from inference.metrics import UNKNOWN
from inference.queueing import Priority
from inference.requests import GenerationRequest, Ticket
from inference.service import InferenceService
from inference.tensor.requests import TensorTicket
from inference.tracing import RequestTrace

_log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Body = TypeVar("Body", bound=BaseModel)

# `curl -d` calls everything a form: a body that is JSON is taken for what it is.
_FORM = "application/x-www-form-urlencoded"
_JSON_TYPES = {"", "application/json", _FORM}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


# Time in which a body may be slower than its minimum rate: a round trip or two.
_BODY_GRACE_SECONDS = 2.0


class Shape(StrEnum):
    """How a protocol writes errors."""

    OPENAI = "openai"
    OIP = "oip"


class Exchange:
    """A request and its answer, counted once when it ends."""

    def __init__(
        self,
        service: InferenceService,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        endpoint: str,
        shape: Shape,
        params: Mapping[str, str],
    ) -> None:
        self.service = service
        self.params = params
        self.shape = shape
        self._receive = receive
        self._send = send
        self.scope = scope
        self.endpoint = endpoint
        self.started_at = service.clock()
        self.read_at = 0.0
        """When the whole body was there."""
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = request_id_from(self.header("x-request-id"))
        self.client: Client | None = None
        self._address = (scope.get("client") or ("",))[0]
        self.canary = self.header("x-galen-canary") == "1"
        self.model = UNKNOWN
        self.answered_by = ""
        self.fallback = ""
        self.level = int(service.degradation.level)
        self.trace: RequestTrace | None = None
        self.request: GenerationRequest | None = None
        self.ticket: Ticket | None = None
        self.tensor_ticket: TensorTicket | None = None
        self.error: ServiceError | None = None
        self._body_bytes = 0
        self._received = False
        self._response_started = False
        self.status = 500

    def header(self, name: str) -> str:
        """Return a request header, or an empty string."""
        return self._headers.get(name.encode("ascii"), b"").decode("latin-1")

    async def body(self, kind: type[Body]) -> Body:
        """Read and validate the JSON body.

        Raises:
            UnsupportedMediaTypeError: it says that it is something else.
            RequestTooLargeError: it is longer than allowed.
            InvalidRequestError: it is not what the endpoint takes; names the place.
            ClientGoneError: the client left before it was sent.
        """
        media_type = self.media_type()
        if media_type not in _JSON_TYPES and not media_type.endswith("+json"):
            raise UnsupportedMediaTypeError(f"the body must be JSON, not {media_type}")
        raw = await self.read()
        try:
            return kind.model_validate(orjson.loads(raw))
        except orjson.JSONDecodeError as error:
            if media_type == _FORM:
                raise UnsupportedMediaTypeError(
                    "the body must be JSON; form fields are not supported"
                ) from error
            raise InvalidRequestError(
                f"the body is not JSON: {error}", reason="invalid_json"
            ) from error
        except ValidationError as error:
            raise invalid_body(error) from error

    def priority(self) -> Priority:
        """Return how urgent the client says it is, at most as urgent as its key allows.

        Raises:
            InvalidRequestError: it says neither high, normal nor low.
        """
        name = self.header("x-galen-priority") or Priority.NORMAL.name
        if name.upper() not in Priority.__members__:
            raise InvalidRequestError("X-Galen-Priority must be high, normal or low")
        wanted = Priority[name.upper()]
        return wanted if self.client is None else max(wanted, self.client.highest_priority)

    def identify(self) -> None:
        """Find out who asks, by the API key.

        Raises:
            UnauthorizedError: a key is needed, and there is none or it is unknown.
        """
        self.client = self.service.gate.authenticate(self.header("authorization"))

    def media_type(self) -> str:
        """Return the type that the client gives to its body, without parameters; may be empty."""
        return self.header("content-type").partition(";")[0].strip().lower()

    def count_received(self, model: str) -> None:
        """Name the model, count the arrival, and check that the client may ask that and now.

        Raises:
            RateLimitedError: this client has had its share.
            ForbiddenError: its key is not for this model.
        """
        self.model = model if model in self.service.hosts else UNKNOWN
        if not self.canary:
            self._received = True
            self.service.metrics.received(self.model, self.endpoint)
            self._check_client()
        if self.client is not None:
            self.client.check_model(model)

    def _check_client(self) -> None:
        try:
            self.service.gate.check_client(self.client, self._address)
        except RateLimitedError as error:
            self.service.metrics.rejected(self.model, error.reason)
            raise

    @asynccontextmanager
    async def watch(self, ticket: Ticket | TensorTicket) -> Any:
        """Cancel the ticket if the client leaves inside the block."""
        watcher = asyncio.ensure_future(self._cancel_when_gone(ticket))
        try:
            yield
        finally:
            watcher.cancel()

    async def send_json(self, status: int, content: Any, headers: Mapping[str, str] = {}) -> None:
        """Send a whole answer."""
        await self.send_payload(
            orjson.dumps(content), {"content-type": "application/json", **headers}, status
        )

    async def send_payload(
        self, payload: bytes, headers: Mapping[str, str], status: int = 200
    ) -> None:
        """Send a whole answer that is encoded already."""
        await self._start(status, {"content-length": str(len(payload)), **headers})
        await self._send({"type": "http.response.body", "body": payload})

    async def send_empty(self, status: int) -> None:
        """Send a status without a body."""
        await self._start(status, {"content-length": "0"})
        await self._send({"type": "http.response.body", "body": b""})

    async def start_events(self) -> None:
        """Begin a stream of server-sent events."""
        await self._start(
            200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        )

    async def send_event(self, data: bytes) -> None:
        """Send one server-sent event."""
        await self._send({"type": "http.response.body", "body": _event(data), "more_body": True})

    async def end_events(self, *last: bytes) -> None:
        """End the stream with these events, all in one write."""
        await self._send({"type": "http.response.body", "body": b"".join(map(_event, last))})

    async def send_error(self, error: ServiceError) -> None:
        """Send an error in the protocol's shape; inside a stream as its last event."""
        self.error = error
        content = error_content(error, self.shape, self.request_id)
        if self._response_started:
            self.status = error.status
            await self.end_events(orjson.dumps(content))
        else:
            await self.send_json(error.status, content, error_headers(error))

    def finish(self) -> None:
        """Count the end of the exchange."""
        if self.canary:
            return
        if not self._received:
            self.service.metrics.received(self.model, self.endpoint)
        seconds = self.service.clock() - self.started_at
        self.service.metrics.finished(
            self.model, self.endpoint, self.status, seconds, self.exemplar
        )
        if self.client is not None:
            self.service.metrics.finished_for(self.client.name, self.status)

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What a histogram may name as an example of this request's latency."""
        if self.trace is None or not self.trace.recording:
            return None
        return {"trace_id": self.trace.trace_id, "span_id": self.trace.span_id}

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self._response_started = True
        common = {
            "x-request-id": self.request_id,
            "x-galen-degradation": str(self.level),
            "x-galen-model": self.answered_by,
            "x-galen-variant": self.service.variant_note(self.answered_by),
            "x-galen-device": self.service.device_note(self.answered_by),
            "x-galen-fallback": self.fallback,
        }
        if self.trace is not None:
            common |= self.trace.headers()
        pairs = [
            (name.encode("ascii"), value.encode("latin-1"))
            for name, value in {**headers, **common}.items()
            if value
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def read(self, limit: int | None = None) -> bytes:
        """Return the body as it came; ``limit`` is ``max_body_bytes`` unless told.

        Raises:
            UnsupportedMediaTypeError: it is compressed.
            RequestTooLargeError: it is longer than allowed.
            RequestTimeoutError: it came too slowly.
            MemoryLimitError: there is no room for it beside those of waiting requests.
            ClientGoneError: the client left before it was sent.
        """
        settings = self.service.settings
        limit, seconds = limit or settings.max_body_bytes, settings.body_timeout_seconds
        encoding = self.header("content-encoding").strip().lower()
        if encoding not in {"", "identity"}:
            raise UnsupportedMediaTypeError(
                f"bodies with content-encoding {encoding} are not supported",
                reason="unsupported_encoding",
            )
        declared = self.header("content-length")
        if declared.isdecimal() and int(declared) > limit:
            raise RequestTooLargeError(f"the body has {declared} bytes; the limit is {limit}")
        try:
            async with asyncio.timeout(min(seconds, _BODY_GRACE_SECONDS)) as timer:
                raw = await self._read_chunks(limit, timer)
        except TimeoutError:
            raise RequestTimeoutError(
                f"the body did not arrive within {seconds:g} s, or came at less than "
                f"{settings.body_bytes_per_second:g} bytes/s"
            ) from None
        self.read_at = self.service.clock()
        return raw

    def release(self) -> None:
        """Give back what the body took of the service's memory for bodies."""
        self.service.body_bytes_in_flight -= self._body_bytes
        self._body_bytes = 0

    async def _read_chunks(self, limit: int, timer: asyncio.Timeout) -> bytes:
        settings = self.service.settings
        began = asyncio.get_running_loop().time()
        chunks: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError("the client left before its request was complete")
            chunk = message.get("body", b"")
            self._hold(len(chunk))
            if self._body_bytes > limit:
                raise RequestTooLargeError(f"the body is longer than {limit} bytes")
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
            earned = _BODY_GRACE_SECONDS + self._body_bytes / settings.body_bytes_per_second
            timer.reschedule(began + min(settings.body_timeout_seconds, earned))

    def _hold(self, size: int) -> None:
        """Count bytes of a body, if there is room for them beside those of the others."""
        limit = self.service.settings.max_body_bytes_in_flight
        if self.service.body_bytes_in_flight + size > limit:
            raise MemoryLimitError(
                f"the bodies of waiting requests take {limit} bytes",
                reason="bodies_in_flight",
                retry_after_seconds=1.0,
            )
        self._body_bytes += size
        self.service.body_bytes_in_flight += size

    async def _cancel_when_gone(self, ticket: Ticket | TensorTicket) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.service.cancel(ticket, self.answered_by)


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def request_id_from(given: str) -> str:
    """Return the client's request id if it is harmless, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"


def error_content(error: ServiceError, shape: Shape, request_id: str) -> dict[str, Any]:
    """Return the body of an error."""
    if shape is Shape.OIP:
        return {
            "error": error.message,
            "code": error.code,
            "reason": error.reason,
            "request_id": request_id,
        }
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
            "reason": error.reason,
            "request_id": request_id,
        }
    }


def error_headers(error: ServiceError) -> dict[str, str]:
    """Return the headers that an error adds.

    ``Retry-After`` knows whole seconds only; clients that can do better (OpenAI's and ours) read
    ``Retry-After-Ms``.
    """
    seconds = error.retry_after_seconds
    if seconds is None:
        return error.headers
    return {
        **error.headers,
        "retry-after": str(max(1, round(seconds))),
        "retry-after-ms": str(math.ceil(seconds * 1000)),
    }


def invalid_body(error: ValidationError) -> InvalidRequestError:
    """Name the first place that does not fit."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return InvalidRequestError(f"{where or 'body'}: {first['msg']}", param=where or None)
