"""A real local HTTP server that misbehaves on request, and makers of incidents and journals."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from analysis.findings import (
    Anomaly,
    Direction,
    Evidence,
    Hypothesis,
    Incident,
    IncidentState,
    Severity,
    Verdict,
)
from analysis.journal import Journal


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ScriptedServer:
    """Answers each POST with the next behaviour of its script, then with 200 ``ok``."""

    url: str
    script: list[tuple[str, Any]] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Event = field(default_factory=threading.Event)

    def answers(self, status: int, body: str = "", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.script.append(("answer", (status, body, named)))

    def hangs(self) -> None:
        self.script.append(("hang", None))

    def drops(self) -> None:
        self.script.append(("drop", None))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    state = ScriptedServer(url="")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kind, what = state.script.pop(0) if state.script else ("answer", (200, "ok", {}))
            state.received.append(Received(self.path, dict(self.headers.items()), body))
            state.arrived.set()
            if kind == "hang":
                state.release.wait(20)
                return
            if kind == "drop":
                self.close_connection = True
                return
            status, text, headers = what
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/services/T000/B000/verysecret"
    yield state
    state.release.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join(timeout=5)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def _evidence(statement: str, weight: float, **changes: Any) -> Evidence:
    fields: dict[str, Any] = {
        "entity": "service/llm",
        "signal": "engine_step_age_seconds",
        "unit": "seconds",
        "direction": Direction.UP,
        "weight": weight,
        "statement": statement,
    }
    return Evidence(**{**fields, **changes})


def build_incident(incident_id: str = "inc-1", **changes: Any) -> Incident:
    """An incident of the kind that the bundled service has when its engine hangs."""
    hang = Hypothesis(
        rank=1,
        cause="engine_hang",
        title="The engine hangs",
        entity="service/llm",
        confidence=0.93,
        log_odds=2.6,
        evidence=(
            _evidence("The engine has finished no step for 12 s; normal is below 0.4 s.", 2.1),
            _evidence(
                "5 requests wait; normal is 0 to 2.", 0.9, signal="llm_queue_depth", unit="requests"
            ),
        ),
        against=(_evidence("The GPU answers its driver.", -0.3, signal="gpu_available"),),
        action="engine_restart",
        next_check="A stack dump of the worker would tell a hang from a slow model.",
    )
    overload = Hypothesis(
        rank=2,
        cause="overload",
        title="More traffic than it can take",
        entity="service/llm",
        confidence=0.05,
        log_odds=-2.9,
    )
    fields: dict[str, Any] = {
        "id": incident_id,
        "state": IncidentState.OPEN,
        "severity": Severity.CRITICAL,
        "verdict": Verdict.FAULT,
        "title": "Engine makes no progress",
        "entity": "service/llm",
        "onset_seconds": 1000.0,
        "opened_seconds": 1004.0,
        "updated_seconds": 1004.0,
        "anomalies": (
            Anomaly(
                entity="service/llm",
                signal="engine_step_age_seconds",
                unit="seconds",
                time_seconds=1004.0,
                onset_seconds=1000.0,
                score=6.5,
                direction=Direction.UP,
                observed=12.0,
                expected=0.1,
                low=0.0,
                high=0.4,
                detectors=("limits",),
            ),
        ),
        "hypotheses": (hang, overload),
    }
    return Incident(**{**fields, **changes})


@pytest.fixture
def make_incident() -> Callable[..., Incident]:
    return build_incident
