"""The open-loop client: requests leave by a schedule that no answer can hold up.

``python -m benchmarks.serving.loadgen`` runs it in a process of its own. A closed loop sends less
when a server slows down, and so hides what users of an overloaded server would see (coordinated
omission). Here arrivals are a Poisson process drawn beforehand; each request's time runs from its
place in the schedule, even when all connections are busy and it has to wait inside the client.

One thread, one request on a connection at a time, connections opened as they are needed. A tick of
one millisecond sends what is due: `lag` in the result says how late requests left, so that a client
that could not keep up is seen and not mistaken for a slow server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import sys
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import numpy.typing as npt
import uvloop

_TICK_SECONDS = 0.001
_NICE = -5
_OPEN = -1
"""Status of a request that has no answer."""
_BROKEN = -2
"""Status of a request whose connection ended, or could not be opened."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of every request, in the order of the schedule; times in seconds."""

    scheduled: Floats
    sent: Floats
    done: Floats
    status: npt.NDArray[np.int64]


class _Connection(asyncio.Protocol):
    """One persistent connection; carries at most one request."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser
        self._keep_alive = True
        self.number: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.number is not None:
            self._write()

    def send(self, number: int) -> None:
        """Send a request now, or as soon as the connection is open."""
        self.number = number
        self._parser = httptools.HttpResponseParser(self)
        if self._transport is not None:
            self._write()

    def _write(self) -> None:
        assert self._transport is not None
        self._client.left(self.number)
        self._transport.write(self._client.payload)

    def data_received(self, data: bytes) -> None:
        if self.number is None:
            self.close()  # an answer that nobody asked for, a 408 to an idle connection
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_complete(self) -> None:
        number, self.number = self.number, None
        if number is None or self._parser.get_status_code() == 100:
            self.number = number
            return
        self._keep_alive = self._parser.should_keep_alive()
        self._client.answered(number, self._parser.get_status_code())
        if self._keep_alive:
            self._client.free(self)
        else:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        number, self.number = self.number, None
        self._client.lost(self, number)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()


class Client:
    """Sends the requests of a schedule and writes down when each was sent and answered."""

    def __init__(self, url: str, payload: bytes, schedule: Floats, most_connections: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self.payload = payload
        self._schedule = schedule
        self._most = most_connections
        self._open = 0
        self._idle: list[_Connection] = []
        self._backlog: deque[int] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unanswered = len(schedule)
        self._sent = np.full(len(schedule), np.nan)
        self._done = np.full(len(schedule), np.nan)
        self._status = np.full(len(schedule), _OPEN, dtype=np.int64)
        self._started = 0.0
        self._finished = asyncio.Event()

    async def run(self, grace_seconds: float) -> Outcome:
        """Send everything by the schedule; then wait for the last answers, as long as the grace."""
        loop = asyncio.get_running_loop()
        self._started = loop.time()
        due = np.searchsorted
        sent = 0
        while sent < len(self._schedule):
            now = loop.time() - self._started
            until = int(due(self._schedule, now, side="right"))
            for number in range(sent, until):
                self._start(number)
            sent = until
            await asyncio.sleep(_TICK_SECONDS)
        try:
            await asyncio.wait_for(self._finished.wait(), grace_seconds)
        except TimeoutError:
            sys.stderr.write(f"{self._unanswered} requests had no answer after the grace\n")
        outcome = Outcome(
            self._schedule.copy(), self._sent.copy(), self._done.copy(), self._status.copy()
        )
        for connection in self._idle:
            connection.close()
        return outcome

    def _start(self, number: int) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.send(number)
                return
        if self._open >= self._most:
            self._backlog.append(number)
            return
        self._open += 1
        task = asyncio.get_running_loop().create_task(self._connect(number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, number: int) -> None:
        connection = _Connection(self)
        connection.send(number)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: connection, self._host, self._port)
        except OSError:
            connection.number = None
            self.lost(connection, number)

    def left(self, number: int | None) -> None:
        """Write down that a request left."""
        if number is not None:
            self._sent[number] = asyncio.get_running_loop().time() - self._started

    def answered(self, number: int, status: int) -> None:
        """Write down an answer."""
        self._done[number] = asyncio.get_running_loop().time() - self._started
        self._status[number] = status
        self._unanswered -= 1
        if not self._unanswered:
            self._finished.set()

    def free(self, connection: _Connection) -> None:
        """Take back a connection that may carry another request."""
        if self._backlog:
            connection.send(self._backlog.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: _Connection, number: int | None) -> None:
        """Count the end of a connection against the request that it carried."""
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if number is not None:
            self.answered(number, _BROKEN)
        if self._backlog:
            self._start(self._backlog.popleft())


def poisson(rate: float, seconds: float, seed: int) -> Floats:
    """Return the arrival times of a Poisson process, in seconds from its start."""
    random = np.random.default_rng(seed)
    count = int(rate * seconds + 6 * np.sqrt(rate * seconds)) + 16
    times = np.cumsum(random.exponential(1.0 / rate, count))
    return cast("Floats", times[times < seconds])


def request_bytes(url: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Return the bytes of a POST."""
    parts = urlsplit(url)
    lines = [
        f"POST {parts.path} HTTP/1.1",
        f"host: {parts.netloc}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


@dataclass(frozen=True, slots=True)
class Summary:
    """An open-loop measurement after its warm-up; rates per second, the rest milliseconds."""

    offered: float
    answered: float
    """Status 200, however late."""
    goodput: float
    """Status 200 within the deadline."""
    refused: float
    """Any other status."""
    p50_ms: float | None
    """Of answers with status 200."""
    p99_ms: float | None
    refusal_p50_ms: float | None
    refusal_p99_ms: float | None
    unanswered: int
    """No answer at all: a broken connection, or nothing before the end of the grace."""
    lag_p99_ms: float
    """How long after its time a request left the client, waiting for a connection included."""
    statuses: dict[str, int]


def summarise(outcome: Outcome, deadline_seconds: float, warm_seconds: float) -> Summary:
    """Judge the requests that were due after the warm-up, each from its place in the schedule."""
    counted = outcome.scheduled >= warm_seconds
    scheduled, status = outcome.scheduled[counted], outcome.status[counted]
    latency = outcome.done[counted] - scheduled
    lag = outcome.sent[counted] - scheduled
    span = max(1e-9, float(scheduled[-1]) - warm_seconds) if len(scheduled) else 1e-9
    answered = status == 200
    refused = (status > 0) & ~answered
    codes, counts = np.unique(status[status > 0], return_counts=True)
    return Summary(
        offered=len(scheduled) / span,
        answered=float(answered.sum()) / span,
        goodput=float((answered & (latency <= deadline_seconds)).sum()) / span,
        refused=float(refused.sum()) / span,
        p50_ms=_percentile(latency[answered], 50),
        p99_ms=_percentile(latency[answered], 99),
        refusal_p50_ms=_percentile(latency[refused], 50),
        refusal_p99_ms=_percentile(latency[refused], 99),
        unanswered=int((status < 0).sum()),
        lag_p99_ms=_percentile(lag[~np.isnan(lag)], 99) or 0.0,
        statuses={str(code): int(count) for code, count in zip(codes, counts, strict=True)},
    )


def _percentile(seconds: Floats, percent: float) -> float | None:
    return round(1e3 * float(np.percentile(seconds, percent)), 3) if len(seconds) else None


def main() -> None:
    """Measure and print a summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--header", action="append", default=[], help="NAME=VALUE")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--warm-seconds", type=float, default=2.0)
    parser.add_argument("--grace-seconds", type=float, default=30.0)
    parser.add_argument("--deadline-seconds", type=float, default=0.25)
    parser.add_argument("--connections", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--core", type=int, help="run on this core only")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    with contextlib.suppress(PermissionError):
        os.nice(_NICE)  # a client that is kept waiting would measure itself; `lag` tells
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    headers = dict(item.split("=", 1) for item in options.header)
    payload = request_bytes(options.url, options.body.read_bytes(), headers)
    schedule = poisson(options.rate, options.warm_seconds + options.seconds, options.seed)

    async def run() -> Outcome:
        client = Client(options.url, payload, schedule, options.connections)
        return await client.run(options.grace_seconds)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(run())
    summary = summarise(outcome, options.deadline_seconds, options.warm_seconds)
    print(json.dumps(asdict(summary)))


if __name__ == "__main__":
    main()
