"""What one scrape alone says: every number that a target gives once, in canonical terms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from collectors.counter_history import Increases
from collectors.evaluation import Scrape, Value, throttle_flags
from collectors.exposition import Exposition
from collectors.mapping import EntityNamer
from collectors.plan import (
    THROTTLE_MASK,
    Plan,
    Planner,
    unrecognised,
)
from collectors.presets import detect, sources_of
from collectors.series_table import Series
from collectors.signals import Kind, catalogue


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
    kinds: Sequence[str] = ()
    """The presets that the target belongs to."""


def recognise(
    exposition: Exposition,
    namer: EntityNamer,
    *,
    kinds: Sequence[str] | None = None,
    target_labels: Mapping[str, str] | None = None,
    now_seconds: float = math.nan,
) -> Recognition:
    """Read canonical signals out of one scrape of any known exporter.

    One scrape cannot tell a rate. A counter that stands for a rate is given as it is, in the unit that
    it counts and labelled ``cumulative="true"``; a ratio of counters or a quantile of a histogram is
    that of the whole life of the process and labelled ``window="lifetime"``.

    Args:
        exposition: the scrape.
        namer: names the entities.
        kinds: the presets that it belongs to; None finds out.
        target_labels: count as if every series had them.
        now_seconds: the wall clock; without it there are no ages.
    """
    samples = list(exposition.samples())
    series = [Series(sample.name, sample.labels) for sample in samples]
    names = list(dict.fromkeys(one.name for one in series))
    found = detect(names) if kinds is None else kinds
    plan = Planner(namer, sources_of(found), target_labels).plan(series)
    readings, counts, missing = [], dict[str, None](), dict[str, None]()
    for reading, signal in _readings(plan, [sample.value for sample in samples], now_seconds):
        if reading is None:
            missing[signal] = None
            continue
        readings.append(reading)
        if "cumulative" in reading.labels:
            counts[signal] = None
    notes = []
    if counts:
        notes.append(f"counts since the process started, not rates: {', '.join(counts)}")
    if missing:
        notes.append(f"left out, since they need two scrapes: {', '.join(missing)}")
    blanks = [
        f"{name}: {count} values were blank, NaN or infinite and left out"
        for name, count in exposition.left_out.items()
    ]
    if exposition.repeated:
        blanks.append(f"{exposition.repeated} lines repeat a series; the last of each counts")
    blanks += [f"left out: {offender}" for offender in exposition.offenders]
    return Recognition(readings, unrecognised(names, plan.used), [*notes, *blanks], found)


def _readings(
    plan: Plan, values: Sequence[float], now_seconds: float
) -> Iterator[tuple[Reading | None, str]]:
    """Yield what one scrape says of each signal; None where it takes two."""
    for one in plan.direct:
        value = values[one.place] * one.factor
        unit = catalogue()[one.signal].unit
        yield Reading(one.signal, one.entity, value, unit, one.labels), one.signal
    # As if the process had begun one second ago: what it has counted is the increase since then.
    life = Increases([values[place] for place in plan.counters], 1.0)
    for found in Scrape(values, now_seconds, step=life, window=life).evaluate(plan):
        yield _reading(found), found.signal.name
        if found.signal.name == THROTTLE_MASK:
            for signal, flag in throttle_flags(found):
                yield Reading(signal, found.entity, flag, "bool", found.labels), signal


def _reading(found: Value) -> Reading | None:
    signal, unit, labels = found.signal, found.signal.unit, dict(found.labels)
    if found.way.buckets is not None:
        labels |= {"window": "lifetime", "quantile": f"{signal.quantile:g}"}
    elif found.way.expression.is_windowed:
        labels["window"] = "lifetime"
    elif any(operand.grows for operand in found.way.operands.values()):
        if signal.kind not in {Kind.RATE, Kind.EVENT} and unit != "count":
            return None
        labels["cumulative"] = "true"
        unit = unit.removesuffix("/second")
        unit = "count" if unit == "1" else unit
    return Reading(signal.name, found.entity, found.value, unit, labels)
