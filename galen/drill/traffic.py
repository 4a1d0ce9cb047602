"""Traffic: open-loop requests to the service, in the shape of a public production trace.

The default arrivals follow the conversation service of the Azure LLM inference trace 2023 (Patel et
al., "Splitwise", ISCA 2024; CC-BY-4.0): within a minute its gaps have a coefficient of variation of
1.06, its rate per minute moves between 0.58 and 1.55 times the median, and its answers have the
quantiles of ``_ANSWER_TOKENS``. Answers are scaled to what the bundled model may produce.
"""

from __future__ import annotations

import asyncio
import csv
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import httpx
import structlog

from galen.errors import ConfigError
from inference.demo.corpus import chat_examples, sentiment_examples

log = structlog.get_logger(__name__)

_GAP_VARIATION = 1.06
_RATE_SWING = (0.58, 1.55)
_ANSWER_TOKENS = (
    (0.0, 20),
    (0.05, 41),
    (0.25, 85),
    (0.5, 129),
    (0.75, 395),
    (0.95, 451),
    (1.0, 601),
)
_LONGEST_ANSWER_TOKENS = 150
_SENTIMENT_SHARE = 0.4
_BAD_REQUESTS: tuple[tuple[str, bytes], ...] = (
    ("/v1/completions", b'{"model": "demo-lm", "prompt": '),
    (
        "/v1/chat/completions",
        b'{"model": "no-such-model", "messages": [{"role": "user", "content": "x"}]}',
    ),
    ("/v1/chat/completions", b'{"model": "demo-lm", "messages": "not a list"}'),
    ("/v1/completion", b"{}"),
)


class Arrival(NamedTuple):
    """One request of a plan: when, measured from the request before, and how long its answer may be."""

    gap_seconds: float
    answer_tokens: int


def shaped_arrivals(rate_per_second: float, rng: random.Random) -> Iterator[Arrival]:
    """Draw arrivals for ever with a mean rate, in the shape of the trace (see the module)."""
    alpha = 1 / _GAP_VARIATION**2
    elapsed, phase = 0.0, rng.uniform(0, 2 * math.pi)
    low, high = _RATE_SWING
    while True:
        # The trace's slow swing, told in two minutes rather than in an hour.
        wave = 0.5 + 0.5 * math.sin(phase + 2 * math.pi * elapsed / 120.0)
        rate = rate_per_second * (low + (high - low) * wave)
        gap = rng.gammavariate(alpha, 1 / (alpha * rate))
        elapsed += gap
        yield Arrival(gap, _draw_answer_tokens(rng))


def _draw_answer_tokens(rng: random.Random) -> int:
    point = rng.random()
    for (p0, t0), (p1, t1) in pairwise(_ANSWER_TOKENS):
        if point <= p1:
            tokens = t0 + (t1 - t0) * (point - p0) / (p1 - p0)
            return max(4, round(tokens / _ANSWER_TOKENS[-1][1] * _LONGEST_ANSWER_TOKENS))
    return _LONGEST_ANSWER_TOKENS


def trace_arrivals(path: Path) -> Iterator[Arrival]:
    """Replay a trace exactly: a CSV with ``TIMESTAMP`` and ``GeneratedTokens``, as Azure publishes it.

    Raises:
        ConfigError: naming the file and line that cannot be read.
    """
    previous: float | None = None
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                # Seven decimals are one more than datetime reads.
                moment = datetime.fromisoformat(row["TIMESTAMP"][:26] + "+00:00").timestamp()
                tokens = int(row["GeneratedTokens"])
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{path}:{line}: not a trace row: {error}",
                    fix="Columns TIMESTAMP and GeneratedTokens are needed, as in the Azure LLM trace.",
                ) from error
            gap = 0.0 if previous is None else max(0.0, moment - previous)
            previous = moment
            yield Arrival(gap, min(tokens, _LONGEST_ANSWER_TOKENS))


@dataclass(frozen=True, slots=True)
class TrafficStats:
    """What the clients saw so far, by HTTP status; 0 stands for no answer at all."""

    sent: int
    statuses: dict[int, int]
    dropped: int
    """Requests not sent because too many were in flight: the generator's own limit."""


