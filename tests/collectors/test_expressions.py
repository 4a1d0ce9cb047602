from __future__ import annotations

import pytest

from collectors.expressions import ExpressionError, parse_expression
from collectors.signals import catalogue


def test_a_selector_with_conditions() -> None:
    expression = parse_expression('llm_requests_total{status=~"4..",status!~"429|499"}')
    (selector,) = expression.selectors
    assert selector.name == "llm_requests_total"
    assert [all(m.holds({"status": status}) for m in selector.matchers) for status in
            ("400", "429", "200", "4000")] == [True, False, False, False]  # fmt: skip
    assert selector.promql() == 'llm_requests_total{status=~"4..",status!~"429|499"}'


def _value(text: str, **given: float) -> float | None:
    return parse_expression(text).evaluate(lambda selector: given.get(selector.name), 1_000.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 6.0),
        ("a / b * 100", 200.0),
        ("a + b + c", 11.0),
        ("a - b - c", 1.0),
        ("a / (b + a)", 6 / 9),
        ("1 - b / a", 0.5),
        ("a * 1e-3", 0.006),
        ("2 * (a - b)", 6.0),
        ("time() - a", 994.0),
        ("a / zero", None),
        ("a + absent", None),
    ],
)
def test_arithmetic(text: str, value: float | None) -> None:
    found = _value(text, a=6.0, b=3.0, c=2.0, zero=0.0)
    assert found == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    "text", ["a / (b + c) * 0.5", "1 - a / b", "time() - a", "(a + b) / (c - d)", "a - (b - c)"]
)
def test_promql_means_the_same(text: str) -> None:
    query = parse_expression(text).promql(lambda selector: selector.promql())
    given = {"a": 7.0, "b": 3.0, "c": 11.0, "d": 2.0}
    assert _value(query, **given) == _value(text, **given)


def test_folds_and_scales() -> None:
    (load, cores) = parse_expression('node_load1 / count(cpu{mode="idle"})').selectors
    assert (load.fold, cores.fold, cores.counted) == ("", "count", True)
    assert parse_expression("max(a_total)").selectors[0].is_counter
    assert parse_expression("a * 100").scaled == (parse_expression("a").selectors[0], 100.0)
    assert parse_expression("a / b").scaled is None


@pytest.mark.parametrize(
    ("text", "windowed", "divisor"),
    [
        ("a_total / b_total", True, 5.0),
        ("a_total / (a_total + b_total) * 100", True, 8.0),
        ("a_total", False, None),
        ("a / b", False, None),
    ],
)
def test_ratios_of_counters_want_a_window(text: str, windowed: bool, divisor: float | None) -> None:
    expression = parse_expression(text)
    given = {"a_total": 3.0, "b_total": 5.0}
    assert expression.is_windowed is windowed
    assert expression.divisor(lambda selector: given.get(selector.name), 0.0) == divisor


@pytest.mark.parametrize(
    "text",
    [
        "", "1a", "a{x=1}", "rate(a[1m])", "a +", "(a", "a)", "1 + 2", "a b", "a % b", "count(a + b)",
        "-a",
    ],
)  # fmt: skip
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
    assert parse_expression(name).selectors[0].is_counter is counter


def test_every_name_of_the_catalogue_is_an_expression() -> None:
    for signal in catalogue().values():
        for name in (name for names in signal.names.values() for name in names):
            assert parse_expression(name).selectors, f"{signal.name}: {name}"
