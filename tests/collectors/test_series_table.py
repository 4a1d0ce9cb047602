from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collectors.contract import CollectorError
from collectors.exposition import ExpositionError, ExpositionParser, RawSample, parse_exposition
from collectors.exposition_lines import is_present
from collectors.reading import TargetReader
from collectors.series_table import SeriesTable

names = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,12}", fullmatch=True)
label_names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)
# What a line can hold: all but line feeds, which are escaped, and halves of surrogate pairs.
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=15)
numbers = st.floats(allow_nan=False, allow_infinity=False).filter(lambda v: is_present("x", v))
times = st.none() | st.integers(-(10**9), 4 * 10**9)
samples = st.lists(
    st.tuples(names, st.dictionaries(label_names, texts, max_size=4), numbers, times),
    max_size=12,
    unique_by=lambda one: (one[0], tuple(sorted(one[1].items()))),
)
Samples = Sequence[tuple[str, dict[str, str], float, int | None]]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _rendered(given_samples: Samples, *, open_metrics: bool) -> str:
    lines = []
    for name, labels, value, seconds in given_samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        stamp = "" if seconds is None else f" {seconds if open_metrics else seconds * 1000}"
        lines.append(f"{name}{'{' + inside + '}' if labels else ''} {value!r}{stamp}\n")
    return "".join(lines) + ("# EOF\n" if open_metrics else "")


def _found(text: str) -> set[RawSample]:
    return {
        RawSample(one.name, frozenset(one.labels.items()), one.value, one.time_seconds)  # type: ignore[arg-type]
        for one in parse_exposition(text).samples()
    }


@given(samples, st.booleans())
def test_what_is_written_is_read_back(given_samples: Samples, open_metrics: bool) -> None:
    text = _rendered(given_samples, open_metrics=open_metrics)
    assert _found(text) == {
        RawSample(name, frozenset(labels.items()), value, seconds)  # type: ignore[arg-type]
        for name, labels, value, seconds in given_samples
    }


@given(st.lists(samples, min_size=2, max_size=5))
@settings(max_examples=60)
def test_a_table_that_is_used_again_reads_as_a_new_one(scrapes: list[Samples]) -> None:
    parser = ExpositionParser()
    for scrape in scrapes:
        text = _rendered(scrape, open_metrics=False)
        again = {
            (s.name, frozenset(s.labels.items()), s.value) for s in parser.parse(text).samples()
        }
        assert again == {(s.name, s.labels, s.value) for s in _found(text)}


fragments = st.sampled_from(
    [
        "a", "b_total", "up", "{", "}", '"', "\\", "=", ",", "#", " ", "\t", "\n", "\r", "1", "-2.5",
        "NaN", "+Inf", "_", "# TYPE a counter", "# HELP a b", "# UNIT a s", "# EOF", 'a{b="c"} 1',
        "\x00", "1e5",
        "\u2028", "é", '{"a.b"} 1', "0x1F", "1_0", ' # {x="y"} 1', "le", "1395066363000",
    ]
)  # fmt: skip


@given(st.lists(fragments, max_size=30).map("".join))
@example('a{b="\\"} 1\n')
@example("# EOF\n# EOF\n")
@example('{"a.b",c="d"} 1\n')
@example("a 1 # \n")
@settings(max_examples=400)
def test_hostile_text_is_read_or_refused_in_words(text: str) -> None:
    reader = TargetReader()
    for at in (1.0, 2.0):
        said = [_said(lambda: _parsed(text)), _said(lambda at=at: _taken(reader, text, at))]  # type: ignore[misc]
        assert all(one == "" or one.startswith("line ") for one in said)
        assert bool(said[0]) == bool(said[1])


def _said(read: Callable[[], None]) -> str:
    try:
        read()
    except (ExpositionError, CollectorError) as error:
        return str(error)
    return ""


