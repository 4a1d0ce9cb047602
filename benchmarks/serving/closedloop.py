"""A closed loop in Python, for machines without wrk and for the smoke test of this harness."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from benchmarks.serving.loadgen import Client, request_bytes
from benchmarks.serving.wrk import Load

_MOST_PER_SECOND = 100_000


class _Endless(Client):
    """Every answer is followed by the next request on the same connection, until time is over."""

    def __init__(self, url: str, payload: bytes, connections: int, seconds: float) -> None:
        room = np.zeros(int(_MOST_PER_SECOND * seconds) + connections)
        super().__init__(url, payload, room, connections)
        self._connections = connections
        self._seconds = seconds
        self._next = 0
        self._running = 0

    async def measure(self, grace_seconds: float) -> Load:
        """Run, and return what came back."""
        loop = asyncio.get_running_loop()
        self._started = loop.time()
        for _ in range(self._connections):
            self._follow()
        await asyncio.wait_for(self._finished.wait(), self._seconds + grace_seconds)
        latency = (self._done - self._sent)[: self._next]
        status = self._status[: self._next]
        answered = latency[status == 200]
        p50, p99, most = (
            np.percentile(answered, [50, 99, 100]) * 1e3 if len(answered) else [0.0] * 3
        )
        errors = int((status != 200).sum())
        return Load(len(answered), self._seconds, float(p50), float(p99), float(most), errors)

    def _follow(self) -> None:
        """Send the next request, or end."""
        if asyncio.get_running_loop().time() - self._started < self._seconds:
            self._running += 1
            self._next += 1
            self._start(self._next - 1)
        elif not self._running:
            self._finished.set()

    def answered(self, number: int, status: int) -> None:
        super().answered(number, status)
        self._running -= 1
        # Once the connection is back among the idle ones.
        asyncio.get_running_loop().call_soon(self._follow)


def measure(url: str, body: Path, connections: int, seconds: float) -> Load:
    """Post a body over persistent connections, each waiting for its answer before the next."""
    payload = request_bytes(url, body.read_bytes(), {})

    async def run() -> Load:
        return await _Endless(url, payload, connections, seconds).measure(30.0)

    return asyncio.run(run())
