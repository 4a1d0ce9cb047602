"""History of a fleet from Prometheus, in pieces of time, for whoever stores or replays it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pandas as pd
import structlog

from collectors.backoff import Backoff
from collectors.contract import CollectorError, Sample, SeriesKey
from collectors.fleet_reader import FleetReader, PrometheusQuery
from collectors.pieces import read_in_pieces
from collectors.promapi import Matrix, PrometheusClient, PrometheusError
from collectors.store.frames import sample_frame

log = structlog.get_logger(__name__)

_POINTS_A_PIECE = 1000
"""Bounds what one piece holds in memory: a thousand series make a million samples of it."""
_A_MILLISECOND = 0.001


class PrometheusHistory:
    """Reads canonical samples by range queries, the same ones as live.

    A failing server is asked again after a pause, ``attempts`` times in a row.

    Args:
        name: what the log calls it.
        client: whom to ask.
        queries: what to ask.
        exported: whether to read what Galens export, too.
        step_seconds: the resolution of history.
        lookback_seconds: how old a sample may be to stand for a step.
        points_a_piece: steps of one piece at most.
        attempts: failures in a row after which it gives up.
        backoff: the pauses between them.
    """

    def __init__(
        self,
        name: str,
        client: PrometheusClient,
        queries: Sequence[PrometheusQuery],
        *,
        exported: bool,
        step_seconds: float,
        lookback_seconds: float = 60.0,
        points_a_piece: int = _POINTS_A_PIECE,
        attempts: int = 5,
        backoff: Backoff | None = None,
    ) -> None:
        self._name = name
        self._client = client
        self._reader = FleetReader(name, queries, exported=exported)
        self._step_seconds = step_seconds
        self._lookback_seconds = max(lookback_seconds, step_seconds)
        self._points = points_a_piece
        self._attempts = attempts
        self._backoff = backoff or Backoff(1.0, 60.0)

    @property
    def step_seconds(self) -> float:
        """The distance of two samples of a series."""
        return self._step_seconds

    def on_steps(self, seconds: float) -> float:
        """Return the first whole step since the epoch that is not before a moment."""
        return -(-seconds // self._step_seconds) * self._step_seconds

    def pieces(
        self, start_seconds: float, end_seconds: float, stop: threading.Event | None = None
    ) -> Iterator[tuple[float, float, Sequence[Sample]]]:
        """Yield start, end and samples of one piece after the other, on whole steps since the epoch.

        Raises:
            CollectorError: when the server fails or refuses for good, or the wait for it was stopped.
        """
        stop = stop or threading.Event()
        yield from read_in_pieces(
            lambda begin, until: self._ask(begin, until, stop),
            self.on_steps(start_seconds),
            self.on_steps(end_seconds),
            step_seconds=self._step_seconds,
            longest_seconds=self._points * self._step_seconds,
        )

    def frames(
        self, start_seconds: float, end_seconds: float, stop: threading.Event | None = None
    ) -> Iterator[tuple[float, pd.DataFrame]]:
        """Yield the exclusive end of each piece, and its samples as :meth:`SeriesReader.read` does."""
        for _, until, samples in self.pieces(start_seconds, end_seconds, stop):
            yield until, _frame(samples)

    def take_notes(self) -> tuple[list[str], list[str]]:
        """Return why answers since the last call were incomplete, and which queries are refused."""
        return self._client.take_warnings(), self._reader.notes()

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
                log.warning(
                    "history_waits", reader=self._name, seconds=round(wait, 1), reason=str(error)
                )
                if stop.wait(wait):
                    raise CollectorError("stopped while the server was failing") from error
                continue
            self._backoff.succeeded()
            return found


def _frame(samples: Sequence[Sample]) -> pd.DataFrame:
    numbers: dict[SeriesKey, int] = {}
    series = [
        numbers.setdefault(SeriesKey(sample.entity, sample.signal), len(numbers))
        for sample in samples
    ]
    return sample_frame(
        series,
        [sample.time_seconds for sample in samples],
        [sample.value for sample in samples],
        {number: key for key, number in numbers.items()} or {0: SeriesKey("", "")},
    )
