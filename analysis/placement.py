"""Where services and replicas run: links followed through pods to GPUs and hosts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from collectors.entities import FLEET, ancestors, kind_of, top_of
from collectors.links import Link, Relation

_DEVICES = frozenset({"gpu", "mig"})


class Placement:
    """Follows the links of a set of entities.

    A service runs wherever one of its replicas does. What has no link of its own runs where its parent
    does.

    Args:
        entities: those that have series.
        service_hosts: host by service, from a person; for these, what labels say does not count.
        links: what labels and a person say.
    """

    def __init__(
        self,
        entities: Collection[str],
        service_hosts: Mapping[str, str] | None = None,
        links: Iterable[Link] = (),
    ) -> None:
        self._hosts = frozenset(
            top_of(name) for name in entities if kind_of(top_of(name)) == "host"
        )
        self._entities = frozenset(entities)
        self._fixed = dict(service_hosts or {})
        self._targets: dict[str, set[str]] = {}
        for link in links:
            if link.relation is Relation.RUNS_ON:
                self._targets.setdefault(link.source, set()).add(link.target)
        self._parts: dict[str, list[str]] = {}
        for name in {*self._targets, *self._entities}:
            for other in ancestors(name):
                if other != FLEET:
                    self._parts.setdefault(other, []).append(name)
        self._places: dict[str, frozenset[str]] = {}

    def places_of(self, name: str) -> frozenset[str]:
        """Return everything that a service or replica runs on: pods, devices, hosts; known or not."""
        if name not in self._places:
            self._places[name] = self._find(name)
        return self._places[name]

    def hosts_of(self, name: str) -> Sequence[str] | None:
        """Return the hosts, sorted, that a service or replica runs on.

        Returns:
            None where nothing is said about it. Empty where all that is said is of hosts that have no
            series: it runs, but nowhere that is watched.
        """
        fixed = self._fixed.get(top_of(name))
        if fixed is not None:
            return (fixed,)
        places = self.places_of(name)
        if not places:
            return None
        tops = {top_of(place) for place in places}
        return sorted(tops & self._hosts)

    def devices_of(self, name: str) -> frozenset[str]:
        """Return the GPUs that are known to serve a service or replica, where any are."""
        if top_of(name) in self._fixed:
            return frozenset()
        return frozenset(
            place
            for place in self.places_of(name)
            if kind_of(place) in _DEVICES and place in self._entities
        )

    def _find(self, name: str) -> frozenset[str]:
        starts = [name, *self._parts.get(name, ())]
        found = self._follow(starts)
        if not found and "/" in name:
            found = next(
                (above for other in ancestors(name) if (above := self._follow([other]))),
                frozenset(),
            )
        return found

    def _follow(self, starts: Iterable[str]) -> frozenset[str]:
        seen: set[str] = set()
        ahead = [target for start in starts for target in self._targets.get(start, ())]
        while ahead:
            place = ahead.pop()
            if place not in seen:
                seen.add(place)
                ahead += self._targets.get(place, ())
        return frozenset(seen)
