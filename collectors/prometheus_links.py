"""Where things run, asked of a Prometheus that scrapes them: pods of GPUs, and places of replicas.

The numbers of a service's replicas are summed before they are read; what tells the replicas apart is
lost in that. So their places are asked for by themselves, once a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog

from collectors.contract import CollectorError
from collectors.entities import entity
from collectors.expressions import parse_expression
from collectors.fleet_reader import Fetch
from collectors.links import NAMESPACE_LABELS, NODE_LABELS, POD_LABELS, Link, links_of
from collectors.mapping import GPU_LABELS, HOST_LABELS, MIG_LABEL, SERVICE_LABELS, EntityNamer
from collectors.signals import Layer, catalogue

log = structlog.get_logger(__name__)

EVERY_SECONDS = 60.0
_PODS = (*POD_LABELS, *NAMESPACE_LABELS)
_GPU_SIGNALS = ("gpu_temperature_celsius", "gpu_utilization_percent")
_SERVICE_SIGNALS = ("llm_active_requests", "llm_queue_depth", "llm_requests_per_second")
_REPLICA_LABELS = ("replica", *POD_LABELS, "instance")


class PrometheusLinks:
    """The links of one Prometheus, asked for again every minute.

    Args:
        name: what the log calls it.
        sources: exporters, as the catalogue calls them.
        monotonic: the clock of the minute.
    """

    def __init__(
        self, name: str, sources: Iterable[str], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        wanted = tuple(sources)
        labels = (*HOST_LABELS, *GPU_LABELS, MIG_LABEL, *_PODS)
        self._gpus = _query(labels, _names(_GPU_SIGNALS, wanted))
        labels = (*SERVICE_LABELS, *_PODS, *NODE_LABELS, "instance", "replica")
        self._services = _query(labels, _names(_SERVICE_SIGNALS, wanted))
        self._monotonic = monotonic
        self._due = -float("inf")
        self._namer = EntityNamer()
        self._links: Sequence[Link] = ()

    def read(self, fetch: Fetch) -> Sequence[Link]:
        """Return the links of now; those of the last time when they are not due or cannot be had."""
        if self._monotonic() >= self._due:
            self._due = self._monotonic() + EVERY_SECONDS
            try:
                self._links = list(dict.fromkeys(self._ask(fetch)))
            except CollectorError as error:  # the numbers are what counts; places change seldom
                log.info("places_unknown", collector=self._name, error=str(error))
        return self._links

    def _ask(self, fetch: Fetch) -> Iterator[Link]:
        for labels, _ in fetch(self._gpus):
            yield from links_of(self._namer.name(Layer.GPU, labels), labels)
        for labels, _ in fetch(self._services):
            yield from links_of(self._replica(labels), labels)

    def _replica(self, labels: Mapping[str, str]) -> str:
        service = self._namer.name(Layer.SERVICE, labels)
        replica = next((labels[name] for name in _REPLICA_LABELS if labels.get(name)), "")
        return (
            entity(*service.split("/"), "replica", replica)
            if replica and "/" in service
            else service
        )


def _names(signals: Iterable[str], sources: Sequence[str]) -> list[str]:
    """The names of series that stand for some signals in some exporters."""
    texts = (
        text
        for signal in signals
        for source in sources
        for text in catalogue()[signal].names.get(source, ())
    )
    return sorted({one.name for text in texts for one in parse_expression(text).selectors})


def _query(labels: Iterable[str], names: Iterable[str]) -> str:
    # Series that other Galens export have their entity already.
    return f'group by ({", ".join(labels)}) ({{__name__=~"{"|".join(names)}",entity=""}})'
