"""What the series of one target mean: the names of the catalogue, resolved once to places in a table.

Looking up names, conditions and entities is dear and the same in every scrape, so it is done when a
target shows a new series; a scrape then costs some arithmetic for each signal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from collectors.entities import entity as entity_of
from collectors.exposition_lines import stem
from collectors.expressions import Expression, Selector, parse_expression
from collectors.mapping import MODEL_LABELS, EntityNamer, described
from collectors.series_table import Series
from collectors.signals import Kind, Layer, Signal, catalogue

CANONICAL = "canonical"
"""The source of series that another Galen exports, by a signal's own name."""
THROTTLE_MASK = "gpu_throttle_reason"


class Direct(NamedTuple):
    """A signal that is one number of the target, perhaps in another unit."""

    place: int
    factor: float
    signal: str
    entity: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Operand:
    """The series of one entity that a selector selects."""

    places: tuple[int, ...]
    counters: tuple[int, ...]
    """Their places among the counters; empty when they are read as they are."""
    family: tuple[int, ...]
    """All series of the name and the entity: they tell an event that never happened from no news."""
    is_counter: bool
    grows: bool
    """Whether what grew is meant, and not what stands."""


@dataclass(frozen=True, slots=True)
class Way:
    """One of the ways in which a target tells one signal of one entity; the first that gives it wins."""

    signal: Signal
    expression: Expression
    labels: Mapping[str, str]
    operands: Mapping[Selector, Operand]
    buckets: Mapping[float, tuple[int, ...]] | None = None
    """Places among the counters by upper bound, for a quantile of a histogram."""


@dataclass(slots=True)
class Plan:
    """Everything that a target's series mean."""

    direct: list[Direct] = field(default_factory=list)
    ways: dict[tuple[str, str], list[Way]] = field(default_factory=dict)
    """The ways to each signal, by entity and signal."""
    counters: list[int] = field(default_factory=list)
    """Places of the series whose increases are needed."""
    used: set[str] = field(default_factory=set)
    """Names that stand for a signal."""
    entities: set[str] = field(default_factory=set)
    """What the target speaks of."""
    too_many_entities: int = 0


@cache
def expressions(sources: tuple[str, ...]) -> Sequence[tuple[Signal, str, Expression]]:
    """Return the names of the catalogue in these exporters, in order of preference."""
    return tuple(
        (signal, source, parse_expression(name))
        for signal in catalogue().values()
        for source in sources
        for name in signal.names.get(source, ())
    )


@cache
def wanted_names() -> frozenset[str]:
    """Return every name of a series that any expression of the catalogue reads, and all signals."""
    names = set(catalogue())
    for signal in catalogue().values():
        for texts in signal.names.values():
            for selector in (one for text in texts for one in parse_expression(text).selectors):
                names.add(selector.name)
                if signal.kind is Kind.HISTOGRAM:
                    names.add(f"{selector.name}_bucket")
    return frozenset(names)


