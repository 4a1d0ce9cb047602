"""Metrics in the Prometheus text format.

Counters of requests are kept here; what belongs to an engine is read from its heartbeat when
somebody scrapes, which works while the worker hangs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics
from prometheus_client.registry import Collector

from inference.canary import Canary
from inference.engine_host import EngineHost, EngineState
from inference.health import HealthReport
from inference.requests import Ticket
from inference.tensor.metrics import batch_families
from inference.worker.heartbeat import LoadPhase
from inference.worker.supervisor import RestartReason, Totals
from inference.worker.wire import Finished

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST
UNKNOWN = "unknown"
# vLLM's buckets of request latency, extended downwards: the bundled model answers in milliseconds.
_LATENCY_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0,
    10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
)  # fmt: skip
_TOKEN_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.4, 0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
_HIT_RATE_WINDOW_SECONDS = 60.0


class RequestMetrics:
    """What is counted per user request; canaries never come here."""

    def __init__(self) -> None:
        # Process-wide in prometheus_client; `_created` series would double the scrape.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._bound: list[BoundMetrics] = []
        self.registry.register(_Flush(self._bound))
        endpoint = ["model", "endpoint"]
        self._requests = self._counter(
            "llm_requests", "Finished user requests by HTTP status", [*endpoint, "status"]
        )
        self._received = self._counter(
            "llm_requests_received", "User requests on arrival", endpoint
        )
        self._rejected = self._counter(
            "llm_requests_rejected", "Requests refused by admission", ["model", "reason"]
        )
        self._cancelled = self._counter(
            "llm_requests_cancelled", "Requests ended by the client", ["model"]
        )
        self._fallbacks = self._counter(
            "llm_requests_fallback",
            "Requests given to another model than the one asked for",
            ["model", "answered_by", "reason"],
        )
        self._by_key = self._counter(
            "api_key_requests", "Finished user requests by API key", ["key", "status"]
        )
        self._tokens = self._counter(
            "llm_tokens_processed", "Tokens of prompts and completions", ["model", "type"]
        )
        self._latency = self._histogram(
            "llm_request_latency_seconds", "End to end, successful requests", endpoint
        )
        self._first_token = self._histogram(
            "llm_time_to_first_token_seconds", "From admission to the first token", ["model"]
        )
        self._output_token = self._histogram(
            "llm_time_per_output_token_seconds",
            "Between tokens after the first",
            ["model"],
            _TOKEN_BUCKETS,
        )
        self._queue_wait = self._histogram(
            "llm_queue_wait_seconds", "From admission to a slot", ["model"]
        )

    def received(self, model: str, endpoint: str) -> None:
        """Count a request on arrival."""
        self._received.labels(model, endpoint).inc()

    def finished(
        self,
        model: str,
        endpoint: str,
        status: int,
        seconds: float,
        exemplar: dict[str, str] | None = None,
    ) -> None:
        """Count the end of a request."""
        self._requests.labels(model, endpoint, str(status)).inc()
        if status == 200:
            self._latency.labels(model, endpoint).observe(seconds, exemplar)

    def bound(self, model: str, endpoint: str) -> BoundMetrics:
        """Return the same counters for one model and endpoint, found once."""
        found = BoundMetrics(
            self._received.labels(model, endpoint),
            self._latency.labels(model, endpoint),
            lambda status: self._requests.labels(model, endpoint, str(status)),
        )
        self._bound.append(found)
        return found

    def rejected(self, model: str, reason: str) -> None:
        """Count a refusal by admission."""
        self._rejected.labels(model, reason).inc()

    def fell_back(self, model: str, answered_by: str, reason: str) -> None:
        """Count a request that another model answers."""
        self._fallbacks.labels(model, answered_by, reason).inc()

    def finished_for(self, key: str, status: int) -> None:
        """Count the end of a request of a client with an API key, by the key's name."""
        self._by_key.labels(key, str(status)).inc()

    def cancelled(self, model: str) -> None:
        """Count a client that left."""
        self._cancelled.labels(model).inc()

    def decoded(self, ticket: Ticket, answer: Finished) -> None:
        """Observe the engine's part of an answered request."""
        model = ticket.request.model
        self._tokens.labels(model, "prompt").inc(answer.prompt_tokens)
        self._tokens.labels(model, "completion").inc(answer.completion_tokens)
        self._queue_wait.labels(model).observe(ticket.dispatched_at - ticket.enqueued_at)
        self._first_token.labels(model).observe(
            answer.first_token_at - ticket.enqueued_at, ticket.request.exemplar
        )
        if answer.completion_tokens > 1:
            seconds = answer.last_token_at - answer.first_token_at
            self._output_token.labels(model).observe(seconds / (answer.completion_tokens - 1))

    def render(self) -> bytes:
        """Return everything in the registry as text."""
        return generate_latest(self.registry)

    def render_open_metrics(self) -> bytes:
        """Return everything as OpenMetrics, which names traces beside the buckets of latency."""
        rendered: bytes = generate_open_metrics(self.registry)  # type: ignore[no-untyped-call]
        return rendered

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: list[str], buckets: Iterable[float] = _LATENCY_BUCKETS
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=tuple(buckets))


