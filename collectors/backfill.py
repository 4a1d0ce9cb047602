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
from collectors.contract import Sample
from collectors.fleet_reader import PrometheusQuery
from collectors.promapi import PrometheusClient
from collectors.prometheus_history import PrometheusHistory

log = structlog.get_logger(__name__)


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
        self._history = PrometheusHistory(
            "backfill",
            client,
            queries,
            exported=exported,
            step_seconds=step_seconds,
            lookback_seconds=lookback_seconds,
            attempts=attempts,
            backoff=backoff,
        )
        self._write = write
        self._checkpoint = checkpoint
        self._step_seconds = step_seconds

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
        # On one grid, so that a later run adds to this one instead of interleaving with it.
        start, end = (self._history.on_steps(each) for each in (start_seconds, end_seconds))
        resumed = self._checkpoint.load(start)
        first = start if resumed is None else min(max(start, resumed), end)
        samples, done, whole, notes = 0, first, True, dict[str, None]()
        for _, until, found in self._history.pieces(first, end, stop):
            samples += self._write(found)
            missing, refused = self._history.take_notes()
            notes |= dict.fromkeys([*missing, *refused])
            whole = whole and not missing
            if whole:
                done = until
                self._checkpoint.save(start, done)
            progress((until - start) / max(end - start, self._step_seconds))
            if stop.is_set():
                break
        return Backfilled(samples, done, resumed, list(notes))
