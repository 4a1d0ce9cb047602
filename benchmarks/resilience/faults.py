"""Faults at random, and how long the service takes to see them and to be back."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.resilience.service import MODEL, EngineView, Service

KINDS = ("kill", "freeze", "hang", "poison_crash", "poison_hang")
_LOOK_SECONDS = 0.02
_LIMIT_SECONDS = 60.0
_REFUSAL_SECONDS = 0.9
_VERDICT_SECONDS = 180.0
_MARKERS = {"poison_crash": "[[crash]]", "poison_hang": "[[hang]]"}


@dataclass(frozen=True, slots=True)
class FaultResult:
    """One fault. Seconds since it was injected; None where it was not seen within the limit."""

    kind: str
    detected_seconds: float | None
    """Until the service says that the engine stalls, restarts or is another process."""
    recovered_seconds: float | None
    """Until another worker is up and has answered a request with 200."""


@dataclass(slots=True)
class Chaos:
    """Injects faults one after the other while traffic flows."""

    service: Service
    draw: random.Random
    results: list[FaultResult] = field(default_factory=list)
    poisons: list[str] = field(default_factory=list)
    _refused: bool = False

    def prepare(self) -> None:
        """Put the bugs into the engine that poison requests will meet."""
        for kind, marker in _MARKERS.items():
            effect = kind.removeprefix("poison_")
            body = {
                "fault": "poison_text",
                "parameters": {"marker": marker, "kind": effect, "model": MODEL},
            }
            status, text = self.service.post("/admin/faults", body)
            if status != 201:
                raise OSError(f"the fault was not injected: {text!r}")

    def run_while(self, flowing: Callable[[], bool]) -> None:
        """Hurt the service until the traffic ends; every kind comes up before one repeats."""
        kinds: list[str] = []
        while flowing():
            if not kinds:
                kinds = self.draw.sample(KINDS, len(KINDS))
            self.results.append(self._hurt(kinds.pop()))
            time.sleep(self.draw.uniform(0.3, 1.5))

    def quarantined(self) -> int:
        """Wait until the sandbox has judged; return how many poison requests are refused with 422.

        Each is sent once more: what is not quarantined hurts again.
        """
        until = time.monotonic() + _VERDICT_SECONDS
        while time.monotonic() < until:
            poison = self.service.poison()
            if not poison["investigating"] and not poison["waiting"]:
                break
            time.sleep(0.2)
        return sum(self._complete(text)[0] == 422 for text in self.poisons)

    def _hurt(self, kind: str) -> FaultResult:
        before = self.service.engine()
        began = time.monotonic()
        if kind in _MARKERS:
            began = self._poison(f"{_MARKERS[kind]} {len(self.poisons)}")
        elif kind == "hang":
            self.service.post("/admin/faults", {"fault": "engine_hang"})
        elif before.pid is not None:
            os.kill(before.pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        detected = self._wait(lambda view: not view.up or view.state == "stalled", before, began)
        recovered = self._wait(lambda view: view.up and view.pid != before.pid, None, began)
        while recovered is not None and self._complete("are you there")[0] != 200:
            recovered = time.monotonic() - began
            if recovered > _LIMIT_SECONDS:
                recovered = None
        return FaultResult(kind, detected, recovered)

    def _wait(
        self, seen: Callable[[EngineView], bool], before: EngineView | None, began: float
    ) -> float | None:
        """Return when something was seen, or another process than before."""
        while time.monotonic() - began < _LIMIT_SECONDS:
            view = self.service.engine()
            if seen(view) or (before is not None and view.pid != before.pid):
                return time.monotonic() - began
            time.sleep(_LOOK_SECONDS)
        return None

    def _poison(self, text: str) -> float:
        """Send a poison request until the engine takes it; return when that was.

        A service that is busy refuses it like any other request, and then nothing is hurt.
        """
        self.poisons.append(text)
        until = time.monotonic() + _LIMIT_SECONDS
        while True:
            began = time.monotonic()
            sent = threading.Thread(target=self._send_poison, args=(text,), daemon=True)
            self._refused = False
            sent.start()
            sent.join(_REFUSAL_SECONDS)  # a refusal is quick; who is worked on may wait
            if sent.is_alive() or not self._refused or began > until:
                return began

    def _send_poison(self, text: str) -> None:
        status, answer = self._complete(text)
        self._refused = status == 429 or (status == 503 and b"engine_failed" not in answer)

    def _complete(self, text: str) -> tuple[int, bytes]:
        body = {"model": MODEL, "prompt": text, "max_tokens": 2}
        return self.service.post("/v1/completions", body)


def false_restarts(service: Service, before: int) -> int:
    """Return how many workers were ended or died since."""
    return service.engine().unplanned_restarts - before


def readable(poison: dict[str, object]) -> str:
    """Return what the sandbox did, for people."""
    return json.dumps({key: poison[key] for key in ("trials", "outcomes")})
