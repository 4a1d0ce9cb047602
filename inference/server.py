"""Running the service under uvicorn."""

from __future__ import annotations

import socket
from types import FrameType

import structlog
import uvicorn

from inference.app import InferenceApp, create_app
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)


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
        OSError: the address cannot be bound.
    """
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
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
        _Server(config, app).run(sockets=[listener])