class BoundMetrics:
    """Counters of one model and endpoint as plain numbers, given to Prometheus at a scrape.

    prometheus_client takes a lock for each of the five values that a request changes, which costs
    a tenth of what the whole request does. These belong to the event loop, and so do scrapes.
    """

    def __init__(
        self, received: Counter, latency: Histogram, by_status: Callable[[int], Counter]
    ) -> None:
        self._received = received
        self._latency = latency
        self._by_status = by_status
        self._arrivals = 0
        self._ends: dict[int, int] = {}
        self._seconds = 0.0
        self._buckets = [0] * (len(_LATENCY_BUCKETS) + 1)

    def received(self) -> None:
        """Count a request on arrival."""
        self._arrivals += 1

    def finished(self, status: int, seconds: float) -> None:
        """Count the end of a request."""
        self._ends[status] = self._ends.get(status, 0) + 1
        if status == 200:
            self._seconds += seconds
            self._buckets[bisect_left(_LATENCY_BUCKETS, seconds)] += 1

    def flush(self) -> None:
        """Give everything to Prometheus."""
        self._received.inc(self._arrivals)
        self._arrivals = 0
        for status, count in self._ends.items():
            self._by_status(status).inc(count)
        self._ends.clear()
        # There is no public way to observe many values at once.
        self._latency._sum.inc(self._seconds)  # noqa: SLF001
        for place, count in enumerate(self._buckets):
            if count:
                self._latency._buckets[place].inc(count)  # noqa: SLF001
                self._buckets[place] = 0
        self._seconds = 0.0


class _Flush(Collector):
    """Comes first in a scrape, and has nothing to say of its own."""

    def __init__(self, bound: Sequence[BoundMetrics]) -> None:
        self._bound = bound

    def collect(self) -> Iterator[Metric]:
        """Bring the counters up to date."""
        for counters in self._bound:
            counters.flush()
        return iter(())


