"""Canonical signals of a whole fleet, read from Prometheus by instant queries.

Works against anything with Prometheus' HTTP API: Prometheus, VictoriaMetrics, Thanos, Mimir.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from pydantic import SecretStr
from urllib3.util.retry import Retry

from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.exposition import is_present
from collectors.expressions import Expression, Selector, parse_expression
from collectors.gpu.throttle import throttle_signals
from collectors.mapping import (
    COLLECTOR_LABELS,
    GPU_LABELS,
    HOST_LABELS,
    SERVICE_LABELS,
    EntityNamer,
    is_additive,
    together,
)
from collectors.signals import Bad, Kind, Layer, Signal, catalogue

_RANK_LABEL = "galen_rank"
_MAX_AT_ONCE = 15
_EPOCH = datetime.fromtimestamp(0, UTC)
DEFAULT_SOURCES = ("dcgm", "node", "vllm", "triton", "tgi", "kserve", "galen")


class Series(NamedTuple):
    """One element of an instant vector."""

    labels: Mapping[str, str]
    time_seconds: float
    value: float


Matrix = list[tuple[Mapping[str, str], list[tuple[float, float]]]]
"""Range vectors: labels, and pairs of time and value from old to new."""


class PrometheusClient:
    """Asks one Prometheus, with a deadline and without retries of its own.

    Args:
        url: its base address.
        token: a bearer token.
        deadline_seconds: the longest that connecting, and each read of the answer, may take.
        verify_tls: False accepts any certificate.
    """

    def __init__(
        self,
        url: str,
        *,
        token: SecretStr | None = None,
        deadline_seconds: float = 2.0,
        verify_tls: bool = True,
    ) -> None:
        self._url = url.rstrip("/")
        self._deadline_seconds = deadline_seconds
        session = requests.Session()
        session.verify = verify_tls
        # Queries do not go through the proxy of the environment; nor do Prometheus' own.
        session.trust_env = False
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._connection = PrometheusConnect(
            url=self._url,
            headers=headers,
            session=session,
            # The poller asks again anyway; a retry here would only take the time of the next call.
            retry=Retry(total=0),
            method="POST",
        )

    def query(self, promql: str, *, lookback_seconds: float | None = None) -> list[Series]:
        """Ask an instant query that gives a vector or a scalar.

        Args:
            promql: the query.
            lookback_seconds: how old a sample may be; servers that do not know the parameter use their
                own (five minutes unless configured).

        Raises:
            CollectorError: when Prometheus cannot be reached or refuses the query.
        """
        params = {} if lookback_seconds is None else {"lookback_delta": _duration(lookback_seconds)}
        result = self._ask(
            lambda: self._connection.custom_query(promql, params, self._deadline_seconds)
        )
        if len(result) == 2 and not isinstance(result[0], Mapping):  # a scalar
            return [Series({}, float(result[0]), float(result[1]))]
        try:
            return [
                Series(one["metric"], float(one["value"][0]), float(one["value"][1]))
                for one in result
            ]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CollectorError(
                f"{self._url} did not answer with a vector: {error!r}",
                retryable=False,
                fix="the query must give an instant vector",
            ) from error

    def query_range(
        self, promql: str, *, start_seconds: float, end_seconds: float, step_seconds: float
    ) -> Matrix:
        """Ask a range query; both ends are inclusive, as in Prometheus.

        Raises:
            CollectorError: when Prometheus cannot be reached or refuses the query.
        """
        bounds = {"start": f"{start_seconds:.3f}", "end": f"{end_seconds:.3f}"}
        result = self._ask(
            # The library rounds its own bounds to seconds; the parameters override them.
            lambda: self._connection.custom_query_range(
                promql, _EPOCH, _EPOCH, _duration(step_seconds), bounds, self._deadline_seconds
            )
        )
        return _matrix(result)

    def query_window(self, selector: str, seconds: float) -> Matrix:
        """Return the stored samples of a selector over the last ``seconds``, at their own times.

        Raises:
            CollectorError: when Prometheus cannot be reached or refuses the query.
        """
        window = f"{selector}[{_duration(seconds)}]"
        return _matrix(
            self._ask(lambda: self._connection.custom_query(window, {}, self._deadline_seconds))
        )

    def clock_skew_seconds(self, *, wall: Callable[[], float] = time.time) -> float:
        """Return how far Prometheus' clock is ahead of ours, give or take half of the round trip.

        Raises:
            CollectorError: when Prometheus cannot be reached.
        """
        before = wall()
        (theirs,) = self.query("time()")
        return theirs.value - (before + wall()) / 2

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self, call: Callable[[], Any]) -> list[Any]:
        try:
            answer: list[Any] = call()
        except PrometheusApiClientException as error:
            raise CollectorError(
                f"{self._url} refused the query: {str(error)[:300]}",
                retryable=False,
                fix="check the query, and the token if the status is 401 or 403",
            ) from error
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise CollectorError(
                f"cannot ask {self._url}: {error}", fix="check that Prometheus runs at this address"
            ) from error
        return answer


@dataclass(frozen=True, slots=True)
class PrometheusQuery:
    """A canonical signal and the PromQL that gives it.

    Labels of the result name the entity, as :class:`~collectors.mapping.EntityNamer` reads them; a
    fixed ``entity`` overrides them.
    """

    signal: str
    promql: str
    entity: str | None = None


def default_queries(
    sources: Iterable[str] = DEFAULT_SOURCES, *, window_seconds: float = 60.0
) -> list[PrometheusQuery]:
    """Return a query for every name that the catalogue has in these exporters.

    Args:
        sources: exporters, as the catalogue calls them.
        window_seconds: the range of rates and quantiles; at least four scrape intervals.
    """
    wanted = tuple(sources)
    return [
        PrometheusQuery(signal.name, _promql(signal, parse_expression(name), window_seconds))
        for signal in catalogue().values()
        for source in wanted
        for name in signal.names.get(source, ())
    ]


class PrometheusCollector:
    """Reads canonical signals from Prometheus.

    The first query of a signal that gives an entity wins, so the order of queries is the preference.
    Without queries of one's own it reads what other Galens export, and every exporter that the
    catalogue knows.

    Args:
        name: a short name; the collector is called ``prometheus-<name>``.
        url: Prometheus' base address.
        queries: what to ask; by default everything that the catalogue knows.
        token: a bearer token.
        deadline_seconds: the longest that one collection may take.
        every_seconds: how often to ask; the scrape interval of Prometheus is a good choice.
        max_age_seconds: samples older than this are stale and left out.
        verify_tls: False accepts any certificate.
        monotonic: the clock of the deadline.
    """

    def __init__(
        self,
        name: str,
        url: str,
        queries: Sequence[PrometheusQuery] | None = None,
        *,
        token: SecretStr | None = None,
        deadline_seconds: float = 5.0,
        every_seconds: float = 15.0,
        max_age_seconds: float = 60.0,
        verify_tls: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = f"prometheus-{name}"
        self._client = PrometheusClient(
            url, token=token, deadline_seconds=deadline_seconds, verify_tls=verify_tls
        )
        self._queries = list(default_queries() if queries is None else queries)
        self._reads_exported = queries is None
        self._deadline_seconds = deadline_seconds
        self._every_seconds = every_seconds
        self._max_age_seconds = max_age_seconds
        self._monotonic = monotonic
        self._namer = EntityNamer()

    @property
    def name(self) -> str:
        """``prometheus-<name>``."""
        return self._name

    @property
    def deadline_seconds(self) -> float:
        """The longest that one collection may take."""
        return self._deadline_seconds

    @property
    def every_seconds(self) -> float:
        """How often the poller asks."""
        return self._every_seconds

    def is_supported(self) -> Support:
        """Always; whether Prometheus is there is for :meth:`collect` to say."""
        return Support(supported=True)

    def collect(self, now_seconds: float) -> Collection:
        """Ask every query, many in one request.

        Raises:
            CollectorError: when Prometheus cannot be reached in time or refuses a query.
        """
        started = self._monotonic()
        samples: dict[tuple[str, str], Sample] = {}
        for sample in self._exported(now_seconds) if self._reads_exported else ():
            samples.setdefault((sample.entity, sample.signal), sample)
        for first in range(0, len(self._queries), _MAX_AT_ONCE):
            if self._monotonic() - started > self._deadline_seconds:
                raise CollectorError(
                    f"{self._name} is slower than {self._deadline_seconds:g} s",
                    fix="raise the deadline or ask for fewer signals",
                )
            some = self._queries[first : first + _MAX_AT_ONCE]
            for sample in self._ask(some, now_seconds):
                samples.setdefault((sample.entity, sample.signal), sample)
        return Collection(samples=list(samples.values()))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _exported(self, now_seconds: float) -> Iterator[Sample]:
        selector = f'{{__name__=~"{"|".join(catalogue())}",entity!=""}}'
        for one in self._client.query(selector, lookback_seconds=self._max_age_seconds):
            labels = {"simulated": "true"} if one.labels.get("simulated") == "true" else {}
            yield Sample(
                now_seconds, one.labels["entity"], one.labels["__name__"], one.value, labels
            )

    def _ask(self, queries: Sequence[PrometheusQuery], now_seconds: float) -> Iterator[Sample]:
        values: dict[tuple[int, str], tuple[float, Mapping[str, str]]] = {}
        for one in self._client.query(_union(queries), lookback_seconds=self._max_age_seconds):
            if not is_present("", one.value):
                continue
            rank = int(one.labels[_RANK_LABEL])
            query = queries[rank]
            name = query.entity or self._namer.name_of(query.signal, one.labels)
            value, known = one.value, catalogue().get(query.signal)
            if (rank, name) in values and known is not None:
                # Replicas of one service, for example, that differ only in their instance.
                value = together(known, values[rank, name][0], value)
            labels = {k: v for k, v in one.labels.items() if k == "simulated"}
            values[rank, name] = (value, labels)
        for (rank, name), (value, described) in sorted(values.items(), key=lambda item: item[0]):
            for signal, part in _with_flags(queries[rank].signal, value):
                yield Sample(now_seconds, name, signal, part, described)


def _matrix(result: list[Any]) -> Matrix:
    return [
        (one["metric"], [(float(at), float(value)) for at, value in one["values"]])
        for one in result
    ]


def _duration(seconds: float) -> str:
    # PromQL's durations are whole numbers of their unit.
    return f"{max(1, round(seconds * 1000))}ms"


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


def _promql(signal: Signal, expression: Expression, window_seconds: float) -> str:
    window = f"[{_duration(window_seconds)}]"
    by = _labels_of(signal)
    scaled = expression.scaled
    # A summary gives its quantiles itself, as gauges with a label of that name.
    summary = scaled is not None and any(m.label == "quantile" for m in scaled[0].matchers)
    if signal.kind is Kind.HISTOGRAM and scaled is not None and not summary:
        rate = f"rate({scaled[0].promql('_bucket')}{window})"
        query = f"histogram_quantile({signal.quantile:g}, sum by ({by}, le) ({rate}))"
        return query if scaled[1] == 1 else f"({query}) * {scaled[1]:.12g}"
    return expression.promql(lambda selector: _operand(signal, selector, by, window))


def _operand(signal: Signal, selector: Selector, by: str, window: str) -> str:
    series = selector.promql()
    if selector.counted:
        return f"count by ({by}) ({series})"
    if selector.is_counter and signal.kind is not Kind.COUNTER:
        change = "increase" if signal.kind is Kind.EVENT else "rate"
        return f"{selector.fold or 'sum'} by ({by}) ({change}({series}{window}))"
    if selector.fold or is_additive(signal) or selector.is_counter:
        return f"{selector.fold or 'sum'} by ({by}) ({series})"
    return f"{'min' if signal.bad_direction is Bad.DOWN else 'max'} by ({by}) ({series})"


def _labels_of(signal: Signal) -> str:
    """The labels that can name the entity of a signal, and tell simulated series from real ones."""
    by_layer = {
        Layer.GPU: (*HOST_LABELS, *GPU_LABELS),
        Layer.HOST: HOST_LABELS,
        Layer.STORAGE: HOST_LABELS,
        Layer.NETWORK: HOST_LABELS,
        Layer.MONITORING: COLLECTOR_LABELS,
    }
    return ", ".join((*by_layer.get(signal.layer, SERVICE_LABELS), "simulated"))
