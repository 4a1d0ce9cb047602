"""From the names of any known exporter to canonical signals and entities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from collectors.entities import FLEET, entity
from collectors.exposition import Exposition, RawSample, stem
from collectors.expressions import Expression, Selector, parse_expression
from collectors.gpu.throttle import throttle_signals
from collectors.rates import histogram_quantile
from collectors.signals import Bad, Kind, Layer, Signal, catalogue

QUANTILE = 0.95
"""What a latency histogram is reduced to, as the catalogue describes."""

# The labels by which exporters say what a number is about; the first that is there wins.
HOST_LABELS = ("host", "Hostname", "nodename", "node", "instance")
GPU_LABELS = ("gpu_id", "gpu", "gpu_uuid", "UUID", "uuid")
SERVICE_LABELS = ("service", "model_name", "model", "job")
COLLECTOR_LABELS = ("collector", "job", "instance")
_DESCRIPTIVE_LABELS = {
    "UUID": "uuid",
    "gpu_uuid": "uuid",
    "modelName": "name",
    "model_name": "model",
    "model": "model",
    "simulated": "simulated",
}
_ADDITIVE_UNITS = frozenset(
    {
        "requests", "count", "bytes", "bytes/second", "tokens/second", "requests/second", "1/second",
        "percent of a core",
    }
)  # fmt: skip


class Reading(NamedTuple):
    """One canonical number with its unit."""

    signal: str
    entity: str
    value: float
    unit: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Recognition:
    """What one scrape means."""

    readings: Sequence[Reading]
    unrecognised: Sequence[str]
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class EntityNamer:
    """Names the entity of a series from its labels.

    ``service`` set puts every service-side series on that service and sums over its models; unset, the
    labels name the service.
    """

    host: str = "unknown"
    service: str | None = None

    def name(self, layer: Layer, labels: Mapping[str, str]) -> str:
        """Return the entity of a series of a signal of a layer."""
        if layer is Layer.GPU:
            gpu = _first(labels, GPU_LABELS)
            return entity("host", self._host(labels), *(("gpu", gpu) if gpu else ()))
        if layer in {Layer.HOST, Layer.STORAGE, Layer.NETWORK}:
            return entity("host", self._host(labels))
        if layer is Layer.MONITORING:
            collector = _first(labels, COLLECTOR_LABELS)
            return entity("collector", collector) if collector else FLEET
        service = labels.get("service") or self.service or _first(labels, SERVICE_LABELS)
        return entity("service", service) if service else FLEET

    def name_of(self, signal: str, labels: Mapping[str, str]) -> str:
        """Return the entity of a series of a signal; labels tell about one that is not known."""
        known = catalogue().get(signal)
        if known is not None:
            return self.name(known.layer, labels)
        if _first(labels, GPU_LABELS):
            return self.name(Layer.GPU, labels)
        if _first(labels, SERVICE_LABELS[:-1]):
            return self.name(Layer.SERVICE, labels)
        return self.name(Layer.HOST, labels) if _first(labels, HOST_LABELS) else FLEET

    def _host(self, labels: Mapping[str, str]) -> str:
        host = _first(labels, HOST_LABELS) or self.host
        # A Prometheus instance is `host:port`; an IPv6 address keeps its brackets.
        name, colon, port = host.rpartition(":")
        return name if colon and port.isdigit() and name else host


def recognise(exposition: Exposition, namer: EntityNamer) -> Recognition:
    """Read canonical signals out of one scrape of any known exporter.

    One scrape cannot tell a rate. A counter that stands for a rate is given as it is, in the unit that
    it counts and labelled ``cumulative="true"``; a ratio of counters or a quantile of a histogram is
    that of the whole life of the process and labelled ``window="lifetime"``.
    """
    scrape = _Scrape(exposition, namer)
    readings: dict[tuple[str, str], Reading] = {}
    used: set[str] = set()
    for signal, expression in _expressions():
        if not scrape.has_any(expression):
            continue
        used.update(operand.name for operand in expression.operands)
        for reading in scrape.evaluate(signal, expression):
            readings.setdefault((reading.entity, reading.signal), reading)
    _add_throttle_flags(readings)
    blanks = [
        f"{name}: {count} values were blank, NaN or infinite and left out"
        for name, count in exposition.left_out.items()
    ]
    return Recognition(
        readings=list(readings.values()),
        unrecognised=[
            name
            for name, family in exposition.families.items()
            if not name.endswith("_created") and not _is_used(name, family.samples, used)
        ],
        notes=[*scrape.notes, *blanks],
    )


@cache
def _expressions() -> Sequence[tuple[Signal, Expression]]:
    """Every name of the catalogue; a signal's own name is the last of its names."""
    return tuple(
        (signal, parse_expression(name))
        for signal in catalogue().values()
        for names in (*signal.names.values(), (signal.name,))
        for name in names
    )


def _is_used(family: str, samples: Sequence[RawSample], used: set[str]) -> bool:
    return family in used or stem(family) in used or any(sample.name in used for sample in samples)


