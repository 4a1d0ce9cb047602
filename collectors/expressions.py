"""How the catalogue names a signal in an exporter: a small part of PromQL.

A name is a selector (``health_status{layer="device"}``) or arithmetic (``+ - * /`` and parentheses) over
selectors, numbers and ``time()``. Series of one entity are put together as their signal says; around a
selector ``count()``, ``max()``, ``min()`` or ``sum()`` says otherwise. The same text is evaluated over
scrapes by :mod:`collectors.plan` and turned into a query by :mod:`collectors.prometheus`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import NamedTuple


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
    fold: str = ""
    """How series of one entity are put together: count, max, min, sum, or empty for the signal's way."""

    @property
    def counted(self) -> bool:
        """Whether its series are counted instead of read."""
        return self.fold == "count"

    @property
    def is_counter(self) -> bool:
        """Whether the metric only grows, by the naming conventions of Prometheus and of exporters."""
        return not self.counted and _is_counter(self.name)

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Say whether the labels of a series of this name meet every condition."""
        return all(matcher.holds(labels) for matcher in self.matchers)

    def promql(self, suffix: str = "") -> str:
        """Return the selector as PromQL, with ``suffix`` (such as ``_bucket``) after the name."""
        conditions = ",".join(f'{m.label}{m.operator}"{m.value}"' for m in self.matchers)
        return f"{self.name}{suffix}{{{conditions}}}" if conditions else f"{self.name}{suffix}"


class Number(NamedTuple):
    """A constant."""

    value: float


class Now(NamedTuple):
    """``time()``: seconds since the epoch."""


class Binary(NamedTuple):
    """Two parts and an operator."""

    operator: str
    left: Node
    right: Node


Node = Number | Now | Binary | Selector


@dataclass(frozen=True)
class Expression:
    """A name of the catalogue, parsed."""

    root: Node

    @cached_property
    def selectors(self) -> tuple[Selector, ...]:
        """Every selector, from left to right."""
        return tuple(_selectors(self.root))

    @cached_property
    def scaled(self) -> tuple[Selector, float] | None:
        """The selector and the factor of ``selector`` or ``selector * number``; None for all else."""
        root = self.root
        if isinstance(root, Selector):
            return root, 1.0
        if isinstance(root, Binary) and root.operator == "*":
            left, right = root.left, root.right
            if isinstance(left, Selector) and isinstance(right, Number):
                return left, right.value
        return None

    @cached_property
    def is_windowed(self) -> bool:
        """Whether counters are divided by counters, which says little over one short step."""
        return _dividing(self.root) is not None

    def evaluate(
        self, read: Callable[[Selector], float | None], now_seconds: float
    ) -> float | None:
        """Return the value, or None where a part is absent or a divisor is not positive.

        Args:
            read: gives the value of a selector, or None.
            now_seconds: what ``time()`` stands for.
        """
        return _evaluate(self.root, read, now_seconds)

    def divisor(self, read: Callable[[Selector], float | None], now_seconds: float) -> float | None:
        """Return what counters are divided by, or None where they are not."""
        node = _dividing(self.root)
        return None if node is None else _evaluate(node, read, now_seconds)

    def promql(self, render: Callable[[Selector], str]) -> str:
        """Return the expression as PromQL, each selector as ``render`` writes it."""
        return _promql(self.root, render)


# node_netstat_*, nv_* and tgi_* are counters without a suffix; so were all before node_exporter 0.16.
_COUNTER = re.compile(
    r"(_total|_count|_sum)$|^nv_inference_(request_success|request_failure|count|exec_count|\w+_us)$"
    r"|^nv_cache_num_\w+$|^tgi_request_(success|failure|count)$|^tgi_batch_inference_(success|count)$"
    r"|^node_netstat_Tcp_\w+$|^node_vmstat_\w+$|^nv_energy_consumption$|^node_cpu$"
    r"|^(node_disk_(read|write|io)_time_ms|node_disk_(reads|writes)_completed)$"
    r"|^node_network_(receive|transmit)_(bytes|errs|drop)$"
)
_GAUGES = frozenset({"nv_inference_pending_request_count", "nv_inference_queue_summary_us"})
_SELECTOR = r"[a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^{}]*\})?"
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w:])|(?P<now>time\(\))"
    rf"|(?P<fold>count|max|min|sum)\(\s*(?P<inner>{_SELECTOR})\s*\)|(?P<selector>{_SELECTOR})(?!\()"
    r"|(?P<mark>[-+*/()]))"
)
_MATCHER = re.compile(r'\s*([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*"([^"\\]*)"\s*')
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@cache  # by the names of the catalogue, which are some hundred
def _is_counter(name: str) -> bool:
    return name not in _GAUGES and bool(_COUNTER.search(name))


@lru_cache(maxsize=4096)
def parse_expression(text: str) -> Expression:
    """Read a name of the catalogue.

    Raises:
        ExpressionError: when the text is not of the form that this module describes.
    """
    tokens = _tokens(text)
    expression = Expression(_parse(tokens, text, 0))
    if tokens:
        raise ExpressionError(f"{text!r} goes on after its end with {tokens[-1]!r}")
    if not expression.selectors:
        raise ExpressionError(f"{text!r} names no metric")
    return expression


def _tokens(text: str) -> list[Node | str]:
    """Return the pieces in reverse, so that the next one is popped from the end."""
    tokens: list[Node | str] = []
    place, rest = 0, text.rstrip()
    while place < len(rest):
        match = _TOKEN.match(rest, place)
        if match is None:
            raise ExpressionError(f"{text!r} is no arithmetic over selectors, at {rest[place:]!r}")
        place = match.end()
        if match["number"]:
            tokens.append(Number(float(match["number"])))
        elif match["now"]:
            tokens.append(Now())
        elif match["mark"]:
            tokens.append(match["mark"])
        else:
            tokens.append(_selector(match["inner"] or match["selector"], match["fold"] or ""))
    return tokens[::-1]


def _parse(tokens: list[Node | str], text: str, floor: int) -> Node:
    left = _operand(tokens, text)
    while tokens:
        operator = tokens[-1]
        if not isinstance(operator, str) or _PRECEDENCE.get(operator, 0) <= floor:
            break
        tokens.pop()
        left = Binary(operator, left, _parse(tokens, text, _PRECEDENCE[operator]))
    return left


def _operand(tokens: list[Node | str], text: str) -> Node:
    piece = tokens.pop() if tokens else ""
    if piece == "(":
        inner = _parse(tokens, text, 0)
        if not tokens or tokens.pop() != ")":
            raise ExpressionError(f"{text!r} lacks a closing parenthesis")
        return inner
    if isinstance(piece, str):
        raise ExpressionError(
            f"{text!r} lacks a selector or a number before {piece or 'its end'!r}"
        )
    return piece


def _selector(text: str, fold: str) -> Selector:
    name, _, conditions = text.partition("{")
    matchers: list[Matcher] = []
    for piece in _split(conditions.removesuffix("}")):
        found = _MATCHER.fullmatch(piece)
        if found is None:
            raise ExpressionError(f"{piece!r} in {text!r} is not a condition on a label")
        matchers.append(Matcher(*found.groups()))
    return Selector(name, tuple(matchers), fold)


def _split(conditions: str) -> list[str]:
    pieces = re.findall(r'[^,"]+"[^"]*"', conditions)
    if ",".join(pieces) != conditions:
        raise ExpressionError(f"{conditions!r} is not a list of conditions on labels")
    return pieces


def _selectors(node: Node) -> Iterator[Selector]:
    if isinstance(node, Selector):
        yield node
    elif isinstance(node, Binary):
        yield from _selectors(node.left)
        yield from _selectors(node.right)


def _dividing(node: Node) -> Node | None:
    """Return the divisor of the first division of counters by counters."""
    if not isinstance(node, Binary):
        return None
    if node.operator == "/" and all(
        any(selector.is_counter for selector in _selectors(side))
        for side in (node.left, node.right)
    ):
        return node.right
    return _dividing(node.left) or _dividing(node.right)


def _evaluate(
    node: Node, read: Callable[[Selector], float | None], now_seconds: float
) -> float | None:
    if isinstance(node, Binary):
        left = _evaluate(node.left, read, now_seconds)
        right = _evaluate(node.right, read, now_seconds)
        return None if left is None or right is None else _apply(node.operator, left, right)
    if isinstance(node, Selector):
        return read(node)
    return node.value if isinstance(node, Number) else now_seconds


def _apply(operator: str, left: float, right: float) -> float | None:
    if operator == "/":
        # What is divided by here counts, times or sizes something: there is none of it.
        return left / right if right > 0 else None
    if operator == "*":
        return left * right
    return left + right if operator == "+" else left - right


def _promql(node: Node, render: Callable[[Selector], str]) -> str:
    if isinstance(node, Selector):
        return render(node)
    if isinstance(node, Number):
        return f"{node.value:.12g}"
    if isinstance(node, Now):
        return "time()"
    left, right = (
        f"({_promql(side, render)})" if isinstance(side, Binary) else _promql(side, render)
        for side in (node.left, node.right)
    )
    return f"{left} {node.operator} {right}"
