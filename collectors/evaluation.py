"""One scrape's numbers, read by the plan of its target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from collectors.counter_history import Increases
from collectors.expressions import Selector
from collectors.gpu.throttle import throttle_signals
from collectors.mapping import together
from collectors.plan import THROTTLE_MASK, Operand, Plan, Way
from collectors.rates import histogram_quantile
from collectors.signals import Kind, Layer, Signal

_SERVICE_LAYERS = frozenset(
    {Layer.ENGINE, Layer.SERVICE, Layer.APPLICATION, Layer.TRAFFIC, Layer.SECURITY, Layer.CONFIG}
)


class Value(NamedTuple):
    """One signal of one entity at one time."""

    signal: Signal
    entity: str
    value: float
    labels: Mapping[str, str]
    way: Way


@dataclass(frozen=True, slots=True)
class Scrape:
    """One scrape's numbers, to be read by a plan.

    ``step`` and ``window`` are None while there is only one scrape.
    """

    values: Sequence[float]
    now_seconds: float
    step: Increases | None = None
    window: Increases | None = None
    minimum_events: float = 0.0
    """How many events a ratio or quantile of a service needs to say something."""

    def evaluate(self, plan: Plan) -> Iterator[Value]:
        """Yield what is not :class:`Direct`, one value for an entity and a signal."""
        for (name, _), ways in plan.ways.items():
            for way in ways:
                value = self._of(way)
                if value is not None and not (value == 0 and way.signal.zero_is_absent):
                    yield Value(way.signal, name, value, way.labels, way)
                    break

    def _of(self, way: Way) -> float | None:
        if way.buckets is not None:
            return self._quantile(way)
        value = way.expression.evaluate(self._reader(way), self.now_seconds)
        if value is None or not math.isfinite(value) or not self._says_something(way):
            return None
        if way.signal.kind is Kind.RATIO and any(o.counters for o in way.operands.values()):
            # Time that was counted over time that went by: two clocks, which differ by a hair.
            return min(1.0, value)
        return value

    def _reader(self, way: Way) -> Callable[[Selector], float | None]:
        increases = self.window if way.expression.is_windowed else self.step
        per_seconds = 1.0
        if not way.expression.is_windowed and way.signal.kind is not Kind.EVENT and increases:
            per_seconds = increases.seconds

        def read(selector: Selector) -> float | None:
            operand = way.operands[selector]
            if not operand.is_counter:
                return self._present(way.signal, selector, operand)
            if not any(self.values[place] == self.values[place] for place in operand.family):
                return None
            if not operand.grows:
                present = self._present(way.signal, selector, operand)
                return 0.0 if present is None else present
            if increases is None:
                return None
            grown = [increases.values[counter] / per_seconds for counter in operand.counters]
            return _fold(selector.fold, grown)

        return read

    def _present(self, signal: Signal, selector: Selector, operand: Operand) -> float | None:
        values = [value for p in operand.places if (value := self.values[p]) == value]
        if selector.fold:
            return _fold(selector.fold, values) if values else None
        if not values:
            return None
        if operand.is_counter:
            return sum(values)
        result = values[0]
        for value in values[1:]:
            result = together(signal, result, value)
        return result

    def _says_something(self, way: Way) -> bool:
        if not way.expression.is_windowed or way.signal.layer not in _SERVICE_LAYERS:
            return True
        events = way.expression.divisor(self._reader(way), self.now_seconds)
        return events is None or events >= self.minimum_events

    def _quantile(self, way: Way) -> float | None:
        if self.window is None or way.buckets is None or way.expression.scaled is None:
            return None
        grown = self.window.values
        buckets = {bound: sum(grown[c] for c in found) for bound, found in way.buckets.items()}
        if buckets.get(float("inf"), 0.0) < max(self.minimum_events, 1e-9):
            return None
        value = histogram_quantile(way.signal.quantile, buckets)
        return None if value is None else value * way.expression.scaled[1]


def throttle_flags(mask: Value) -> Iterator[tuple[str, float]]:
    """Yield the signals that a mask of throttle reasons stands for, beyond itself."""
    for signal, value in throttle_signals(int(mask.value)):
        if signal != THROTTLE_MASK:
            yield signal, value


def _fold(how: str, values: Sequence[float]) -> float:
    if how == "count":
        return float(len(values))
    if how == "max":
        return max(values, default=0.0)
    if how == "min":
        return min(values, default=0.0)
    return sum(values)
