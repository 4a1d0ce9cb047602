"""A connection with a fast lane beside uvicorn's ordinary way; see `inference.api.fast_lane`.

Requests on one connection are answered in the order in which they came: while one is on the fast
lane, uvicorn sees it as a cycle that is not complete, and puts what is pipelined behind it into its
own line, for the ordinary way.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from inference.api.fast_lane import FastExchange, FastLane, PlainHead
from inference.api.known_head import KnownHead
from inference.protocol import MAX_HEADERS, BoundedProtocol, protocol_of
from inference.service import InferenceService

# Clients often write head and body one after the other. A body that is larger or slower than this
# gains nothing from the lane.
_LANE_BODY_BYTES = 256 * 1024
_LANE_BODY_SECONDS = 0.1


class FastProtocol(BoundedProtocol):
    """`BoundedProtocol` with a fast lane; `fast_protocol_of` binds it to a service."""

    lane: ClassVar[FastLane]

    _fast: FastExchange | None = None
    _last_head: PlainHead | None = None
    _known_head: KnownHead | None = None
    """The bytes of `_last_head`."""
    _at_boundary = False
    """Whether the parser has seen the end of a message and nothing of the next one."""
    _idle_since = 0.0
    _body_timer: asyncio.TimerHandle | None = None
    _lines: ClassVar[tuple[Any, bytes]] = (None, b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what is on the lane."""
        self._cancel_body_timer()
        self._idle_since = 0.0
        self._unset_keepalive_if_required()  # uvicorn forgets it where the client broke off
        fast, self._fast = self._fast, None
        if fast is not None and not fast.response_complete:
            self.lane.cancel(fast)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; a body that does not come soon goes on in the ordinary way, which bounds it."""
        known, boundary = self._known_head, self._between_requests()
        if known is not None and boundary:
            body = known.body_of(data)
            if body is not None and self._take_known(body):
                return
        super().data_received(data)
        fast = self._fast
        if fast is None:
            return
        if fast.complete:
            self._known_head = self._learn(data, fast) if boundary else None
        elif self._body_timer is None:
            if fast.head.length > _LANE_BODY_BYTES:
                self._leave_lane(fast)
            else:
                self._body_timer = self.loop.call_later(_LANE_BODY_SECONDS, self._leave_lane, fast)

    def on_message_begin(self) -> None:
        """Begin a head; the scope is made only for those who take the ordinary way."""
        self.url = b""
        self.headers = []
        self._in_head, self._head_bytes, self._at_boundary = True, 0, False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, up to a number."""
        self.headers.append((name.lower(), value))
        if len(self.headers) > MAX_HEADERS:
            self._refuse_headers()

    def on_headers_complete(self) -> None:
        """Choose the way."""
        if self._fast is None and (self.cycle is None or self.cycle.response_complete):
            fast = self._enter_lane()
            if fast is not None:
                self._in_head, self._had_head = False, True
                self._cancel_head_timer()
                self._fast = fast
                self.cycle = cast("RequestResponseCycle", fast)
                return
        self._take_ordinary_way()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        fast = self._fast
        if fast is None or fast.complete:
            super().on_body(body)
        elif fast.body:
            fast.body += body
        else:
            fast.body = body

    def on_message_complete(self) -> None:
        """Admit a request on the lane."""
        self._at_boundary = True
        fast = self._fast
        if fast is None or fast.complete:
            super().on_message_complete()
        else:
            self._cancel_body_timer()
            if self.lane.submit(fast):
                fast.complete = True
            else:
                self._leave_lane(fast)
                super().on_message_complete()

    def answer(self, exchange: FastExchange, status: int, head: bytes, body: bytes) -> None:
        """Write an answer and go on with what waits behind it."""
        exchange.complete = exchange.response_complete = True
        if self._fast is exchange:
            self._fast = None
        headers = self.server_state.default_headers
        known, default_lines = FastProtocol._lines
        if known is not headers:  # they change once a second
            default_lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            FastProtocol._lines = headers, default_lines
        close = b"" if exchange.keep_alive else b"connection: close\r\n"
        lines = STATUS_LINE[status], default_lines, head, close, len(body), body
        self.transport.write(b"%b%b%b%bcontent-length: %d\r\n\r\n%b" % lines)
        if not exchange.keep_alive:
            self.transport.close()
        elif self.pipeline:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._idle_since = time.monotonic()
            if self.timeout_keep_alive_task is None:
                self._start_keep_alive_timer(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing was asked for long enough."""
        self.timeout_keep_alive_task = None
        if self._in_head or (self.cycle is not None and not self.cycle.response_complete):
            return
        rest = self._idle_since + self.timeout_keep_alive - time.monotonic()
        if rest <= 0.0 or not self._idle_since:
            super().timeout_keep_alive_handler()
        else:
            self._start_keep_alive_timer(rest)

    def _unset_keepalive_if_required(self) -> None:
        # One timer outlives many requests: to set and cancel one each time costs as much as parsing.
        if not self._idle_since:
            super()._unset_keepalive_if_required()

    def _start_keep_alive_timer(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def on_response_complete(self) -> None:
        """End an ordinary answer: uvicorn's own timer from here on."""
        self._idle_since = 0.0
        super().on_response_complete()

    def _enter_lane(self) -> FastExchange | None:
        parser = self.parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1" or self._refusal:
            return None
        if self.flow.write_paused or self.pipeline or parser.should_upgrade():
            return None
        fast = self.lane.begin(self, self.url, self.headers, self._last_head)
        if fast is not None:
            self._last_head = fast.head
            fast.keep_alive = parser.should_keep_alive()
        return fast

    def _between_requests(self) -> bool:
        cycle = self.cycle
        return (
            self._at_boundary
            and self._head_timer is None
            and (cycle is None or cycle.response_complete)
            and not self.pipeline
        )

    def _learn(self, data: bytes, fast: FastExchange) -> KnownHead | None:
        if not fast.keep_alive or not self._at_boundary:
            return None
        most_bytes = min(_LANE_BODY_BYTES, self.settings.tensor_max_body_bytes)
        return KnownHead.learn(data, fast.body, most_bytes)

    def _take_known(self, body: bytes) -> bool:
        """Admit a request whose head is that of the one before it, without parsing it again.

        Return False if it has to be parsed after all; nothing has happened then.
        """
        if self._last_head is None or self.flow.write_paused or self.transport.is_closing():
            return False
        fast = self.lane.again(self, self._last_head)
        if fast is None:
            return False
        fast.body = body
        before, self.cycle, self._fast = self.cycle, cast("RequestResponseCycle", fast), fast
        if not self.lane.submit(fast):
            self.cycle, self._fast = before, None
            return False
        fast.complete = True
        return True

    def _leave_lane(self, fast: FastExchange) -> None:
        """Begin the ordinary way for a request that has been on the lane so far."""
        self._cancel_body_timer()
        if self._fast is not fast or self.transport.is_closing():
            return
        self._fast, self.cycle = None, cast("RequestResponseCycle", None)
        self._take_ordinary_way()
        if fast.body:
            super().on_body(fast.body)

    def _cancel_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _take_ordinary_way(self) -> None:
        """Give uvicorn the head that was kept from it."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _answering(self) -> RequestResponseCycle | None:
        fast = self._fast
        if fast is not None and fast.complete:
            return cast("RequestResponseCycle", fast)
        return super()._answering()


def fast_protocol_of(service: InferenceService) -> type[FastProtocol]:
    """Return the protocol class that a server makes connections of."""
    bounded = protocol_of(service.settings, service.connections)
    bound = {"settings": bounded.settings, "counts": bounded.counts, "lane": FastLane(service)}
    return type("FastConnection", (FastProtocol,), bound)
