"""Traffic that waits for nobody: requests leave by a schedule, and each one is accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.resilience.service import MODEL, OTHER_MODEL

HUNG_SECONDS = 30.0
"""No deadline of the service is longer than a few seconds; who waits this long waits for ever."""

# What a client may be told: an answer, or a refusal that says why.
CLEAN = frozenset({200, 422, 429, 503, 504})
_CONNECTIONS = 256
_REASON = re.compile(rb'"reason": ?"(\w+)"')
_OTHER_SHARE = 0.2
_STREAM_SHARE = 0.25
_WORDS = (
    "the screen is bright and the battery lasts", "it broke after a week", "how do I return it",
    "what is the warranty", "awful sound, good picture", "thank you", "where is my order",
)  # fmt: skip


@dataclass(slots=True)
class Ledger:
    """What became of the requests; times in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    other_statuses: Counter[int] = field(default_factory=Counter)
    """Of the model that is not hurt."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Of refusals and failures, as the service names them."""
    stream_errors: int = 0
    """Streams that began and ended with an error event: a clean end."""
    hung: int = 0
    broken: int = 0
    """Connections that ended without a whole answer."""
    seconds: list[float] = field(default_factory=list)
    """Of answers with 200."""
    refusal_seconds: list[float] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.statuses.values()) + self.hung + self.broken

    @property
    def clean(self) -> bool:
        """Whether every request got an answer or a clean refusal."""
        return not self.hung and not self.broken and set(self.statuses) <= CLEAN

    def share_ok(self) -> float:
        """Return the part that was answered with 200."""
        return self.statuses[200] / max(1, self.total)


def prompts(count: int, seed: int) -> list[bytes]:
    """Return request bodies: mostly different texts, two tasks, some of them streamed."""
    draw = random.Random(seed)
    bodies = []
    for number in range(count):
        prefix = "Sentiment: " if draw.random() < 0.5 else ""
        body = {
            "model": OTHER_MODEL if draw.random() < _OTHER_SHARE else MODEL,
            "prompt": f"{prefix}{draw.choice(_WORDS)} {number % 4000}",
            "max_tokens": draw.choice((1, 2, 4, 8)),
            "stream": draw.random() < _STREAM_SHARE,
        }
        bodies.append(json.dumps(body).encode())
    return bodies


class Traffic(threading.Thread):
    """Sends bodies at a rate from a thread with its own event loop."""

    def __init__(self, port: int, bodies: Sequence[bytes], rate: float | None) -> None:
        super().__init__(name="traffic", daemon=True)
        self._port = port
        self._bodies = bodies
        self._rate = rate
        """Requests per second; None sends all at once, each on a connection of its own."""
        self.ledger = Ledger()

    def run(self) -> None:
        """Send everything and wait for the last answer."""
        asyncio.run(self._send_all())

    async def _send_all(self) -> None:
        began = time.monotonic()
        room = asyncio.Semaphore(_CONNECTIONS if self._rate else len(self._bodies))
        tasks = set()
        for number, body in enumerate(self._bodies):
            if self._rate is not None:
                await asyncio.sleep(max(0.0, began + number / self._rate - time.monotonic()))
            await room.acquire()
            task = asyncio.ensure_future(self._account(body))
            tasks.add(task)
            task.add_done_callback(lambda done: (tasks.discard(done), room.release()))
        await asyncio.gather(*tasks)

    async def _account(self, body: bytes) -> None:
        ledger, began = self.ledger, time.monotonic()
        try:
            async with asyncio.timeout(HUNG_SECONDS):
                status, answer = await self._exchange(body)
        except TimeoutError:
            ledger.hung += 1
            return
        except (OSError, ValueError, asyncio.IncompleteReadError):
            ledger.broken += 1
            return
        seconds = time.monotonic() - began
        ledger.statuses[status] += 1
        if OTHER_MODEL.encode() in body:
            ledger.other_statuses[status] += 1
        if status == 200:
            ledger.seconds.append(seconds)
            ledger.stream_errors += b'"error"' in answer
        else:
            ledger.refusal_seconds.append(seconds)
            ledger.reasons[_reason(answer)] += 1

    async def _exchange(self, body: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nhost: benchmark\r\nconnection: close\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            answer = await reader.read()
            head, mark, rest = answer.partition(b"\r\n\r\n")
            whole = b"transfer-encoding: chunked" not in head.lower() or rest.endswith(b"0\r\n\r\n")
            if not mark or not whole:
                raise ValueError("the connection ended within the answer")
            return int(head.split(maxsplit=2)[1]), rest
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _reason(answer: bytes) -> str:
    """Return why an answer is no success."""
    found = _REASON.search(answer)
    return found[1].decode() if found else "unnamed"
