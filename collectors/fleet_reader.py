"""Canonical samples from PromQL queries, at one moment or over a time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from collectors.contract import CollectorError, Sample
from collectors.exposition import is_present
from collectors.gpu.throttle import throttle_signals
from collectors.mapping import EntityNamer, described, together
from collectors.promapi import MAX_QUERY_CHARACTERS, Matrix, PrometheusError
from collectors.signals import catalogue

log = structlog.get_logger(__name__)

T = TypeVar("T")

_RANK_LABEL = "galen_rank"
_MAX_AT_ONCE = 15
_REFUSED_SECONDS = 600.0

Fetch = Callable[[str], Matrix]
"""Asks one query and returns what came: an instant is a range with one point."""


@dataclass(frozen=True, slots=True)
class PrometheusQuery:
    """A canonical signal and the PromQL that gives it.

    Labels of the result name the entity, as :class:`~collectors.mapping.EntityNamer` reads them; a
    fixed ``entity`` overrides them.
    """

    signal: str
    promql: str
    entity: str | None = None
    exporter: str = ""
    """Whose names it asks for; with its UUID it tells which source is believed about a GPU."""


class FleetReader:
    """Asks many queries in few requests and gives canonical samples.

    The first query of a signal that gives an entity wins, so the order of queries is the preference. A
    query that the server refuses is left out for ten minutes, and the others go on.

    Args:
        name: what the log calls it.
        queries: what to ask.
        exported: whether to read, before them, what other Galens export.
        monotonic: the clock of what is left out.
    """

    def __init__(
        self,
        name: str,
        queries: Sequence[PrometheusQuery],
        *,
        exported: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._queries = list(queries)
        self._exported = exported
        self._monotonic = monotonic
        self._namer = EntityNamer()
        self._refused: dict[PrometheusQuery, tuple[float, str]] = {}

    def read(self, fetch: Fetch) -> list[Sample]:
        """Ask every query.

        Raises:
            CollectorError: as ``fetch`` does, and when the server refuses every query.
        """
        samples: dict[tuple[str, str, float], Sample] = {}
        for sample in self._read_exported(fetch) if self._exported else ():
            samples.setdefault((sample.entity, sample.signal, sample.time_seconds), sample)
        for some in _portions([query for query in self._queries if query not in self._left_out()]):
            for sample in self._ask_apart(some, fetch):
                samples.setdefault((sample.entity, sample.signal, sample.time_seconds), sample)
        left_out = self._left_out()
        if self._queries and len(left_out) == len(set(self._queries)):
            raise CollectorError(
                f"the server refuses every query: {next(iter(left_out.values()))}",
                retryable=False,
                fix="mend the queries",
            )
        return list(samples.values())

    def notes(self) -> list[str]:
        """Say which signals are missing because the server refuses their queries."""
        return [
            f"{query.signal} is left out: {reason}" for query, reason in self._left_out().items()
        ]

    def _left_out(self) -> dict[PrometheusQuery, str]:
        now = self._monotonic()
        return {query: reason for query, (until, reason) in self._refused.items() if until > now}

    def _read_exported(self, fetch: Fetch) -> Iterator[Sample]:
        for selector in selectors(catalogue()):
            for labels, points in fetch(selector):
                about = {k: v for k, v in labels.items() if (k, v) == ("simulated", "true")}
                for at, value in points:
                    yield Sample(at, labels["entity"], labels["__name__"], value, about)

    def _ask_apart(self, queries: Sequence[PrometheusQuery], fetch: Fetch) -> Sequence[Sample]:
        """Ask queries together; where one of them is refused, find it by halving and leave it out."""
        try:
            samples = list(self._ask(queries, fetch))
        except PrometheusError as error:
            if not error.about_the_query or (error.too_much and len(queries) == 1):
                raise
            if len(queries) > 1:
                middle = len(queries) // 2
                return [
                    *self._ask_apart(queries[:middle], fetch),
                    *self._ask_apart(queries[middle:], fetch),
                ]
            self._refused[queries[0]] = (self._monotonic() + _REFUSED_SECONDS, str(error))
            log.warning(
                "query_refused", reader=self._name, signal=queries[0].signal, error=str(error)
            )
            return ()
        for query in queries:
            self._refused.pop(query, None)
        return samples

    def _ask(self, queries: Sequence[PrometheusQuery], fetch: Fetch) -> Iterator[Sample]:
        values: dict[tuple[int, str], dict[float, float]] = {}
        about: dict[tuple[int, str], Mapping[str, str]] = {}
        for labels, points in fetch(_union(queries)):
            rank = int(labels[_RANK_LABEL])
            query = queries[rank]
            name = query.entity or self._namer.name_of(query.signal, labels)
            known = catalogue().get(query.signal)
            column = values.setdefault((rank, name), {})
            for at, value in points:
                if not is_present("", value):
                    continue
                if at in column and known is not None:
                    # Replicas of one service, for example, that differ only in their instance.
                    column[at] = together(known, column[at], value)
                else:
                    column[at] = value
            about[rank, name] = _described(query, name, labels)
        for (rank, name), column in sorted(values.items(), key=lambda item: item[0]):
            for at, value in column.items():
                for signal, part in _with_flags(queries[rank].signal, value):
                    yield Sample(at, name, signal, part, about[rank, name])


def selectors(
    names: Iterable[str],
    matchers: Mapping[str, str] | None = None,
    entities: Iterable[str] | None = None,
) -> Iterator[str]:
    """Yield selectors of what Galens export under these names, each short enough for every server.

    Args:
        names: canonical signals.
        matchers: labels that the series must have besides.
        entities: what the series may be about, or anything. Many are divided among several selectors.
    """
    # `entity` is on every series that Galen's exporter and agent write, and on no other.
    which = ['!=""']
    if entities is not None:
        escaped = [re.escape(entity) for entity in sorted(entities)]
        parts = _chunks(escaped, len, MAX_QUERY_CHARACTERS // 4)
        which = [f"=~{quoted('|'.join(part))}" for part in parts]
    more = "".join(f",{label}={quoted(text)}" for label, text in (matchers or {}).items())
    for some in _chunks(list(names), len):
        for whom in which:
            yield f'{{__name__=~"{"|".join(some)}",entity{whom}{more}}}'


def _described(query: PrometheusQuery, name: str, labels: Mapping[str, str]) -> Mapping[str, str]:
    about = {k: v for k, v in labels.items() if k == "simulated"}
    uuid = described(labels).get("uuid")
    if query.exporter and uuid and "/gpu/" in name:
        about |= {"uuid": uuid, "exporter": query.exporter}
    return about


def quoted(text: str) -> str:
    """Return a text as a string of PromQL."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _with_flags(signal: str, value: float) -> Iterator[tuple[str, float]]:
    if signal == "gpu_throttle_reason":
        yield from throttle_signals(int(value))
    else:
        yield signal, value


def _union(queries: Sequence[PrometheusQuery]) -> str:
    """Ask many queries in one: each result carries the number of the query that gave it."""
    return " or ".join(
        f'label_replace({query.promql}, "{_RANK_LABEL}", "{rank}", "", "")'
        for rank, query in enumerate(queries)
    )


def _portions(queries: Sequence[PrometheusQuery]) -> Iterator[Sequence[PrometheusQuery]]:
    around = len(_union([PrometheusQuery("", "")])) + len(" or 00")
    for some in _chunks(queries, lambda query: len(query.promql) + around):
        for first in range(0, len(some), _MAX_AT_ONCE):
            yield some[first : first + _MAX_AT_ONCE]


def _chunks(
    items: Sequence[T], length: Callable[[T], int], longest: int = MAX_QUERY_CHARACTERS
) -> Iterator[Sequence[T]]:
    """Divide items so that each part is shorter than a query may be."""
    part: list[T] = []
    characters = 0
    for item in items:
        if part and characters + length(item) + 1 > longest:
            yield part
            part, characters = [], 0
        part.append(item)
        characters += length(item) + 1
    if part:
        yield part
