"""Which entities have to do with each other: the entity tree, and what runs, reads or sits where.

A *stack* is everything that can share a fault: a host, its GPUs, the services on it and the collectors
that read them. Evidence for a cause on one entity is looked for on that entity and its relatives. A
service whose replicas run on several hosts is a stack of its own; each of its replicas belongs to the
host that it runs on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from analysis.placement import Placement
from collectors.entities import FLEET, ancestors, kind_of, top_of
from collectors.links import Link, Relation

_SERVICE_READERS = ("service-", "prometheus-")
_CANARY_READER = "canary-"
_GPU_READERS = ("collector/gpu-nvml", "collector/gpu-simulated")
_XID_READER = "collector/gpu-xid"
_XID_SIGNALS = frozenset(
    {"gpu_xid", "gpu_sxid", "gpu_xid_events_total", "gpu_recommended_action", "gpu_xid_sources"}
)
_MAX_REACH = 256
"""Entities of its hosts that are looked at for a service on several; beyond that only its own are."""


def reads_gpus(collector: str) -> bool:
    """Say whether a collector, by its entity, is one that reads the GPUs of this machine."""
    return collector in {*_GPU_READERS, _XID_READER}


class Topology:
    """The relations among a set of entities, which does not change: build another when one appears.

    Args:
        entities: every entity that has been seen.
        service_hosts: host of a service, both as entity names. A service of which neither this nor a
            link says anything is taken to run on the only host where there is just one; with several
            it stands alone.
        links: what runs where and who reads what.
    """

    def __init__(
        self,
        entities: Iterable[str],
        service_hosts: Mapping[str, str] | None = None,
        links: Iterable[Link] = (),
    ) -> None:
        self._entities = frozenset(entities)
        self._hosts = sorted(
            {top_of(name) for name in self._entities if kind_of(top_of(name)) == "host"}
        )
        links = list(links)
        self._placement = Placement(self._entities, service_hosts, links)
        self._readers: dict[str, set[str]] = {}
        self._read: dict[str, set[str]] = {}
        for link in links:
            if link.relation is Relation.READS:
                self._readers.setdefault(link.target, set()).add(link.source)
                self._read.setdefault(link.source, set()).add(link.target)
        self._related: dict[str, frozenset[str]] = {}
        self._by_top: dict[str, set[str]] = {}
        self._stacks: dict[str, set[str]] = {}
        for name in self._entities:
            self._by_top.setdefault(top_of(name), set()).add(name)
            self._stacks.setdefault(self.stack_of(name), set()).add(name)

    @property
    def entities(self) -> frozenset[str]:
        """Every entity that this topology was built from."""
        return self._entities

    def hosts_of(self, service: str) -> tuple[str, ...]:
        """Return the hosts that a service or replica runs on; none where that is not known."""
        hosts = self._placement.hosts_of(service)
        if hosts is not None:
            return tuple(hosts)
        return tuple(self._hosts) if len(self._hosts) == 1 else ()

    def stack_of(self, name: str) -> str:
        """Return the name of the stack that an entity belongs to: its host where it has one."""
        top = top_of(name)
        kind = kind_of(top)
        if kind == "service":
            hosts = self.hosts_of(name)
            return hosts[0] if len(hosts) == 1 else top
        if kind == "collector":
            return self._stack_of_collector(top)
        return top

    def members(self, stack: str) -> frozenset[str]:
        """Return the entities of a stack."""
        return frozenset(self._stacks.get(stack, ()))

    def reach(self, stack: str) -> frozenset[str]:
        """Return the entities on which a fault of a stack may lie: its own, and of its hosts.

        They differ for a service on several hosts only.
        """
        own = self.members(stack)
        if kind_of(stack) != "service":
            return own
        beyond = {name for host in self.hosts_of(stack) for name in self.members(host)}
        return own | beyond if len(beyond) <= _MAX_REACH else own

    def related(self, name: str) -> frozenset[str]:
        """Return the entities on which evidence for a cause on ``name`` may show, without itself."""
        if name not in self._related:
            self._related[name] = self._relatives(name)
        return self._related[name]

    def source_of(self, entity: str, signal: str) -> str | None:
        """Return the collector that delivers a series, None where that cannot be told."""
        top, kind = top_of(entity), kind_of(entity)
        if kind_of(top) == "collector":
            return None
        if kind_of(top) == "service":
            name = top.split("/", 1)[1]
            prefixes = (_CANARY_READER,) if signal.startswith("canary_") else _SERVICE_READERS
            candidates = [f"collector/{prefix}{name}" for prefix in prefixes]
        elif kind in {"gpu", "mig", "nvswitch"}:
            # The collectors of GPUs read this machine; with several hosts others have read the rest.
            xids = (_XID_READER,) if signal in _XID_SIGNALS else ()
            candidates = [*xids, *_GPU_READERS] if len(self._hosts) == 1 else []
        else:
            candidates = ["collector/host"]
        linked = self._readers.get(entity, set()) & self._entities
        if linked and not signal.startswith("canary_"):
            # Of several readers, nobody knows here which one gave this series.
            return next(iter(linked)) if len(linked) == 1 else None
        return next((name for name in candidates if name in self._entities), None)

    def _stack_of_collector(self, collector: str) -> str:
        read = self._read.get(collector)
        if read:
            stacks = {self.stack_of(name) for name in read}
            return stacks.pop() if len(stacks) == 1 else collector
        service = self._read_service(collector)
        if service is not None:
            return self.stack_of(service)
        return self._hosts[0] if len(self._hosts) == 1 else collector

    def _read_service(self, collector: str) -> str | None:
        name = collector.split("/", 1)[1]
        for prefix in (*_SERVICE_READERS, _CANARY_READER):
            if name.startswith(prefix):
                return f"service/{name[len(prefix) :]}"
        return None

    def _relatives(self, name: str) -> frozenset[str]:
        found = {other for other in ancestors(name) if other != FLEET}
        found |= {
            other for other in self._by_top.get(top_of(name), ()) if other.startswith(f"{name}/")
        }
        found |= self._readers.get(name, set())
        kind = kind_of(top_of(name))
        if kind == "service":
            found |= self._relatives_of_service(name)
        elif kind == "host":
            found |= self._relatives_of_host(name)
        elif kind == "collector":
            found |= self._relatives_of_collector(name)
        return frozenset((found & self._entities) - {name})

    def _relatives_of_service(self, name: str) -> set[str]:
        own = top_of(name).split("/", 1)[1]
        found = {f"collector/{prefix}{own}" for prefix in _SERVICE_READERS}
        devices = self._placement.devices_of(name)
        for host in self.hosts_of(name):
            beside = self._by_top.get(host, set())
            if any(top_of(device) == host for device in devices):
                # The GPUs are known: its host counts, and their neighbours do not.
                beside = {other for other in beside if _is_part(other, devices)} | {host}
            found |= beside
        return found

    def _relatives_of_host(self, name: str) -> set[str]:
        host = top_of(name)
        found = {other for other in self._entities if self._runs_on(other, name, host)}
        if len(self._hosts) == 1:
            # The state of the driver as a whole is the host's, and its GPUs' collector finds it.
            own = set() if kind_of(name) in {"gpu", "mig"} else {"collector/host"}
            found |= own | set(_GPU_READERS)
        if kind_of(name) == "gpu":
            switches = {other for other in self._entities if kind_of(other) == "nvswitch"}
            found |= {other for other in switches if top_of(other) == host}
        return found

    def _runs_on(self, service: str, name: str, host: str) -> bool:
        """Say whether a service or replica would feel a fault of ``name``, which is on ``host``."""
        if kind_of(top_of(service)) != "service" or host not in self.hosts_of(service):
            return False
        devices = self._placement.devices_of(service)
        here = {device for device in devices if top_of(device) == host}
        return name == host or not here or _is_part(name, here)

    def _relatives_of_collector(self, name: str) -> set[str]:
        if name in self._read:
            return set(self._read[name])
        service = self._read_service(name)
        if service is not None:
            return {other for other in self._entities if top_of(other) == service}
        if len(self._hosts) != 1:
            return set()
        if reads_gpus(name):
            gpus = {other for other in self._entities if kind_of(other) in {"gpu", "mig"}}
            return gpus | {self._hosts[0]}
        return {self._hosts[0]} if name == "collector/host" else set()


def _is_part(name: str, devices: Iterable[str]) -> bool:
    """Say whether an entity is one of the devices, a part of one, or what one is a part of."""
    return any(
        name == device or name.startswith(f"{device}/") or device.startswith(f"{name}/")
        for device in devices
    )
