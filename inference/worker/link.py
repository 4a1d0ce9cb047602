"""The front's end of the socket to a worker, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import structlog

from inference.worker.wire import FrameDecoder, Message, WireError, encode_parts

_log = structlog.get_logger(__name__)


class WorkerLink(asyncio.BufferedProtocol):
    """Sends messages to one worker and hands on what comes back."""

    def __init__(
        self, on_message: Callable[[Message], None], on_lost: Callable[[WorkerLink], None]
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._frames = FrameDecoder()
        self._transport: asyncio.WriteTransport | None = None

    def send(self, message: Message) -> None:
        """Send without waiting; what is in flight is bounded by the worker's slots."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(encode_parts(message))

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Say where the next bytes go."""
        return self._frames.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on the messages that arrived."""
        try:
            for message in self._frames.received(nbytes):
                self._on_message(message)
        except WireError as error:
            _log.error("worker_frame_invalid", error=str(error))
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Say that the worker is gone."""
        self._on_lost(self)
