"""History from Prometheus into the series store, so that detection has something to learn from.

Time goes by in pieces, from old to new. What is done stands in a small file beside the store: a run that
was stopped, or broke off, goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from collectors.backoff import Backoff
from collectors.contract import CollectorError, Sample
from collectors.fleet_reader import FleetReader, PrometheusQuery
from collectors.pieces import read_in_pieces
from collectors.promapi import Matrix, PrometheusClient, PrometheusError

log = structlog.get_logger(__name__)

_POINTS_A_PIECE = 1000
"""Bounds what one piece holds in memory: a thousand series make a million samples of it."""
_A_MILLISECOND = 0.001


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What a run did."""

    samples: int
    done_until_seconds: float
    resumed_from_seconds: float | None
    notes: Sequence[str]
    """What is missing: refused queries, partial answers."""


class Checkpoint:
    """How far a backfill of one server, these queries and this step has come.

    Args:
        path: the file.
        what: everything that makes two runs the same backfill.
    """

    def __init__(self, path: Path, what: Sequence[str]) -> None:
        self._path = path
        self._digest = hashlib.sha256("\n".join(what).encode()).hexdigest()

    def load(self, start_seconds: float) -> float | None:
        """Return until when a backfill that began no later than ``start_seconds`` has come."""
        try:
            found = json.loads(self._path.read_text("utf-8"))
            same = found["what"] == self._digest and found["start_seconds"] <= start_seconds
            return float(found["done_until_seconds"]) if same else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint_ignored", path=str(self._path), error=str(error))
            return None

    def save(self, start_seconds: float, done_until_seconds: float) -> None:
        """Write down that all from ``start_seconds`` to ``done_until_seconds`` is in the store."""
        text = json.dumps(
            {
                "what": self._digest,
                "start_seconds": start_seconds,
                "done_until_seconds": done_until_seconds,
            }
        )
        draft = self._path.with_name(f"{self._path.name}.new")
        draft.write_text(text, "utf-8")
        draft.replace(self._path)


class Backfill:
    """Reads history by range queries and writes it to a store.

    A failing server is asked again after a pause, ``attempts`` times in a row. A piece whose answer is
    partial is written and noted, and what is done does not move past it: the next run asks for it again.

    Args:
        client: whom to ask.
        queries: what to ask.
        exported: whether to read what Galens export, too.
        write: stores samples and returns how many were stored.
        checkpoint: how far earlier runs have come.
        step_seconds: the resolution of history.
        lookback_seconds: how old a sample may be to stand for a step.
        attempts: failures in a row after which a run gives up.
        backoff: the pauses between them.
    """

    def __init__(
        self,
        client: PrometheusClient,
        queries: Sequence[PrometheusQuery],
        *,
        exported: bool,
        write: Callable[[Sequence[Sample]], int],
        checkpoint: Checkpoint,
        step_seconds: float,
        lookback_seconds: float = 60.0,
        attempts: int = 5,
        backoff: Backoff | None = None,
    ) -> None:
        self._client = client
        self._reader = FleetReader("backfill", queries, exported=exported)
        self._write = write
        self._checkpoint = checkpoint
        self._step_seconds = step_seconds
        self._lookback_seconds = max(lookback_seconds, step_seconds)
        self._attempts = attempts
        self._backoff = backoff or Backoff(1.0, 60.0)

    def run(
        self,
        start_seconds: float,
        end_seconds: float,
        *,
        progress: Callable[[float], None] = lambda _: None,
        stop: threading.Event | None = None,
    ) -> Backfilled:
        """Read ``start <= time < end``, on whole steps since the epoch.

        Raises:
            CollectorError: when the server fails or refuses for good; what is done stays done.
            StoreError: when the store cannot be written.
        """
        stop = stop or threading.Event()
        step = self._step_seconds
        # On one grid, so that a later run adds to this one instead of interleaving with it.
        start, end = -(-start_seconds // step) * step, -(-end_seconds // step) * step
        resumed = self._checkpoint.load(start)
        first = start if resumed is None else min(max(start, resumed), end)
        samples, done, whole, notes = 0, first, True, dict[str, None]()
        pieces = read_in_pieces(
            lambda begin, until: self._ask(begin, until, stop),
            first, end, step_seconds=step, longest_seconds=_POINTS_A_PIECE * step,
        )  # fmt: skip
        for _, until, found in pieces:
            samples += self._write(found)
            missing = self._client.take_warnings()
            notes |= dict.fromkeys([*missing, *self._reader.notes()])
            whole = whole and not missing
            if whole:
                done = until
                self._checkpoint.save(start, done)
            progress((until - start) / max(end - start, step))
            if stop.is_set():
                break
        return Backfilled(samples, done, resumed, list(notes))

    def _ask(self, begin: float, until: float, stop: threading.Event) -> Sequence[Sample]:
        def fetch(promql: str) -> Matrix:
            return self._client.query_range(
                promql,
                start_seconds=begin,
                end_seconds=until - _A_MILLISECOND,
                step_seconds=self._step_seconds,
                lookback_seconds=self._lookback_seconds,
            )

        while True:
            try:
                found = self._reader.read(fetch)
            except PrometheusError as error:
                if error.too_much or not error.retryable:
                    raise
                wait = self._backoff.failed(error.retry_after_seconds)
                if self._backoff.failures >= self._attempts:
                    raise
                log.warning("backfill_waits", seconds=round(wait, 1), reason=str(error))
                if stop.wait(wait):
                    raise CollectorError("stopped while the server was failing") from error
                continue
            self._backoff.succeeded()
            return found
