"""The links that one target's series say, as of the series that it has now.

A GPU that goes from one pod to another gives new series; the old ones are known still, and must not go
on saying what is over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from collectors.entities import kind_of
from collectors.links import Link, links_of
from collectors.plan import Plan
from collectors.series_table import Series

_PLACES = 8
"""Series that are looked at for each link; one of them being there is enough."""
_DEVICES = frozenset({"gpu", "mig"})


class SeriesLinks:
    """The links of one plan.

    Args:
        plan: what the target's series mean.
        series: these.
        target_labels: count as if every series had them, except for GPUs: the pod of the exporter that
            speaks of a GPU is not the pod that the GPU serves.
    """

    def __init__(
        self, plan: Plan, series: Sequence[Series], target_labels: Mapping[str, str]
    ) -> None:
        places: dict[Link, list[int]] = {}
        for name, place in _about(plan):
            own = series[place].labels
            labels = own if kind_of(name) in _DEVICES else {**target_labels, **own}
            for link in links_of(name, labels):
                known = places.setdefault(link, [])
                if len(known) < _PLACES and place not in known:
                    known.append(place)
        self._places = places

    def of(self, values: Sequence[float]) -> list[Link]:
        """Return the links that the series with a value now say; NaN stands for none."""
        return [
            link
            for link, places in self._places.items()
            if any(values[place] == values[place] for place in places)
        ]


def _about(plan: Plan) -> Iterator[tuple[str, int]]:
    """Yield every entity with the places of the series that speak of it."""
    for direct in plan.direct:
        yield direct.entity, direct.place
    for (name, _), ways in plan.ways.items():
        for way in ways:
            for operand in way.operands.values():
                for place in operand.places:
                    yield name, place
