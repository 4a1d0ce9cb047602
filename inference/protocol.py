"""What one connection may cost: slow heads, long heads, pipelines, and readers that do not read.

httptools and uvicorn bound none of these. A client over a limit is told why where it still can be
(400, 408, 431), and cut off where it cannot.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from typing import ClassVar

import orjson
import structlog
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from inference.api.http import Shape, error_content
from inference.connections import CLOSED_AT_ONCE, ConnectionCounts
from inference.errors import (
    HeadTooLargeError,
    InvalidRequestError,
    RequestTimeoutError,
    ServiceError,
)
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)

# uvicorn warns of each request that is no HTTP: whoever sends such could fill the log. Counted here.
_SERVER_LOG = logging.getLogger("inference.protocol.server")
_SERVER_LOG.setLevel(logging.ERROR)
# Above what browsers and proxies send; vLLM's CVE-2025-48956 was a head without a limit.
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
# Answers are made one after the other; a longer pipeline only waits.
MAX_PIPELINED = 32


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's connection with bounds; `protocol_of` binds it to settings and counts."""

    settings: ClassVar[InferenceSettings]
    counts: ClassVar[ConnectionCounts]

    _address = ""
    _refusal = ""
    _in_head = False
    _had_head = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _verdict: ServiceError | None = None
    _running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection; it owes us a head from now on."""
        self.logger = _SERVER_LOG
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._refusal = self.counts.enter(self._address, self.settings)
        if self._refusal == CLOSED_AT_ONCE:
            transport.abort()
            return
        self._bound_writes(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.counts.leave(self._address)
        self._cancel_head_timer()
        self._cancel_write_timer()
        self._tell_running()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and bound what has not become a whole head."""
        self._had_head = False
        super().data_received(data)
        # After parsing: a head that came whole with this data needs no timer.
        idle = self.cycle is None or self.cycle.response_complete
        if idle and not self._had_head and self._head_timer is None:
            self._await_head()
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._end_with(HeadTooLargeError(f"the head is longer than {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        """Begin to count, and tell the application what this connection may not ask."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        if self._refusal:
            self.scope["state"]["refusal"] = self._refusal

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, up to a number."""
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refuse_headers()

    def _refuse_headers(self) -> None:
        self._verdict = HeadTooLargeError(
            f"more than {MAX_HEADERS} headers", reason="too_many_headers"
        )
        raise self._verdict

    def on_headers_complete(self) -> None:
        """Stop counting and begin to serve."""
        self._in_head, self._had_head = False, True
        self._cancel_head_timer()
        if len(self.pipeline) >= MAX_PIPELINED:
            self._verdict = InvalidRequestError(
                f"more than {MAX_PIPELINED} requests without reading an answer",
                reason="pipeline_too_long",
            )
            raise self._verdict
        super().on_headers_complete()
        if self._refusal:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        """Give the client a time in which to read."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self.settings.write_timeout_seconds, self._cut_slow_reader
            )

    def resume_writing(self) -> None:
        """Go on; the client reads."""
        self._cancel_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with the bytes, in the shape of all errors."""
        self._end_with(self._verdict or InvalidRequestError(msg, reason="invalid_http"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _tell_running(self) -> None:
        """Tell the request that is served that its client has left.

        uvicorn tells the newest one, which is another where requests were pipelined.
        """
        self.pipeline.clear()
        cycle = self._running
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(
            self.settings.head_timeout_seconds, self._head_timed_out
        )

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._in_head:
            seconds = self.settings.head_timeout_seconds
            self._end_with(
                RequestTimeoutError(
                    f"the head did not arrive within {seconds:g} s", reason="head_timeout"
                )
            )
        else:
            # Nothing was asked, so that an answer would be none.
            self.counts.cut["head_timeout"] += 1
            self.transport.close()

    def _end_with(self, error: ServiceError) -> None:
        """Answer bytes that are no request, and close; never into the middle of an answer."""
        if self.transport.is_closing():
            return
        self.counts.cut[error.reason] += 1
        answering = self._answering()
        if answering is not None:
            answering.keep_alive = False  # the answer under way is the last one
            self.pipeline.clear()
            self.flow.pause_reading()
            return
        request_id = f"req-{secrets.token_hex(8)}"
        body = orjson.dumps(error_content(error, Shape.OPENAI, request_id))
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[error.status] + head.encode("ascii") + body)
        self.transport.close()

    def _answering(self) -> RequestResponseCycle | None:
        """Return the request that came whole, or has a part of its answer, and waits for the rest."""
        cycle = self._running
        if cycle is None or cycle.response_complete:
            return None
        return cycle if cycle.response_started or not cycle.more_body else None

    def _cut_slow_reader(self) -> None:
        """End a connection whose client does not read; the request on it is cancelled with it."""
        self._write_timer = None
        self.counts.cut["slow_reader"] += 1
        _log.warning("slow_reader_cut", client=self._address)
        self.transport.abort()

    def _bound_writes(self, transport: asyncio.Transport) -> None:
        """Let the kernel give up on answers that nobody takes, also while we are closing."""
        transport.set_write_buffer_limits(high=self.settings.write_buffer_bytes)
        connection = transport.get_extra_info("socket")
        if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(2 * self.settings.write_timeout_seconds * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def protocol_of(settings: InferenceSettings, counts: ConnectionCounts) -> type[BoundedProtocol]:
    """Return the protocol class that a server makes connections of."""
    return type("Connection", (BoundedProtocol,), {"settings": settings, "counts": counts})