@dataclass(slots=True)
class _Operand:
    """One selector's value for one entity, over all of its series there."""

    value: float
    labels: Mapping[str, str]


@dataclass(slots=True)
class _Scrape:
    exposition: Exposition
    namer: EntityNamer
    notes: list[str] = field(default_factory=list)

    def has_any(self, expression: Expression) -> bool:
        return any(
            self.exposition.named(operand.name) or self._buckets(operand.name)
            for operand in expression.operands
        )

    def evaluate(self, signal: Signal, expression: Expression) -> Iterator[Reading]:
        first = expression.operands[0]
        if not expression.operator and self._buckets(first.name):
            yield from self._quantiles(signal, first, expression.factor)
            return
        columns = [self._column(signal, operand) for operand in expression.operands]
        counters = first.is_counter
        for name, start in columns[0].items():
            if not all(name in column for column in columns):
                continue
            values = [column[name].value for column in columns]
            value = _combine(expression.operator, values)
            if value is None:
                continue
            reading = self._reading(
                signal, name, value * expression.factor, start.labels,
                cumulative=counters and expression.operator != "/",
                lifetime=counters and expression.operator == "/",
            )  # fmt: skip
            if reading is not None:
                yield reading

    def _reading(
        self,
        signal: Signal,
        name: str,
        value: float,
        labels: Mapping[str, str],
        *,
        cumulative: bool,
        lifetime: bool,
    ) -> Reading | None:
        unit = signal.unit
        if cumulative and signal.kind is not Kind.COUNTER:
            if signal.kind not in {Kind.RATE, Kind.EVENT} and signal.unit != "count":
                self.notes.append(f"{signal.name} on {name} needs two scrapes and is left out")
                return None
            self.notes.append(f"{signal.name} on {name} is a count since the process started")
            labels, unit = {**labels, "cumulative": "true"}, unit.removesuffix("/second")
            unit = "count" if unit == "1" else unit
        elif lifetime:
            labels = {**labels, "window": "lifetime"}
        return Reading(signal.name, name, value, unit, labels)

    def _column(self, signal: Signal, selector: Selector) -> dict[str, _Operand]:
        """The value of a selector by entity."""
        column: dict[str, _Operand] = {}
        for sample in self.exposition.named(selector.name):
            if not all(matcher.holds(sample.labels) for matcher in selector.matchers):
                continue
            value = 1.0 if selector.counted else sample.value
            name = self.namer.name(signal.layer, sample.labels)
            known = column.get(name)
            if known is None:
                column[name] = _Operand(value, _described(sample.labels))
            else:
                add = selector.counted or selector.is_counter
                known.value = known.value + value if add else together(signal, known.value, value)
                known.labels = dict(known.labels.items() & _described(sample.labels).items())
        return column

    def _buckets(self, name: str) -> list[RawSample]:
        # Triton's documentation shows buckets under the histogram's own name, without the suffix.
        bare = [sample for sample in self.exposition.named(name) if "le" in sample.labels]
        return bare or self.exposition.named(f"{name}_bucket")

    def _quantiles(self, signal: Signal, selector: Selector, factor: float) -> Iterator[Reading]:
        buckets: dict[str, dict[float, float]] = {}
        labels: dict[str, Mapping[str, str]] = {}
        for sample in self._buckets(selector.name):
            name = self.namer.name(signal.layer, sample.labels)
            bound = float(sample.labels.get("le", "nan"))
            counts = buckets.setdefault(name, {})
            counts[bound] = counts.get(bound, 0.0) + sample.value
            labels.setdefault(name, _described(sample.labels))
        for name, counts in buckets.items():
            value = histogram_quantile(QUANTILE, counts)
            if value is not None:
                described = {**labels[name], "window": "lifetime", "quantile": str(QUANTILE)}
                yield Reading(signal.name, name, value * factor, signal.unit, described)


def _combine(operator: str, values: Sequence[float]) -> float | None:
    if operator == "/":
        return values[0] / values[1] if values[1] > 0 else None
    return sum(values)


def together(signal: Signal, left: float, right: float) -> float:
    """Put two series of one entity together: add what can be added, else take the worse."""
    if is_additive(signal):
        return left + right
    return min(left, right) if signal.bad_direction is Bad.DOWN else max(left, right)


def is_additive(signal: Signal) -> bool:
    """Say whether values of parts add up to the value of the whole."""
    return signal.unit in _ADDITIVE_UNITS


def _add_throttle_flags(readings: dict[tuple[str, str], Reading]) -> None:
    masks = [reading for reading in readings.values() if reading.signal == "gpu_throttle_reason"]
    for mask in masks:
        for signal, value in throttle_signals(int(mask.value)):
            readings.setdefault(
                (mask.entity, signal), Reading(signal, mask.entity, value, "bool", mask.labels)
            )


def _described(labels: Mapping[str, str]) -> dict[str, str]:
    return {
        ours: labels[theirs] for theirs, ours in _DESCRIPTIVE_LABELS.items() if labels.get(theirs)
    }


def _first(labels: Mapping[str, str], wanted: Sequence[str]) -> str:
    return next((labels[label] for label in wanted if labels.get(label)), "")
