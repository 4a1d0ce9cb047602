"""Where the anomalies of a service that runs on several hosts belong.

Such a service is a stack of its own. When something breaks on one of its hosts at about the same time,
what the service shows is most likely part of that, and both are one incident on that host's stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.findings import Anomaly, Incident
from analysis.topology import Topology
from collectors.entities import kind_of


@dataclass(frozen=True, slots=True)
class OpenOn:
    """An open incident and the stack that it is on by its own entity."""

    incident: Incident
    stack: str
    on_gpu: bool


def homes(
    topology: Topology,
    anomalies: Iterable[Anomaly],
    opened: Sequence[OpenOn],
    *,
    join_seconds: float,
) -> Mapping[str, str]:
    """Return the host's stack by the service's, for the services that are drawn into one now.

    Args:
        topology: the relations of now.
        anomalies: those that are active.
        opened: the open incidents.
        join_seconds: how far apart the first anomalies of both may be.
    """
    onsets: dict[str, float] = {}
    scores: dict[str, float] = {}
    for anomaly in anomalies:
        stack = topology.stack_of(anomaly.entity)
        onsets[stack] = min(onsets.get(stack, anomaly.onset_seconds), anomaly.onset_seconds)
        scores[stack] = max(scores.get(stack, 0.0), anomaly.score)
    for each in opened:
        began = each.incident.onset_seconds
        onsets[each.stack] = min(onsets.get(each.stack, began), began)
    found: dict[str, str] = {}
    for stack, onset in onsets.items():
        hosts = topology.hosts_of(stack) if kind_of(stack) == "service" else ()
        near = [
            host
            for host in hosts
            if len(hosts) > 1
            and host in onsets
            and (abs(onsets[host] - onset) <= join_seconds or _holds(opened, host, stack))
            and not _both_have_one(opened, host, stack)
        ]
        if near:
            found[stack] = max(
                near,
                key=lambda host: (_holds(opened, host, stack), scores.get(host, 0.0), host),
            )
    return found


def _holds(opened: Sequence[OpenOn], host: str, stack: str) -> bool:
    """Say whether an incident of the host has anomalies of the service already."""
    return any(
        each.stack == host and any(a.entity.startswith(stack) for a in each.incident.anomalies)
        for each in opened
    )


def _both_have_one(opened: Sequence[OpenOn], host: str, stack: str) -> bool:
    """Say whether each has an incident of its own; then they stay two."""
    mains = {each.stack for each in opened if not each.on_gpu}
    return host in mains and stack in mains
