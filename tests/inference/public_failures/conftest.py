"""Services in which failures of other servers, known from their public issues, are reproduced."""

import os
import threading
from contextlib import contextmanager, suppress

import pytest


@pytest.fixture
def start(tools, own_repository, tmp_path):
    """Start a service of the test's own."""

    def begin(**settings):
        return tools.run_service(own_repository, tmp_path / "state", **settings)

    return begin


class Probes:
    """What an orchestrator sees, and whether anybody restarted anything."""

    @staticmethod
    def statuses(live):
        """Return live, ready and startup."""
        paths = ("live", "ready", "startup")
        return tuple(live.client.get(f"/health/{path}").status_code for path in paths)

    @staticmethod
    def restarts(live):
        """Return how many workers were ended or died."""
        return live.metric("engine_restarts_total")

    @staticmethod
    def worker(live, model="tiny"):
        """Return the process id of a model's worker."""
        return live.client.get("/api/system/status").json()["models"][model]["worker_pid"]

    @staticmethod
    @contextmanager
    def slow_load(folder):
        """Make a version load for as long as the block lasts: its tokenizer comes from a pipe."""
        path = folder / "tokenizer.json"
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        release = threading.Event()

        def feed():
            # Opening waits for the worker to open it; a worker that was ended reads no more.
            with suppress(BrokenPipeError), path.open("wb") as pipe:
                release.wait(60)
                pipe.write(content)

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        try:
            yield release
        finally:
            release.set()
            feeder.join(10)
            path.unlink()
            path.write_bytes(content)


@pytest.fixture(scope="session")
def probes():
    """Helpers of this folder."""
    return Probes
