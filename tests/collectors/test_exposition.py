from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics

from collectors.exposition import (
    ExpositionError,
    ExpositionParser,
    is_present,
    parse_exposition,
)

CLASSIC = """\
# HELP http_requests_total The total number of HTTP requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400"}    3 1395066363000

# Escaping in label values:
msdos_file_access_time_seconds{path="C:\\\\DIR\\\\FILE.TXT",error="No:\\n\\"FILE.TXT\\""} 1.458255915e9
metric_without_timestamp_and_labels 12.47
something_weird{problem="division by zero {#}, really"} +Inf -3982045
# TYPE latency histogram
latency_bucket{le="0.05"} 24054
latency_bucket{le="+Inf"} 144320
latency_sum 53423
latency_count 144320
"""


def test_the_example_of_the_format_reads_whole() -> None:
    exposition = parse_exposition(CLASSIC)
    counter = exposition.families["http_requests_total"]
    assert counter.kind == "counter"
    assert counter.help == "The total number of HTTP requests."
    assert counter.samples[0].labels == {"method": "post", "code": "200"}
    assert counter.samples[0].value == 1027
    assert counter.samples[0].time_seconds == 1395066363.0
    (weird,) = exposition.named("msdos_file_access_time_seconds")
    assert weird.labels == {"path": "C:\\DIR\\FILE.TXT", "error": 'No:\n"FILE.TXT"'}
    assert exposition.left_out == {"something_weird": 1}
    assert len(exposition.families["latency"].samples) == 4
    assert [s.value for s in exposition.named("latency_bucket")] == [24054, 144320]


def test_open_metrics_has_seconds_exemplars_and_an_end() -> None:
    exposition = parse_exposition(
        "# TYPE foo histogram\n"
        'foo_bucket{le="1.0"} 8 1520879607.789 # {trace_id="a } b"} 0.67 1520879607.5\n'
        'foo_bucket{le="+Inf"} 9\n'
        "# TYPE bar counter\n"
        'bar_total 7 # {x="y"} 1\n'
        "# EOF\n"
    )
    assert exposition.named("foo_bucket")[0].time_seconds == pytest.approx(1520879607.789)
    assert exposition.families["foo"].samples[1].labels == {"le": "+Inf"}
    assert exposition.named("bar_total")[0].value == 7
    assert exposition.families["bar"].kind == "counter"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('ok 1\n\nbroken{a="b" 2\n', "line 3"),
        ("up one\n", "line 1"),
        ("a 1\n<html>\n", "line 2"),
        ('1abc{x=""} 2\n', "line 1"),
        ("justaname\n", "line 1"),
        ("a 1 2 3\n", "line 1"),
    ],
)
def test_an_error_names_the_line(text: str, says: str) -> None:
    with pytest.raises(ExpositionError, match=says):
        parse_exposition(text)


def test_a_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(ExpositionError, match="more than the limit of 10"):
        parse_exposition("a 1\n" * 10, max_bytes=10)


@pytest.mark.parametrize(
    "value",
    [
        "NaN", "+Inf", "-Inf", "9223372036854775794", "9223372036854775792", "9.223372036854776e+18",
        "2147483632", "140737488355328",
    ],
)  # fmt: skip
def test_sentinels_are_left_out_and_counted(value: str) -> None:
    exposition = parse_exposition(f"DCGM_FI_DEV_GPU_TEMP {value}\nother 1\n")
    assert list(exposition.families) == ["other"]
    assert exposition.left_out == {"DCGM_FI_DEV_GPU_TEMP": 1}


def test_large_ordinary_values_stay() -> None:
    assert is_present("x", 1.7e12)
    assert is_present("process_virtual_memory_max_bytes", 2**31 - 1)


def test_a_parser_used_again_reads_the_same() -> None:
    parser = ExpositionParser()
    assert parser.parse(CLASSIC) == parser.parse(CLASSIC)


def test_what_prometheus_client_writes_is_read_back() -> None:
    registry = CollectorRegistry()
    Gauge("g", "a gauge", ["x"], registry=registry).labels('q"\\\n{}').set(1.5)
    Counter("c", "a counter", registry=registry).inc(3)
    Histogram("h", "a histogram", registry=registry).observe(0.3)
    for text in (generate_latest(registry), generate_open_metrics(registry)):
        exposition = parse_exposition(text.decode())
        assert exposition.named("g")[0].labels == {"x": 'q"\\\n{}'}
        assert exposition.named("c_total")[0].value == 3
        assert exposition.named("h_count")[0].value == 1


label_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20)


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), label_text, max_size=3),
    st.floats(),
)
def test_any_labels_survive(labels: dict[str, str], value: float) -> None:
    registry = CollectorRegistry()
    names = sorted(labels)
    gauge = Gauge("g", "h", names, registry=registry)
    (gauge.labels(*[labels[name] for name in names]) if names else gauge).set(value)
    exposition = parse_exposition(generate_latest(registry).decode())
    if is_present("g", value):
        assert exposition.named("g")[0].labels == labels
        assert exposition.named("g")[0].value == value
    else:
        assert exposition.left_out == {"g": 1}


def _error_of(text: str) -> str:
    try:
        parse_exposition(text)
    except ExpositionError as error:
        return str(error)
    return ""


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_its_line(text: str) -> None:
    error = _error_of(text)
    assert not error or error.startswith("line ")


def test_every_real_scrape_is_read(expositions: Path) -> None:
    files = sorted(expositions.glob("*.txt"))
    assert files
    for file in files:
        exposition = parse_exposition(file.read_text("utf-8"))
        assert exposition.families, file.name
