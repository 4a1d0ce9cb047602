"""Arrivals of a production trace, asked of a service open loop over connections that are kept."""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

TRACES = {
    "chat": "AzureLLMInferenceTrace_conv.csv",
    "sentiment": "AzureLLMInferenceTrace_code.csv",
}
"""The two services of the trace, and the task that stands for each: long answers, and short ones."""

HUNG_SECONDS = 30.0
# Prompts and answers of the trace are four times as long as a model with 256 tokens of context takes.
_SCALE = 4
_LONGEST_PROMPT_CHARACTERS = 300
_LONGEST_ANSWER_TOKENS = {"chat": 96, "sentiment": 24}
_CHARACTERS_PER_TOKEN = 3
_WORDS = (
    "the screen is bright and the battery lasts", "it broke after a week", "how do I return it",
    "what is the warranty", "awful sound, good picture", "thank you", "where is my order",
    "the service is slow since this morning", "the fan is loud", "I would buy it again",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it comes, in seconds from the first one."""

    at: float
    task: str
    body: bytes


def read_trace(folder: Path, seed: int) -> list[Arrival]:
    """Read both services of the trace, merged in the order of their time.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is not the trace.
    """
    draw = random.Random(seed)
    rows: list[tuple[float, str, int, int]] = []
    for task, name in TRACES.items():
        with (folder / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                # Seven digits of a second; Python reads six.
                moment = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                rows.append((moment, task, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    rows.sort()
    first = rows[0][0]
    return [
        Arrival(moment - first, task, _body(draw, task, context, generated))
        for moment, task, context, generated in rows
    ]


def segment(trace: Sequence[Arrival], rate: float, seconds: float) -> list[Arrival]:
    """Cut out as many arrivals as the rate gives in this time, and squeeze their own gaps into it.

    Raises:
        ValueError: the trace is too short.
    """
    count = max(2, round(rate * seconds))
    start = (len(trace) - count) // 2
    if start < 0:
        raise ValueError(f"the trace has {len(trace)} requests, {count} are needed: take less time")
    rows = trace[start : start + count]
    first, scale = rows[0].at, seconds / (rows[-1].at - rows[0].at)
    return [Arrival((row.at - first) * scale, row.task, row.body) for row in rows]


@dataclass(slots=True)
class TaskFigures:
    """What became of the requests of one task; latencies in seconds from when each should leave."""

    latencies: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    """``ok``, the reason of a refusal or failure, or ``no answer``."""
    degraded: int = 0
    """Answers that say that they are not what full service would have given."""

    @property
    def total(self) -> int:
        """All requests."""
        return self.outcomes.total()

    @property
    def error_share(self) -> float:
        """Share of requests that got no answer to their question."""
        return 1.0 - self.outcomes["ok"] / max(1, self.total)

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latency of answers; infinite without any."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else float("inf")

    def within(self, seconds: float) -> int:
        """Count the answers that came in time."""
        return sum(latency <= seconds for latency in self.latencies)


class Replayer:
    """Sends requests to one port and accounts for each."""

    def __init__(self, port: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._clock = clock
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.figures = {task: TaskFigures() for task in TRACES}
        self.latest_start = 0.0
        """How late the client itself was at worst, in seconds."""

    async def replay(self, arrivals: Sequence[Arrival]) -> None:
        """Send each request at its time, whatever became of the others."""
        began = self._clock()
        async with asyncio.TaskGroup() as group:
            for arrival in arrivals:
                due = began + arrival.at
                await asyncio.sleep(max(0.0, due - self._clock()))
                self.latest_start = max(self.latest_start, self._clock() - due)
                group.create_task(self._account(arrival, due))
        self._close()

    async def saturate(self, arrivals: Sequence[Arrival], clients: int, seconds: float) -> float:
        """Ask without a pause with so many clients; return the answers per second."""
        began = self._clock()
        queue = itertools.cycle(arrivals)

        async def client() -> None:
            while (now := self._clock()) < began + seconds:
                await self._account(next(queue), now)

        await asyncio.gather(*(client() for _ in range(clients)))
        self._close()
        answered = sum(figures.outcomes["ok"] for figures in self.figures.values())
        return answered / (self._clock() - began)

    async def _account(self, arrival: Arrival, due: float) -> None:
        outcome, degraded = "no answer", False
        try:
            async with asyncio.timeout(HUNG_SECONDS):
                outcome, degraded = await self._exchange(arrival.body)
        except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError):
            pass  # an outcome like the others, and counted as one
        figures = self.figures[arrival.task]
        figures.outcomes[outcome] += 1
        if outcome == "ok":
            figures.latencies.append(self._clock() - due)
            figures.degraded += degraded

    async def _exchange(self, body: bytes) -> tuple[str, bool]:
        reader, writer = await self._connection()
        try:
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nhost: benchmark\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            answer = await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        self._free.append((reader, writer))
        status = head.split(maxsplit=2)[1].decode()
        reason = "" if status == "200" else json.loads(answer)["error"]["reason"]
        return reason or "ok", b"x-galen-degradation: 0" not in head

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()  # idle for so long that the server has closed it
        return await asyncio.open_connection("127.0.0.1", self._port)

    def _close(self) -> None:
        for _, writer in self._free:
            writer.close()
        self._free.clear()


def _body(draw: random.Random, task: str, context: int, generated: int) -> bytes:
    """Build a request whose lengths follow the trace, scaled to a small model."""
    characters = min(_LONGEST_PROMPT_CHARACTERS, context * _CHARACTERS_PER_TOKEN // _SCALE)
    text = draw.choice(_WORDS)
    while len(text) < characters:
        text += f" {draw.choice(_WORDS)} {draw.randrange(1000)}"
    tokens = min(_LONGEST_ANSWER_TOKENS[task], max(1, generated // _SCALE))
    body = {"prompt": text[:characters] or text, "task": task, "max_tokens": tokens}
    return json.dumps({**body, "ignore_eos": True}).encode()
