"""Series kept in Prometheus, read through the interface of the embedded store.

It reads what Galen's own exporter and agent publish: canonical names, with the entity in the labels. A
fleet's raw exporters are read by :class:`collectors.prometheus.PrometheusCollector`, their history by
:mod:`collectors.backfill`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
import structlog
from numpy.typing import NDArray

from collectors.access import HttpAccess
from collectors.contract import CollectorError, SeriesKey
from collectors.fleet_reader import quoted, selectors
from collectors.pieces import read_in_pieces
from collectors.promapi import Matrix, PrometheusClient
from collectors.signals import catalogue
from collectors.store.contract import SeriesInfo, StoreError, check_resolution
from collectors.store.frames import rolled_up, sample_frame

log = structlog.get_logger(__name__)

T = TypeVar("T")

_IDENTITY_LABELS = ("__name__", "job", "instance", "entity")
_A_MILLISECOND = 0.001
_AHEAD_SECONDS = 300.0


class PrometheusSeriesReader:
    """Reads canonical series from Prometheus.

    A series that Prometheus keeps under several instances is one series here; the reader does not add
    them up, so each Galen needs names of its own for its hosts and services. Times are those that the
    server keeps: of its own clock where it scraped, of the sender's where it was written to.

    Args:
        url: Prometheus' base address.
        access: credentials and TLS.
        step_seconds: the resolution of reads; None reads every sample at its own time.
        step_lookback_seconds: how old a sample may be to stand for a step; servers that do not know
            the parameter use their own, which by default is five minutes.
        lookback_seconds: how far back a series may have its newest sample to be listed.
        history_seconds: how far back an unbounded read goes.
        deadline_seconds: the longest that one request may take; a read may need several.
        matchers: labels that the series must have, such as ``cluster``.
        clock: the wall clock that bounds an unbounded read.
    """

    def __init__(
        self,
        url: str,
        *,
        access: HttpAccess | None = None,
        step_seconds: float | None = None,
        step_lookback_seconds: float | None = None,
        lookback_seconds: float = 300.0,
        history_seconds: float = 31 * 86_400.0,
        deadline_seconds: float = 30.0,
        matchers: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = PrometheusClient(url, access=access, deadline_seconds=deadline_seconds)
        self._step_seconds = step_seconds
        self._step_lookback_seconds = step_lookback_seconds
        self._lookback_seconds = lookback_seconds
        self._history_seconds = history_seconds
        self._matchers = matchers
        self._clock = clock
        self._notes: dict[str, None] = {}

    def take_notes(self) -> list[str]:
        """Return, once, why answers since the last call were incomplete; empty when all were whole."""
        notes, self._notes = self._notes, {}
        return list(notes)

    def series(self) -> Sequence[SeriesInfo]:
        """List every series with its newest value.

        ``first_seconds`` is the oldest sample within ``lookback_seconds``, not the age of the series,
        which Prometheus does not tell without reading it whole.
        """
        newest: dict[SeriesKey, SeriesInfo] = {}
        for selector in selectors(catalogue(), self._matchers):
            found = self._asked(
                lambda selector=selector: self._client.query_window(  # type: ignore[misc]
                    selector, self._lookback_seconds
                )
            )
            for labels, points in found:
                whole = [point for point in points if math.isfinite(point[1])]
                if not whole:
                    continue
                key = _key(labels)
                known = newest.get(key)
                if known is None or whole[-1][0] > known.last_seconds:
                    newest[key] = SeriesInfo(key, _descriptive(labels), whole[0][0], *whole[-1])
        return list(newest.values())

    def keys(self, *, start_seconds: float, end_seconds: float) -> list[SeriesKey]:
        """List the series that may have samples in a time, in order, without reading any.

        Raises:
            StoreError: when the server cannot be asked.
        """
        more = "".join(f",{label}={quoted(text)}" for label, text in (self._matchers or {}).items())
        found = self._asked(
            lambda: self._client.series(
                f'{{entity!=""{more}}}', start_seconds=start_seconds, end_seconds=end_seconds
            )
        )
        known = catalogue()
        return sorted({_key(labels) for labels in found if labels["__name__"] in known})

    def read(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Read samples with ``start <= time < end``; see :class:`SeriesReader`.

        A long span is read in pieces that the server allows.
        """
        end = min(end_seconds, self._clock() + _AHEAD_SECONDS)
        start = max(start_seconds, end - self._history_seconds)
        names = [name for name in catalogue() if signals is None or name in signals]
        numbers: dict[SeriesKey, int] = {}
        found: list[tuple[int, NDArray[np.float64]]] = []
        if entities is not None and not entities:
            names = []
        for selector in selectors(names, self._matchers, entities):
            for labels, points in self._asked(
                lambda selector=selector: list(self._found(selector, start, end))  # type: ignore[misc]
            ):
                key = _key(labels)
                if entities is not None and key.entity not in entities:
                    continue
                if points:
                    found.append((numbers.setdefault(key, len(numbers)), np.array(points)))
        rows = np.concatenate([points for _, points in found] or [np.empty((0, 2))])
        series = np.repeat(
            np.array([number for number, _ in found], dtype=np.int64),
            np.array([len(points) for _, points in found], dtype=np.int64),
        )
        kept = (rows[:, 0] >= start) & (rows[:, 0] < end) & np.isfinite(rows[:, 1])
        keys = {number: key for key, number in numbers.items()}
        return sample_frame(series[kept], rows[kept, 0], rows[kept, 1], keys)

    def read_rollup(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        resolution_seconds: float = 60.0,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Count what :meth:`read` gives into buckets; see :class:`SeriesReader`.

        The lowest and highest are those of the points at ``step_seconds``: Prometheus tells nothing of
        what lies between them without a query for every signal.
        """
        resolution = check_resolution(resolution_seconds)
        start, end = (
            math.ceil(seconds / resolution) * resolution if math.isfinite(seconds) else seconds
            for seconds in (start_seconds, end_seconds)
        )
        samples = self.read(
            start_seconds=start, end_seconds=end, entities=entities, signals=signals
        )
        return rolled_up(samples, resolution)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _found(
        self, selector: str, start: float, end: float
    ) -> Iterator[tuple[Mapping[str, str], list[tuple[float, float]]]]:
        step = self._step_seconds

        def ask(first: float, last: float) -> Matrix:
            if step is not None:
                return self._client.query_range(
                    selector,
                    start_seconds=first,
                    end_seconds=last - _A_MILLISECOND,
                    step_seconds=step,
                    lookback_seconds=self._step_lookback_seconds,
                )
            # Whether the window holds its own first millisecond depends on the server's version.
            return self._client.query_window(
                selector, last - first + _A_MILLISECOND, time_seconds=last
            )

        for first, last, matrix in read_in_pieces(ask, start, end, step_seconds=step):
            for labels, points in matrix:
                if points and not (first <= points[0][0] and points[-1][0] < last):
                    yield labels, [point for point in points if first <= point[0] < last]
                else:
                    yield labels, points

    def _asked(self, call: Callable[[], T]) -> T:
        try:
            found = call()
        except CollectorError as error:
            raise StoreError(f"{error}; {error.fix}" if error.fix else str(error)) from error
        for warning in self._client.take_warnings():
            log.warning("prometheus_incomplete", server=self._client.place, reason=warning)
            self._notes[warning] = None
        return found


def _key(labels: Mapping[str, str]) -> SeriesKey:
    return SeriesKey(labels["entity"], labels["__name__"])


def _descriptive(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in labels.items() if name not in _IDENTITY_LABELS}