def _parsed(text: str) -> None:
    exposition = parse_exposition(text)
    kept = sum(1 for _ in exposition.samples())
    assert kept + sum(exposition.left_out.values()) <= exposition.lines


def _taken(reader: TargetReader, text: str, at: float) -> None:
    found = reader.take(text, 1e9, at)
    assert all(math.isfinite(one.value) for one in found.samples)


@pytest.mark.parametrize(
    ("line", "name", "labels", "value"),
    [
        ("a 1", "a", {}, 1),
        ("  a   1  ", "a", {}, 1),
        ("a\t1", "a", {}, 1),
        ("a{} 1", "a", {}, 1),
        ("a {} 1", "a", {}, 1),
        ('a{b="c",} 1', "a", {"b": "c"}, 1),
        ('a{ b = "c" , d = "" } 1', "a", {"b": "c", "d": ""}, 1),
        ('a{b="}"}1', "a", {"b": "}"}, 1),
        ('a{b="x y"} 1 # {t="u v"} 2 3', "a", {"b": "x y"}, 1),
        ('a{b="\\\\n"} 1', "a", {"b": "\\n"}, 1),
        ('a{b="\\x"} 1', "a", {"b": "\\x"}, 1),
        ('{"a.b",c="d"} 1', "a.b", {"c": "d"}, 1),
        ("a +1.5E3", "a", {}, 1500),
    ],
)
def test_odd_but_legal_lines(line: str, name: str, labels: dict[str, str], value: float) -> None:
    parser = ExpositionParser()
    for _ in range(2):
        (sample,) = parser.parse(f"{line}\n").samples()
        assert (sample.name, dict(sample.labels), sample.value) == (name, labels, value)


def test_stamped_and_bare_lines_of_one_series_do_not_mix() -> None:
    parser = ExpositionParser()
    for text, value, seconds in (("a 1", 1, None), ("a 1 5000", 1, 5), ("a 2", 2, None)):
        (sample,) = parser.parse(text).samples()
        assert (sample.value, sample.time_seconds) == (value, seconds)


def test_info_statesets_created_and_units_of_open_metrics() -> None:
    exposition = parse_exposition(
        "# TYPE build info\nbuild_info{version=\"1\"} 1\n"
        "# TYPE mode stateset\nmode{mode=\"on\"} 1\nmode{mode=\"off\"} 0\n"
        "# TYPE wait_seconds counter\n# UNIT wait_seconds seconds\n# HELP wait_seconds Time.\n"
        "wait_seconds_total 3\nwait_seconds_created 1.5e9\n# EOF\n",
        open_metrics=True,
    )  # fmt: skip
    assert exposition.families["build"].kind == "info"
    assert [s.value for s in exposition.named("mode")] == [1, 0]
    family = exposition.families["wait_seconds"]
    assert (family.kind, family.unit, family.help) == ("counter", "seconds", "Time.")
    assert [s.name for s in family.samples] == ["wait_seconds_total", "wait_seconds_created"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a 1\n# EOF\nb 2\n", None),
        ("a 1\n# EOF\nb 2\n# EOF\n", "line 3: there is more"),
        ("a 1\n", None),
    ],
)
def test_the_end_of_open_metrics(text: str, says: str | None) -> None:
    with pytest.raises(ExpositionError, match=says or "the answer is not whole"):
        parse_exposition(text, open_metrics=True)


def test_a_type_that_changes_is_believed_each_time() -> None:
    parser = ExpositionParser()
    for kind in ("gauge", "counter", "gauge"):
        assert parser.parse(f"# TYPE a {kind}\na 1\n").families["a"].kind == kind


def test_names_that_nobody_wants_cost_no_memory() -> None:
    table = SeriesTable(wanted={"a"})
    row = table.read("".join(f'b{{id="{n}"}} 1\n' for n in range(1000)) + "a 2\n")
    assert (row.lines, row.passed, row.values) == (1001, 1000, [2.0])
    assert list(table.passed_names) == ["b"]
    assert [one.name for one in table.series] == ["a"]
