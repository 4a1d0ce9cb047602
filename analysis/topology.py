"""Which entities have to do with each other: the entity tree, and what runs, reads or sits where.

A *stack* is everything that can share a fault: a host, its GPUs, the services on it and the collectors
that read them. Evidence for a cause on one entity is looked for on that entity and its relatives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from collectors.entities import FLEET, ancestors, kind_of, top_of

_SERVICE_READERS = ("service-", "prometheus-")
_CANARY_READER = "canary-"
_GPU_READERS = ("collector/gpu-nvml", "collector/gpu-simulated")
_XID_READER = "collector/gpu-xid"
_XID_SIGNALS = frozenset(
    {"gpu_xid", "gpu_sxid", "gpu_xid_events_total", "gpu_recommended_action", "gpu_xid_sources"}
)


def reads_gpus(collector: str) -> bool:
    """Say whether a collector, by its entity, is one that reads the GPUs of this machine."""
    return collector in {*_GPU_READERS, _XID_READER}


class Topology:
    """The relations among a set of entities, which does not change: build another when one appears.

    Args:
        entities: every entity that has been seen.
        service_hosts: host of a service, both as entity names. A service that is not in it is taken
            to run on the only host where there is just one; with several it stands alone.
    """

    def __init__(
        self, entities: Iterable[str], service_hosts: Mapping[str, str] | None = None
    ) -> None:
        self._entities = frozenset(entities)
        self._hosts = sorted(
            {top_of(name) for name in self._entities if kind_of(top_of(name)) == "host"}
        )
        self._service_hosts = dict(service_hosts or {})
        self._related: dict[str, frozenset[str]] = {}
        self._stacks: dict[str, set[str]] = {}
        for name in self._entities:
            self._stacks.setdefault(self.stack_of(name), set()).add(name)

    @property
    def entities(self) -> frozenset[str]:
        """Every entity that this topology was built from."""
        return self._entities

    def host_of(self, service: str) -> str | None:
        """Return the host that a service runs on, None where that is not known."""
        linked = self._service_hosts.get(top_of(service))
        if linked is not None:
            return linked
        return self._hosts[0] if len(self._hosts) == 1 else None

    def stack_of(self, name: str) -> str:
        """Return the name of the stack that an entity belongs to: its host where it has one."""
        top = top_of(name)
        kind = kind_of(top)
        if kind == "service":
            return self.host_of(top) or top
        if kind == "collector":
            service = self._read_service(top)
            if service is not None:
                return self.host_of(service) or service
            return self._hosts[0] if len(self._hosts) == 1 else top
        return top

    def members(self, stack: str) -> frozenset[str]:
        """Return the entities of a stack."""
        return frozenset(self._stacks.get(stack, ()))

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
        elif kind in {"gpu", "mig"}:
            # The collectors of GPUs read this machine; with several hosts others have read the rest.
            xids = (_XID_READER,) if signal in _XID_SIGNALS else ()
            candidates = [*xids, *_GPU_READERS] if len(self._hosts) == 1 else []
        else:
            candidates = ["collector/host"]
        return next((name for name in candidates if name in self._entities), None)

    def _read_service(self, collector: str) -> str | None:
        name = collector.split("/", 1)[1]
        for prefix in (*_SERVICE_READERS, _CANARY_READER):
            if name.startswith(prefix):
                return f"service/{name[len(prefix) :]}"
        return None

    def _relatives(self, name: str) -> frozenset[str]:
        found = {other for other in ancestors(name) if other != FLEET}
        found |= {other for other in self._entities if other.startswith(f"{name}/")}
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
        host = self.host_of(name)
        if host is not None:
            found |= {other for other in self._entities if top_of(other) == host}
        return found

    def _relatives_of_host(self, name: str) -> set[str]:
        host = top_of(name)
        found = {
            other
            for other in self._entities
            if kind_of(top_of(other)) == "service" and self.host_of(other) == host
        }
        if len(self._hosts) == 1:
            # The state of the driver as a whole is the host's, and its GPUs' collector finds it.
            own = set() if kind_of(name) in {"gpu", "mig"} else {"collector/host"}
            found |= own | set(_GPU_READERS)
        return found

    def _relatives_of_collector(self, name: str) -> set[str]:
        service = self._read_service(name)
        if service is not None:
            return {other for other in self._entities if top_of(other) == service}
        if len(self._hosts) != 1:
            return set()
        if reads_gpus(name):
            gpus = {other for other in self._entities if kind_of(other) in {"gpu", "mig"}}
            return gpus | {self._hosts[0]}
        return {self._hosts[0]} if name == "collector/host" else set()
