"""Series kept in Prometheus, read through the interface of the embedded store.

It reads what Galen's own exporter publishes (``galen export``): canonical names, with the entity in the
labels. A fleet's raw exporters are read by :class:`collectors.prometheus.PrometheusCollector`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import pandas as pd
from pydantic import SecretStr

from collectors.contract import CollectorError, SeriesKey
from collectors.prometheus import PrometheusClient
from collectors.signals import catalogue
from collectors.store.contract import SeriesInfo, StoreError
from collectors.store.frames import sample_frame

_IDENTITY_LABELS = ("__name__", "job", "instance", "entity")
_MAX_POINTS = 10_000  # Prometheus refuses more than 11,000 points a series


class PrometheusSeriesReader:
    """Reads canonical series from Prometheus.

    A series that Prometheus keeps under several instances is one series here; the reader does not add
    them up, so each Galen needs names of its own for its hosts and services.

    Args:
        url: Prometheus' base address.
        token: a bearer token.
        step_seconds: the resolution of reads; a long span is read coarser, at most 10,000 points.
        lookback_seconds: how far back a series may have its newest sample to be listed.
        deadline_seconds: the longest that one request may take.
    """

    def __init__(
        self,
        url: str,
        *,
        token: SecretStr | None = None,
        step_seconds: float = 15.0,
        lookback_seconds: float = 300.0,
        deadline_seconds: float = 30.0,
    ) -> None:
        self._client = PrometheusClient(url, token=token, deadline_seconds=deadline_seconds)
        self._step_seconds = step_seconds
        self._lookback_seconds = lookback_seconds

    def series(self) -> Sequence[SeriesInfo]:
        """List every series with its newest value.

        ``first_seconds`` is the oldest sample within ``lookback_seconds``, not the age of the series,
        which Prometheus does not tell without reading it whole.
        """
        selector = _selector(catalogue())
        try:
            found = self._client.query_window(selector, self._lookback_seconds)
        except CollectorError as error:
            raise StoreError(str(error)) from error
        return [
            SeriesInfo(
                key=_key(labels),
                labels=_descriptive(labels),
                first_seconds=points[0][0],
                last_seconds=points[-1][0],
                last_value=points[-1][1],
            )
            for labels, points in found
        ]

    def read(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Read samples with ``start <= time < end``, one a step; see :class:`SeriesReader`."""
        names = [name for name in catalogue() if signals is None or name in signals]
        if (
            not names
            or not math.isfinite(end_seconds - start_seconds)
            or end_seconds <= start_seconds
        ):
            return sample_frame([], [], [], {})
        step = max(self._step_seconds, (end_seconds - start_seconds) / _MAX_POINTS)
        try:
            found = self._client.query_range(
                _selector(names),
                start_seconds=start_seconds,
                end_seconds=end_seconds,
                step_seconds=step,
            )
        except CollectorError as error:
            raise StoreError(str(error)) from error
        keys: dict[int, SeriesKey] = {}
        rows: list[tuple[int, float, float]] = []
        for number, (labels, points) in enumerate(found):
            key = _key(labels)
            if entities is not None and key.entity not in entities:
                continue
            keys[number] = key
            rows.extend((number, *point) for point in _before(points, end_seconds))
        columns = zip(*rows, strict=True) if rows else ((), (), ())
        numbers, times, values = (list(column) for column in columns)
        return sample_frame([int(number) for number in numbers], times, values, keys)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _key(labels: Mapping[str, str]) -> SeriesKey:
    return SeriesKey(labels["entity"], labels["__name__"])


def _before(points: Sequence[tuple[float, float]], end: float) -> Iterator[tuple[float, float]]:
    return ((at, value) for at, value in points if at < end and math.isfinite(value))


def _selector(names: Collection[str]) -> str:
    # `entity` is on every series that Galen's exporter writes, and on no other.
    return f'{{__name__=~"{"|".join(names)}",entity!=""}}'


def _descriptive(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in labels.items() if name not in _IDENTITY_LABELS}
