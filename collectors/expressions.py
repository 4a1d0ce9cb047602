"""How the catalogue names a signal in an exporter: a small part of PromQL.

A name is a selector (``health_status{layer="device"}``), a ratio ``a / b`` or a sum ``a + b`` of
selectors, and may end in ``* factor``. ``count(selector)`` counts series. The same text is evaluated
over one scrape by :mod:`collectors.mapping` and turned into a query by :mod:`collectors.prometheus`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache


class ExpressionError(ValueError):
    """A name in the catalogue is not an expression; the message shows it."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on a label."""

    label: str
    operator: str
    value: str

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Say whether the labels meet it; an absent label is empty, as in PromQL."""
        given = labels.get(self.label, "")
        if self.operator in {"=", "!="}:
            return (given == self.value) == (self.operator == "=")
        return bool(re.fullmatch(self.value, given)) == (self.operator == "=~")


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric's name with conditions on its labels."""

    name: str
    matchers: tuple[Matcher, ...] = ()
    counted: bool = False
    """Whether its series are counted instead of read."""

    @property
    def is_counter(self) -> bool:
        """Whether the metric only grows, by the naming conventions of Prometheus and of Triton."""
        return not self.counted and self.name not in _GAUGES and bool(_COUNTER.search(self.name))

    def promql(self, suffix: str = "") -> str:
        """Return the selector as PromQL, with ``suffix`` (such as ``_bucket``) after the name."""
        conditions = ",".join(f'{m.label}{m.operator}"{m.value}"' for m in self.matchers)
        return f"{self.name}{suffix}{{{conditions}}}" if conditions else f"{self.name}{suffix}"


@dataclass(frozen=True, slots=True)
class Expression:
    """Selectors put together by one operator, times a factor."""

    operands: tuple[Selector, ...]
    operator: str
    """``/``, ``+``, or empty for a single operand."""
    factor: float = 1.0


# Tcp_RetransSegs and OutSegs are counters that node_exporter leaves untyped and unsuffixed.
_COUNTER = re.compile(
    r"(_total|_count|_sum)$|^nv_inference_(request_success|request_failure|count|exec_count|\w+_us)$"
    r"|^tgi_request_(success|failure|count)$|^node_netstat_Tcp_\w+$"
)
_GAUGES = frozenset({"nv_inference_pending_request_count"})
_GAUGES = frozenset({"nv_inference_pending_request_count"})
_SELECTOR = r"[a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^{}]*\})?"
_OPERAND = rf"(?:count\({_SELECTOR}\)|{_SELECTOR})"
_EXPRESSION = re.compile(
    rf"(?P<first>{_OPERAND})(?P<rest>(?:\s*/\s*{_OPERAND})|(?:\s*\+\s*{_OPERAND})*)"
    r"(?:\s*\*\s*(?P<factor>[0-9.]+))?"
)
_MATCHER = re.compile(r'\s*([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*"([^"\\]*)"\s*')


@lru_cache(maxsize=1024)
def parse_expression(text: str) -> Expression:
    """Read a name of the catalogue.

    Raises:
        ExpressionError: when the text is not of the form that this module describes.
    """
    match = _EXPRESSION.fullmatch(text.strip())
    if match is None:
        raise ExpressionError(f"{text!r} is not a selector, a ratio or a sum of selectors")
    rest = match["rest"].strip()
    operator = rest[:1]
    others = re.findall(_OPERAND, rest)
    return Expression(
        operands=tuple(_selector(operand) for operand in (match["first"], *others)),
        operator=operator,
        factor=float(match["factor"] or 1.0),
    )


def _selector(text: str) -> Selector:
    counted = text.startswith("count(")
    if counted:
        text = text.removeprefix("count(").removesuffix(")")
    name, _, conditions = text.partition("{")
    matchers: list[Matcher] = []
    for piece in _split(conditions.removesuffix("}")):
        found = _MATCHER.fullmatch(piece)
        if found is None:
            raise ExpressionError(f"{piece!r} in {text!r} is not a condition on a label")
        matchers.append(Matcher(*found.groups()))
    return Selector(name, tuple(matchers), counted)


def _split(conditions: str) -> list[str]:
    pieces = re.findall(r'[^,"]+"[^"]*"', conditions)
    if ",".join(pieces) != conditions:
        raise ExpressionError(f"{conditions!r} is not a list of conditions on labels")
    return pieces
