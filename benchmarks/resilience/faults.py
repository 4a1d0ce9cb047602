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
# A deadline in line, and the time after which a stall is seen.
_MEETING_SECONDS = 4.0
_ASKS, _ASK_SECONDS = 240, 0.25
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
        return sum(self._is_quarantined(text) for text in self.poisons)

    def _is_quarantined(self, text: str) -> bool:
        """Send a poison request until it is not refused for another reason.

        The small model that answers while the service is degraded is not poisoned by it.
        """
        for _ in range(_ASKS):
            status, answer = self._complete(text)
            degraded = status == 200 and json.loads(answer)["model"] != MODEL
            if status not in {429, 503} and not degraded:
                break
            time.sleep(_ASK_SECONDS)
        return status == 422

    def _hurt(self, kind: str) -> FaultResult:
        before = self.service.engine()
        if kind in _MARKERS:
            began, detected = self._poison(f"{_MARKERS[kind]} {len(self.poisons)}", before)
        else:
            began = time.monotonic()
            if kind == "hang":
                self.service.post("/admin/faults", {"fault": "engine_hang"})
            elif before.pid is not None:
                os.kill(before.pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
            detected = self._wait(_hurting, before, began, _LIMIT_SECONDS)
        recovered = self._wait(
            lambda view: view.up and view.pid != before.pid, None, began, _LIMIT_SECONDS
        )
        while recovered is not None and self._complete("are you there")[0] != 200:
            recovered = time.monotonic() - began
            if recovered > _LIMIT_SECONDS:
                recovered = None
        return FaultResult(kind, detected, recovered)

    def _poison(self, text: str, before: EngineView) -> tuple[float, float | None]:
        """Send a poison request until the engine meets it; return when that was, and was seen.

        A service that is busy refuses it, or lets it expire in line, like any other request.
        """
        self.poisons.append(text)
        until = time.monotonic() + _LIMIT_SECONDS
        while True:
            began = time.monotonic()
            sent = threading.Thread(target=self._complete, args=(text,), daemon=True)
            sent.start()
            detected = self._wait(_hurting, before, began, _MEETING_SECONDS)
            sent.join()
            if detected is not None or began > until:
                return began, detected

    def _wait(
        self,
        seen: Callable[[EngineView], bool],
        before: EngineView | None,
        began: float,
        limit_seconds: float,
    ) -> float | None:
        """Return when something was seen, or another process than before."""
        while time.monotonic() - began < limit_seconds:
            view = self.service.engine()
            if seen(view) or (before is not None and view.pid != before.pid):
                return time.monotonic() - began
            time.sleep(_LOOK_SECONDS)
        return None

    def _complete(self, text: str) -> tuple[int, bytes]:
        body = {"model": MODEL, "prompt": text, "max_tokens": 2}
        return self.service.post("/v1/completions", body)


def _hurting(view: EngineView) -> bool:
    return not view.up or view.state == "stalled"


def readable(poison: dict[str, object]) -> str:
    """Return what the sandbox did, for people."""
    return json.dumps({key: poison[key] for key in ("trials", "outcomes")})
