"""How many connections there are, who may have more, and how the others ended.

Connections over the limit are not simply closed: they may still ask for health, metrics and
administration, because a probe that cannot connect would have a service restarted whose only
trouble is that it is popular.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inference.settings import InferenceSettings

# Beyond the limit, for probes and people; what comes after that is closed at once.
RESERVED_CONNECTIONS = 16

TOO_MANY = "too_many_connections"
TOO_MANY_PER_ADDRESS = "too_many_connections_per_address"
CLOSED_AT_ONCE = "closed_at_once"
CUTS = (
    "head_timeout",
    "head_too_large",
    "too_many_headers",
    "invalid_http",
    "pipeline_too_long",
    "slow_reader",
)


class ConnectionCounts(Collector):
    """Open connections, and how others ended. Belongs to the event loop."""

    def __init__(self) -> None:
        self.open = 0
        self.by_address: Counter[str] = Counter()
        self.refused: Counter[str] = Counter(
            {TOO_MANY: 0, TOO_MANY_PER_ADDRESS: 0, CLOSED_AT_ONCE: 0}
        )
        self.cut: Counter[str] = Counter(dict.fromkeys(CUTS, 0))

    def enter(self, address: str, settings: InferenceSettings) -> str:
        """Count a connection; return why it may ask for no model, or nothing."""
        self.open += 1
        self.by_address[address] += 1
        per_address = settings.max_connections_per_address
        if self.open > settings.max_connections + RESERVED_CONNECTIONS:
            reason = CLOSED_AT_ONCE
        elif self.open > settings.max_connections:
            reason = TOO_MANY
        elif per_address is not None and self.by_address[address] > per_address:
            reason = TOO_MANY_PER_ADDRESS
        else:
            return ""
        self.refused[reason] += 1
        return reason

    def leave(self, address: str) -> None:
        """Count the end of a connection."""
        self.open -= 1
        self.by_address[address] -= 1
        if not self.by_address[address]:
            del self.by_address[address]

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        yield GaugeMetricFamily("http_connections_open", "Connections of clients", self.open)
        refused = CounterMetricFamily(
            "http_connections_refused", "Connections over a limit", labels=["reason"]
        )
        cut = CounterMetricFamily(
            "http_connections_cut", "Connections ended for what they did", labels=["reason"]
        )
        for family, counts in ((refused, self.refused), (cut, self.cut)):
            for reason, count in list(counts.items()):
                family.add_metric([reason], count)
            yield family
