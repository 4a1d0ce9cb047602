"""Running the service under uvicorn."""

from __future__ import annotations

import gc
import resource
import socket
from types import FrameType

import structlog
import uvicorn

from inference.app import InferenceApp, create_app
from inference.fast_protocol import fast_protocol_of
from inference.settings import InferenceSettings

_log = structlog.get_logger(__name__)

# Beside connections: libraries, workers' sockets and pipes, heartbeats, logs.
_OTHER_FILES = 256
_COLLECT_AFTER_OBJECTS = 20_000


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


def server_config(app: InferenceApp, host: str, port: int) -> uvicorn.Config:
    """Return what uvicorn needs to serve the application with all bounds of its settings."""
    settings = app.service.settings
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=fast_protocol_of(app.service),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        # Whoever may connect could else say that it is somebody else.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
    )


def _spare_collector() -> None:
    """Let the collector of cycles leave alone what lives for ever, and run less often.

    Requests make no cycles; what libraries make is small and may wait. By default a full pass over
    some hundred thousand objects of frameworks comes every few seconds under load, and stops every
    answer for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS, 10, 50)


def _allow_files(wanted: int) -> None:
    """Raise the limit of open files, often 1,024, as far as the connections need and may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        _log.warning("few_open_files_allowed", limit=hard, wanted=wanted)


def run(settings: InferenceSettings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; accepted requests are finished first.

    Port 0 takes a free one, which the log line ``service_listening`` names.

    Raises:
        NotFoundError: the repository lacks a model that should be served.
        OSError: the address cannot be bound, or the service did not start.
    """
    app = create_app(settings)
    _allow_files(settings.max_connections + _OTHER_FILES)
    config = server_config(app, host, port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        _log.info("service_listening", host=host, port=listener.getsockname()[1])
        _spare_collector()
        server = _Server(config, app)
        server.run(sockets=[listener])
    if not server.started:
        raise OSError("the service did not start; the log says why")