class HitRate:
    """Share of prompt tokens found in the prefix cache, over the last minute of scrapes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int, int]] = deque()

    def update(self, hits: int, queries: int) -> float | None:
        """Take the totals; return the rate, or None while nothing was looked up."""
        now = self._clock()
        self._seen.append((now, hits, queries))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _HIT_RATE_WINDOW_SECONDS:
            self._seen.popleft()
        _, first_hits, first_queries = self._seen[0]
        if len(self._seen) == 1:
            first_hits = first_queries = 0
        looked_up = queries - first_queries
        return (hits - first_hits) / looked_up if looked_up else None


class EngineCollector(Collector):
    """Reads hosts, health and degradation at the time of a scrape."""

    def __init__(
        self,
        hosts: Mapping[str, EngineHost],
        health: Callable[[], HealthReport],
        level: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._hosts = hosts
        self._health = health
        self._level = level
        self._clock = clock
        self._hit_rates: dict[str, HitRate] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._states()
        yield from self._health_families()
        yield from batch_families(self._hosts)

    def _gauges(self) -> Iterator[Metric]:
        readings: dict[str, tuple[str, Callable[[EngineHost], float]]] = {
            "llm_active_requests": ("User requests in a slot", lambda h: h.dispatcher.active_users),
            "llm_queue_depth": ("User requests that wait", lambda h: h.dispatcher.queue.depth),
            "llm_batch_size": ("Sequences decoded together", lambda h: h.heartbeat().batch_size),
            "llm_slots": ("Slots that may be filled", lambda h: h.dispatcher.max_slots),
            "engine_up": ("The worker lives and its model is loaded", lambda h: float(h.up)),
            "engine_device_fallback": (
                "The model is not on the device that was wanted",
                lambda h: float(bool(h.device_fallback)),
            ),
            "engine_step_age_seconds": (
                "Time since the last finished step while work is pending",
                lambda h: h.step_age_seconds(),
            ),
            "engine_load_seconds": ("Duration of the last load", lambda h: h.load_seconds),
            "engine_resident_memory_bytes": (
                "Resident memory of the worker",
                lambda h: h.supervisor.status.usage.resident_memory_bytes,
            ),
        }
        for name, (text, read) in readings.items():
            family = GaugeMetricFamily(name, text, labels=["model"])
            for model, host in self._hosts.items():
                family.add_metric([model], read(host))
            yield family
        yield self._hit_rate_family()

    def _hit_rate_family(self) -> Metric:
        family = GaugeMetricFamily(
            "llm_cache_hit_rate", "Prefix cache, over the last minute", labels=["model"]
        )
        for model, host in self._hosts.items():
            totals = host.totals()
            window = self._hit_rates.setdefault(model, HitRate(self._clock))
            rate = window.update(totals.cache_hit_tokens, totals.cache_query_tokens)
            if rate is not None:
                family.add_metric([model], rate)
        return family

    def _counters(self) -> Iterator[Metric]:
        readings: dict[str, tuple[str, Callable[[Totals], float]]] = {
            "llm_cache_hits": ("Prompt tokens found cached", lambda t: t.cache_hit_tokens),
            "llm_cache_queries": ("Prompt tokens looked up", lambda t: t.cache_query_tokens),
            "engine_steps": ("Finished engine executions", lambda t: t.steps),
            "engine_busy_seconds": ("Time inside engine executions", lambda t: t.busy_seconds),
            "engine_invalid_outputs": ("Steps with non-finite logits", lambda t: t.invalid_outputs),
            "engine_cpu_seconds": ("CPU time of the worker", lambda t: t.cpu_seconds),
        }
        totals = {model: host.totals() for model, host in self._hosts.items()}
        for name, (text, read) in readings.items():
            family = CounterMetricFamily(name, text, labels=["model"])
            for model, values in totals.items():
                family.add_metric([model], read(values))
            yield family
        yield from self._supervision_counters()

    def _supervision_counters(self) -> Iterator[Metric]:
        restarts = CounterMetricFamily(
            "engine_restarts", "Workers that were ended or died", labels=["model", "reason"]
        )
        failures = CounterMetricFamily(
            "engine_load_failures", "Loads that failed", labels=["model"]
        )
        for model, host in self._hosts.items():
            status = host.supervisor.status
            for reason in RestartReason:
                restarts.add_metric([model, reason.value], status.restarts.get(reason, 0))
            failures.add_metric([model], status.load_failures + host.reload_failures)
        yield restarts
        yield failures

    def _states(self) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "engine_state", "What the engine does, one-hot", labels=["model", "state"]
        )
        phases = GaugeMetricFamily(
            "engine_load_phase", "Where a load is that goes on, one-hot", labels=["model", "phase"]
        )
        variants = GaugeMetricFamily(
            "model_variant", "Always 1; the precision that serves", labels=["model", "variant"]
        )
        info = GaugeMetricFamily(
            "model_info", "Always 1", labels=["model", "version", "engine", "device"]
        )
        for model, host in self._hosts.items():
            current = host.state()
            for state in EngineState:
                states.add_metric([model, state.value], float(state is current))
            for phase in LoadPhase:
                if phase is not LoadPhase.NONE:
                    here = float(phase is host.load_phase())
                    phases.add_metric([model, phase.name.lower()], here)
            ready = host.ready
            if ready is not None:
                info.add_metric([model, str(ready.version), ready.engine, ready.device], 1.0)
                variants.add_metric([model, ready.variant or "none"], 1.0)
        yield variants
        yield states
        yield phases
        yield info

    def _health_families(self) -> Iterator[Metric]:
        status = GaugeMetricFamily("health_status", "1 ok, 0 not", labels=["layer"])
        age = GaugeMetricFamily(
            "health_check_age_seconds", "Time since the layer was judged", labels=["layer"]
        )
        for name, layer in self._health().layers.items():
            if layer.ok is not None:
                status.add_metric([name], float(layer.ok))
            if layer.age_seconds is not None:
                age.add_metric([name], layer.age_seconds)
        yield status
        yield age
        level = GaugeMetricFamily("service_degradation_level", "0 full service to 4 refuse")
        level.add_metric([], self._level())
        yield level


class CanaryCollector(Collector):
    """Reads the canaries at the time of a scrape."""

    def __init__(self, canaries: Mapping[str, Canary], clock: Callable[[], float]) -> None:
        self._canaries = canaries
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        share = GaugeMetricFamily(
            "canary_busy_ratio",
            "Part of the slots' time that golden prompts took, last minute",
            labels=["model"],
        )
        interval = GaugeMetricFamily(
            "canary_interval_seconds", "Time between golden prompts", labels=["model"]
        )
        checks = CounterMetricFamily(
            "canary_checks", "Golden prompts by what they said", labels=["model", "outcome"]
        )
        for model, canary in self._canaries.items():
            share.add_metric([model], canary.cost.share(self._clock()))
            interval.add_metric([model], canary.interval_seconds)
            for outcome, count in canary.outcomes.items():
                checks.add_metric([model, outcome.value], count)
        yield share
        yield interval
        yield checks
