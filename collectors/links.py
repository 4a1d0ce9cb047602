"""Links between entities: what runs where, and who reads what.

The path of an entity says what it is a part of. What it runs on is another matter: a replica runs in a
pod, the pod on GPUs of a host. Exporters tell pieces of that in their labels, each its own: the GPU's
exporter names the pod that holds the GPU, the server's target names the pod that it is. The pod joins
them, as an entity ``pod/<namespace>.<name>`` that has no series of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from collectors.entities import entity, kind_of, top_of

# Where Prometheus has put labels of its own on a series, `pod` is the exporter's pod, and the one that
# the exporter speaks of is called `exported_pod`.
POD_LABELS = ("exported_pod", "pod", "pod_name")
NAMESPACE_LABELS = ("exported_namespace", "namespace", "pod_namespace")
_HERE = frozenset({"localhost", "127.0.0.1", "[::1]", "::1", "0.0.0.0"})  # noqa: S104 - a name
NODE_LABELS = ("host", "Hostname", "nodename", "node", "kubernetes_node")


class Relation(StrEnum):
    """How two entities belong together."""

    RUNS_ON = "runs_on"
    """A fault of the target is felt by the source."""
    READS = "reads"
    """The source is the collector that gives the target's series."""


class Link(NamedTuple):
    """``source`` is related to ``target``; both are names of entities."""

    source: str
    relation: Relation
    target: str


def links_of(name: str, labels: Mapping[str, str]) -> Iterator[Link]:
    """Yield what the labels of a series say about where its entity runs.

    A GPU's series that names a pod says that the pod runs on this GPU. A service's or replica's series
    that names a pod, a node or an instance says that it runs there. Nothing follows for other kinds.

    Args:
        name: the entity of the series.
        labels: those of the series and of the target that gave it.
    """
    pod = _pod(labels)
    if kind_of(name) in {"gpu", "mig"}:
        if pod is not None:
            yield Link(pod, Relation.RUNS_ON, name)
    elif kind_of(top_of(name)) == "service":
        if pod is not None:
            yield Link(name, Relation.RUNS_ON, pod)
        node = _first(labels, NODE_LABELS) or host_of_instance(labels.get("instance", ""))
        if node and node not in _HERE:
            yield Link(name, Relation.RUNS_ON, entity("host", node))


def host_of_instance(instance: str) -> str:
    """Return the host of a Prometheus instance, ``host:port``; an IPv6 address keeps its brackets."""
    name, colon, port = instance.rpartition(":")
    return name if colon and port.isdigit() and name else instance


def _pod(labels: Mapping[str, str]) -> str | None:
    pod = _first(labels, POD_LABELS)
    if not pod:
        return None
    namespace = _first(labels, NAMESPACE_LABELS)
    return entity("pod", f"{namespace}.{pod}" if namespace else pod)


def _first(labels: Mapping[str, str], wanted: tuple[str, ...]) -> str:
    return next((labels[label] for label in wanted if labels.get(label)), "")
