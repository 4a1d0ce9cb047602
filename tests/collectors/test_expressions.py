from __future__ import annotations

import pytest

from collectors.expressions import ExpressionError, parse_expression
from collectors.signals import catalogue


def test_a_selector_with_conditions() -> None:
    expression = parse_expression('llm_requests_total{status=~"4..",status!~"429|499"}')
    (selector,) = expression.operands
    assert selector.name == "llm_requests_total"
    assert [all(m.holds({"status": status}) for m in selector.matchers) for status in
            ("400", "429", "200", "4000")] == [True, False, False, False]  # fmt: skip
    assert selector.promql() == 'llm_requests_total{status=~"4..",status!~"429|499"}'


def test_ratios_sums_and_factors() -> None:
    ratio = parse_expression('a{x="1"} / b * 100')
    assert (ratio.operator, [o.name for o in ratio.operands], ratio.factor) == (
        "/",
        ["a", "b"],
        100,
    )
    total = parse_expression("a + b + c")
    assert (total.operator, len(total.operands), total.factor) == ("+", 3, 1.0)
    assert parse_expression('node_load1 / count(cpu{mode="idle"})').operands[1].counted


@pytest.mark.parametrize("text", ["", "1a", "a - b", "a / b / c", "a{x=1}", "rate(a[1m])", "a * b"])
def test_other_promql_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse_expression(text)


@pytest.mark.parametrize(
    ("name", "counter"),
    [
        ("vllm:generation_tokens_total", True),
        ("nv_inference_request_duration_us", True),
        ("request_predict_seconds_count", True),
        ("nv_inference_pending_request_count", False),
        ("vllm:num_requests_waiting", False),
    ],
)
def test_counters_are_known_by_name(name: str, counter: bool) -> None:
    assert parse_expression(name).operands[0].is_counter is counter


def test_every_name_of_the_catalogue_is_an_expression() -> None:
    for signal in catalogue().values():
        for name in (name for names in signal.names.values() for name in names):
            assert parse_expression(name).operands, f"{signal.name}: {name}"
