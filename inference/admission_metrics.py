"""What admission knows, read at the time of a scrape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inference.admission import AdmissionQueue
from inference.breaker import BreakerState
from inference.dispatch_contract import EngineDispatcher
from inference.gate import Gate


class Dispatching(Protocol):
    """A model, as far as it is read here."""

    @property
    def dispatcher(self) -> EngineDispatcher:
        """Its queue and breaker."""
        ...


class AdmissionCollector(Collector):
    """Limits, circuit breakers and the two sources of degradation."""

    def __init__(self, hosts: Mapping[str, Dispatching], gate: Gate) -> None:
        self._hosts = hosts
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        limit = GaugeMetricFamily(
            "llm_concurrency_limit",
            "Requests that may be in the building now, waiting and running",
            labels=["model"],
        )
        for model, host in self._hosts.items():
            queue = host.dispatcher.queue
            if isinstance(queue, AdmissionQueue):
                limit.add_metric([model], queue.limit)
        yield limit
        yield from self._breakers()
        source = GaugeMetricFamily(
            "service_degradation_source_level",
            "Level that each source asks for; the higher one is in force",
            labels=["source"],
        )
        source.add_metric(["admin"], self._gate.admin.level)
        source.add_metric(["automatic"], self._gate.automatic.level)
        yield source

    def _breakers(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("circuit_breaker_state", "One-hot", labels=["model", "state"])
        opened = CounterMetricFamily(
            "circuit_breaker_opened", "How often it opened", labels=["model"]
        )
        for model, host in self._hosts.items():
            breaker = host.dispatcher.breaker
            if breaker is None:
                continue
            for state in BreakerState:
                states.add_metric([model, state.value], float(breaker.state is state))
            opened.add_metric([model], breaker.opened)
        yield states
        yield opened