class Traffic:
    """Sends requests from a thread of its own until stopped; surges and storms can be switched on."""

    def __init__(
        self,
        base_url: str,
        arrivals: Callable[[], Iterator[Arrival]],
        *,
        rng: random.Random,
        deadline_seconds: float = 5.0,
        max_in_flight: int = 200,
    ) -> None:
        self._base_url = base_url
        self._arrivals = arrivals
        self._rng = rng
        self._deadline_seconds = deadline_seconds
        self._max_in_flight = max_in_flight
        self._multiplier = 1.0
        self._bad_requests_per_second = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="traffic", daemon=True)
        self._statuses: Counter[int] = Counter()
        self._sent = self._dropped = 0
        seed = rng.randrange(2**31)
        self._chats = [example.text for example in chat_examples(200, seed, "heldout")]
        self._sentences = [example.text for example in sentiment_examples(200, seed, "heldout")]

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sending and wait for the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=self._deadline_seconds + 2)

    def surge(self, multiplier: float) -> None:
        """Multiply the arrival rate; 1 is normal."""
        self._multiplier = multiplier

    def storm(self, bad_requests_per_second: float) -> None:
        """Send this many requests a second that no server should accept; 0 is none."""
        self._bad_requests_per_second = bad_requests_per_second

    def calm(self) -> None:
        """End surges and storms."""
        self._multiplier, self._bad_requests_per_second = 1.0, 0.0

    def stats(self) -> TrafficStats:
        """Return the counts so far."""
        return TrafficStats(self._sent, dict(self._statuses), self._dropped)

    def _main(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=self._max_in_flight, max_keepalive_connections=64)
        client = httpx.AsyncClient(
            base_url=self._base_url, timeout=self._deadline_seconds, limits=limits
        )
        async with client, asyncio.TaskGroup() as group:
            senders = [
                group.create_task(self._send_good(client, group)),
                group.create_task(self._send_bad(client, group)),
            ]
            await asyncio.to_thread(self._stop.wait)
            for sender in senders:
                sender.cancel()

    async def _send_good(self, client: httpx.AsyncClient, group: asyncio.TaskGroup) -> None:
        in_flight: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while True:
            for arrival in self._arrivals():
                due += arrival.gap_seconds / self._multiplier
                # A late start must not be made up for by a burst that nobody asked for.
                due = max(due, time.monotonic() - 0.5)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if len(in_flight) >= self._max_in_flight:
                    self._dropped += 1
                    continue
                path, body = self._request(arrival)
                task = group.create_task(self._send(client, path, json=body))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)

    async def _send_bad(self, client: httpx.AsyncClient, group: asyncio.TaskGroup) -> None:
        while True:
            rate = self._bad_requests_per_second
            await asyncio.sleep(1 / rate if rate else 0.2)
            if rate:
                path, content = self._rng.choice(_BAD_REQUESTS)
                group.create_task(self._send(client, path, content=content))

    def _request(self, arrival: Arrival) -> tuple[str, dict[str, object]]:
        if self._rng.random() < _SENTIMENT_SHARE:
            text = self._rng.choice(self._sentences)
            return "/v1/completions", {
                "model": "demo-lm", "task": "sentiment", "prompt": text, "max_tokens": 4,
            }  # fmt: skip
        messages = [{"role": "user", "content": self._rng.choice(self._chats)}]
        return "/v1/chat/completions", {
            "model": "demo-lm", "messages": messages, "max_tokens": arrival.answer_tokens,
        }  # fmt: skip

    async def _send(
        self,
        client: httpx.AsyncClient,
        path: str,
        *,
        json: object = None,
        content: bytes | None = None,
    ) -> None:
        self._sent += 1
        headers = {"content-type": "application/json"}
        try:
            answer = await client.post(path, json=json, content=content, headers=headers)
            self._statuses[answer.status_code] += 1
        except httpx.HTTPError as error:
            self._statuses[0] += 1
            log.debug("request_unanswered", path=path, error=str(error))
