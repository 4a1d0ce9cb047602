"""Who is measured: the pinned versions, how each is started, and what it is asked.

Every peer runs the same ONNX file through the same session (`apps/onnx_session.py`) with one engine
thread, one worker and, where the server has a batcher, batches of at most 32. The settings are the
best ones found for each, by its own documentation; what differs is said in `note`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.models import ModelUnderTest

APPS = Path(__file__).parent / "apps"
OURS = "galen"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is to run: its interpreter, port, deadline and a folder for its own files."""

    python: Path
    port: int
    folder: Path
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """A command with the variables that go over the environment."""

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path


@dataclass(frozen=True, slots=True)
class Contestant:
    """One server."""

    name: str
    requirements: tuple[str, ...]
    """Pinned packages of its environment; none for the service itself."""
    path: Callable[[ModelUnderTest], str]
    body: Callable[[ModelUnderTest, Sequence[float]], dict[str, Any]]
    row: Callable[[Any], list[float]]
    """The output row in a decoded answer."""
    launch: Callable[[ModelUnderTest, Place], Launch]
    note: str = ""
    for_overload: bool = False
    """Whether it is a variant that makes sense in the overload benchmark only."""
    deadline_header: str = ""
    """The request header that tells the deadline in milliseconds, where the server has one."""

    def deadline_headers(self, seconds: float) -> dict[str, str]:
        """Return the headers that tell a deadline; the peers are told when they are started."""
        return {self.deadline_header: str(round(1000 * seconds))} if self.deadline_header else {}

    def encode(self, model: ModelUnderTest, row: Sequence[float]) -> bytes:
        """Return the body of a request for one row."""
        return json.dumps(self.body(model, row)).encode()


def _oip(model: ModelUnderTest, row: Sequence[float]) -> dict[str, Any]:
    """Return an Open Inference Protocol request."""
    tensor = {"name": model.input, "shape": [1, len(row)], "datatype": "FP32", "data": list(row)}
    return {"inputs": [tensor]}


def _oip_row(answer: Any) -> list[float]:
    data = answer["outputs"][0]["data"]
    return list(data[0] if isinstance(data[0], list) else data)


def _flat(_model: ModelUnderTest, row: Sequence[float]) -> dict[str, Any]:
    return {"data": list(row)}


def _script(script: str, *arguments: str) -> Callable[[ModelUnderTest, Place], Launch]:
    """Return a launcher of a script of `apps`."""

    def launch(model: ModelUnderTest, place: Place) -> Launch:
        values = {"{port}": str(place.port), "{milliseconds}": _milliseconds(place)}
        filled = [values.get(argument, argument) for argument in arguments]
        command = [str(place.python), str(APPS / script), *filled]
        return Launch(command, _variables(model, place), APPS)

    return launch


def _bentoml(model: ModelUnderTest, place: Place) -> Launch:
    command = [
        str(place.python), "-m", "bentoml", "serve", "bentoml_app:Model",
        "--host", "127.0.0.1", "--port", str(place.port),
    ]  # fmt: skip
    variables = {"BENTOML_DO_NOT_TRACK": "1", "BENTOML_HOME": str(place.folder)}
    return Launch(command, {**_variables(model, place), **variables}, APPS)


def _ours(model: ModelUnderTest, place: Place) -> Launch:
    """Start the real service; what it needs to know goes by one line of JSON."""
    options = {
        "repository": str(model.repository),
        "model": model.model,
        "state_dir": str(place.folder),
        "port": place.port,
    }
    command = [sys.executable, "-m", "benchmarks.serving.ours", json.dumps(options)]
    return Launch(command, {}, Path(__file__).parents[2])


def _milliseconds(place: Place) -> str:
    return str(round((place.deadline_seconds or 30.0) * 1000))


def _variables(model: ModelUnderTest, place: Place) -> dict[str, str]:
    return {
        "MODEL": str(model.file),
        "PORT": str(place.port),
        "WAIT_MILLISECONDS": str(model.wait_milliseconds),
        "TIMEOUT_SECONDS": str(place.deadline_seconds or 30.0),
    }


_MOSEC = ("mosec==0.9.8", "orjson>=3.10")
_MOSEC_OPTIONS = ("--address", "127.0.0.1", "--port", "{port}", "--log-level", "error")
# mosec queues 1,024 requests and gives each 3 s by default, far more than a deadline of 250 ms has
# room for. An operator who knows capacity and deadline can bound its queue: 192 requests wait about
# 110 ms on the costly model at 1,700 requests a second.
_TUNED_CAPACITY = 192

CONTESTANTS = (
    Contestant(
        OURS, (), lambda model: f"/v2/models/{model.model}/infer", _oip, _oip_row, _ours,
        "Open Inference Protocol, worker process, health checks and metrics on",
        deadline_header="X-Request-Timeout-Ms",
    ),
    Contestant(
        "mosec", _MOSEC, lambda _: "/inference", _flat, lambda answer: list(answer["data"]),
        _script("mosec_app.py", *_MOSEC_OPTIONS), "orjson instead of its own JSON",
    ),
    Contestant(
        "mosec-tuned", _MOSEC, lambda _: "/inference", _flat, lambda answer: list(answer["data"]),
        _script("mosec_app.py", *_MOSEC_OPTIONS, "--timeout", "{milliseconds}",
                "--capacity", str(_TUNED_CAPACITY)),
        "with a queue that fits the deadline", for_overload=True,
    ),
    Contestant(
        "litserve", ("litserve==0.2.19",), lambda _: "/predict", _flat,
        lambda answer: list(answer["data"]), _script("litserve_app.py"),
        "fast_queue, one API server",
    ),
    Contestant(
        "kserve", ("kserve==0.21.0",), lambda _: "/v2/models/model/infer", _oip, _oip_row,
        _script("kserve_app.py"),
        "Open Inference Protocol; no batching inside the process",
    ),
    Contestant(
        "bentoml", ("bentoml==1.4.39",), lambda _: "/predict",
        lambda _model, row: {"data": [list(row)]}, lambda answer: list(answer[0]), _bentoml,
        "adaptive batching",
    ),
)  # fmt: skip


def chosen(names: Sequence[str]) -> list[Contestant]:
    """Return the service itself and the named peers, in the table's order.

    Raises:
        ValueError: a name is not in the table.
    """
    known = {contestant.name for contestant in CONTESTANTS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no server {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return [c for c in CONTESTANTS if c.name == OURS or c.name in names]


def peers() -> list[str]:
    """Return the names of all peers, without variants."""
    return [c.name for c in CONTESTANTS if c.name != OURS and not c.for_overload]
