"""Running the service under uvicorn."""

from __future__ import annotations

import socket
from types import FrameType

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inference.app import InferenceApp, create_app
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)

# Above what browsers and proxies send; vLLM's CVE-2025-48956 was a head without a limit.
_MAX_HEAD_BYTES = 64 * 1024


class _BoundedHead(HttpToolsProtocol):
    """Closes connections whose request head does not end; httptools itself has no limit."""

    _head_bytes = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        """Parse, and count what has not become a whole head."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.transport.close()

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting."""
        self._in_head = False
        super().on_headers_complete()


class _Server(uvicorn.Server):
    """The first signal drains, a second one hurries, whichever signals they are."""

    def __init__(self, config: uvicorn.Config, app: InferenceApp) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT and SIGTERM."""
        if self.should_exit:
            self.force_exit = True
        else:
            # Probes see it at once; connections that were accepted are still answered.
            self._app.service.leaving = True
        super().handle_exit(sig, frame)


def run(settings: InferenceSettings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; accepted requests are finished first.

    Port 0 takes a free one, which the log line ``service_listening`` names.

    Raises:
        NotFoundError: the repository lacks a model that should be served.
        OSError: the address cannot be bound, or the service did not start.
    """
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=_BoundedHead,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        _log.info("service_listening", host=host, port=listener.getsockname()[1])
        server = _Server(config, app)
        server.run(sockets=[listener])
    if not server.started:
        raise OSError("the service did not start; the log says why")