class Planner:
    """Makes the plan of one target.

    Args:
        namer: names entities.
        sources: whose names of the catalogue apply.
        target_labels: count as if every series had them, where it has not its own.
        max_entities: how many entities one target may speak of.
    """

    def __init__(
        self,
        namer: EntityNamer,
        sources: Sequence[str],
        target_labels: Mapping[str, str] | None = None,
        *,
        max_entities: int = 2_000,
    ) -> None:
        self._namer = namer
        self._sources = tuple(sources)
        self._target_labels = dict(target_labels or {})
        self._max_entities = max_entities
        self._plan = Plan()
        self._by_name: dict[str, list[int]] = {}
        self._series: Sequence[Series] = ()
        self._counter_places: dict[int, int] = {}
        self._entities: dict[tuple[int, Layer], str] = {}
        self._shared: dict[frozenset[tuple[str, str]], Mapping[str, str]] = {}

    def plan(self, series: Sequence[Series]) -> Plan:
        """Resolve the catalogue against these series."""
        self._series = series
        for place, one in enumerate(series):
            if "entity" in one.labels and one.name in catalogue():
                self._canonical(place, one)
            else:
                self._by_name.setdefault(one.name, []).append(place)
        for signal, source, expression in expressions(self._sources):
            self._resolve(signal, source, expression)
        if not self._sources:
            return self._plan
        for signal in catalogue().values():
            if signal.name in self._by_name and signal.name not in self._plan.used:
                self._resolve(signal, CANONICAL, parse_expression(signal.name))
        self._plan.counters = list(self._counter_places)
        self._simplify()
        return self._plan

    def _canonical(self, place: int, series: Series) -> None:
        given = series.labels["entity"]
        try:
            fits = entity_of(*given.split("/")) == given
        except ValueError:
            fits = given == "fleet"
        if not fits or not self._admits(given):
            return
        self._plan.used.add(series.name)
        labels = described(series.labels)
        self._plan.direct.append(Direct(place, 1.0, series.name, given, labels))

    def _admits(self, name: str) -> bool:
        entities = self._plan.entities
        if name not in entities:
            if len(entities) >= self._max_entities:
                self._plan.too_many_entities += 1
                return False
            entities.add(name)
        return True

    def _resolve(self, signal: Signal, source: str, expression: Expression) -> None:
        scaled = expression.scaled
        if signal.kind is Kind.HISTOGRAM and scaled is not None:
            buckets = self._buckets(scaled[0].name)
            if buckets:
                self._plan.used.update((scaled[0].name, self._series[buckets[0]].name))
                self._histogram(signal, source, expression, scaled[0], buckets)
                return
        columns = {
            selector: self._column(signal, selector, expression)
            for selector in expression.selectors
        }
        self._plan.used.update(s.name for s, column in columns.items() if column)
        first, *others = columns.values()
        for name, operand in first.items():
            if not all(name in column for column in others):
                continue
            # Where no such event has happened yet, the labels of the whole family describe it.
            labels = self._labels(signal, source, operand.places or operand.family)
            operands = {selector: column[name] for selector, column in columns.items()}
            self._add(name, Way(signal, expression, labels, operands))

    def _histogram(
        self,
        signal: Signal,
        source: str,
        expression: Expression,
        selector: Selector,
        places: Sequence[int],
    ) -> None:
        by_entity: dict[str, dict[float, list[int]]] = {}
        for place in places:
            labels = self._series[place].labels
            bound = _bound(labels["le"])
            if selector.holds(labels) and not math.isnan(bound):
                bounds = by_entity.setdefault(self._entity(signal, place), {})
                bounds.setdefault(bound, []).append(place)
        for name, bounds in by_entity.items():
            every = [place for found in bounds.values() for place in found]
            way = Way(
                signal, expression, self._labels(signal, source, every), {},
                {bound: self._counted(found) for bound, found in bounds.items()},
            )  # fmt: skip
            self._add(name, way)

    def _column(
        self, signal: Signal, selector: Selector, expression: Expression
    ) -> dict[str, Operand]:
        """The series of a selector by entity."""
        families: dict[str, list[int]] = {}
        for place in self._by_name.get(selector.name, ()):
            if self._is_of(signal, place):
                families.setdefault(self._entity(signal, place), []).append(place)
        is_counter = selector.is_counter
        increases = is_counter and (signal.kind is not Kind.COUNTER or expression.is_windowed)
        column: dict[str, Operand] = {}
        for name, family in families.items():
            places = [p for p in family if selector.holds(self._series[p].labels)]
            if places or is_counter:
                counters = self._counted(places) if increases else ()
                column[name] = Operand(
                    tuple(places), counters, tuple(family), is_counter, increases
                )
        return column

    def _is_of(self, signal: Signal, place: int) -> bool:
        """Leave out the other quantiles of a summary, and the numbers inside a histogram."""
        labels = self._series[place].labels
        if signal.kind is not Kind.HISTOGRAM or "quantile" not in labels:
            return "le" not in labels
        return _bound(labels["quantile"]) == signal.quantile

    def _add(self, name: str, way: Way) -> None:
        if self._admits(name):
            self._plan.ways.setdefault((name, way.signal.name), []).append(way)

    def _buckets(self, name: str) -> list[int]:
        # Triton's documentation shows buckets under the histogram's own name, without the suffix.
        found = [*self._by_name.get(name, ()), *self._by_name.get(f"{name}_bucket", ())]
        return [place for place in found if "le" in self._series[place].labels]

    def _entity(self, signal: Signal, place: int) -> str:
        labels = self._series[place].labels
        key = (id(labels), signal.layer)  # series share their labels' mappings
        name = self._entities.get(key)
        if name is None:
            merged = {**self._target_labels, **labels}
            name = self._entities[key] = self._namer.name(signal.layer, merged)
        return name

    def _labels(self, signal: Signal, source: str, places: Sequence[int]) -> Mapping[str, str]:
        common = described(self._series[places[0]].labels)
        for place in places[1:]:
            common = dict(common.items() & described(self._series[place].labels).items())
        if signal.layer is Layer.GPU and source != CANONICAL:
            common["exporter"] = source
        return self._shared.setdefault(frozenset(common.items()), common)

    def _counted(self, places: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._counter_places.setdefault(p, len(self._counter_places)) for p in places)

    def _simplify(self) -> None:
        """Take what is one number of the target out of the general case; most signals are that."""
        for key, ways in list(self._plan.ways.items()):
            (way, *others) = ways
            scaled = way.expression.scaled
            plain = way.signal.name != THROTTLE_MASK and not (
                way.signal.zero_is_absent or way.signal.sticky
            )
            if others or scaled is None or way.buckets is not None or not plain:
                continue
            operand = way.operands[scaled[0]]
            if scaled[0].fold or operand.counters or len(operand.places) != 1:
                continue
            self._plan.direct.append(
                Direct(operand.places[0], scaled[1], way.signal.name, key[0], way.labels)
            )
            del self._plan.ways[key]


def models_of(series: Sequence[Series]) -> set[str]:
    """Return the models that a target's series name."""
    found = {one.labels.get(label, "") for one in series for label in MODEL_LABELS}
    return found - {""}


def unrecognised(names: Sequence[str], used: set[str]) -> list[str]:
    """Return the names that stand for no signal; parts of one histogram are one name."""
    histograms = {stem(name) for name in names if name.endswith("_bucket")}
    known = used | {stem(name) for name in used if name.endswith(("_bucket", "_count", "_sum"))}
    seen: dict[str, None] = {}
    for name in names:
        family = stem(name)
        if not name.endswith("_created") and name not in known and family not in known:
            seen.setdefault(family if family in histograms else name)
    return list(seen)


def _bound(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
