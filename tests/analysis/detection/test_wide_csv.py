from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.detection.wide_csv import WideCsvError, read_wide_csv, times_of


def write(folder: Path, text: str) -> Path:
    path = folder / "metrics.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_it_reads_numbers_and_gaps(tmp_path: Path) -> None:
    frame = read_wide_csv(write(tmp_path, "timestamp,cpu,mem\n1,2.5,\n2,,1e3\n3,nan,inf\n\n"))
    assert frame["timestamp"].tolist() == ["1", "2", "3"]
    np.testing.assert_array_equal(frame["cpu"], [2.5, np.nan, np.nan])
    np.testing.assert_array_equal(frame["mem"], [np.nan, 1000.0, np.nan])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("time,cpu\n1,2\n", "line 1: the first column is 'time', expected 'timestamp'"),
        ("timestamp\n1\n", "line 1: there is no metric"),
        ("timestamp,cpu,\n1,2,3\n", "line 1: column 3 has no name"),
        ("timestamp,cpu,cpu\n1,2,3\n", "two columns are called 'cpu'"),
        ("timestamp,cpu\n", "no row"),
        ("timestamp,cpu\n1,2\n2,3,4\n", "line 3: 3 fields, but the header has 2"),
        ("timestamp,cpu\n1,2\n,3\n", "line 3, column 'timestamp'"),
        ("timestamp,cpu\n1,2\n2,abc\n", "line 3, column 'cpu': 'abc' is not a number"),
    ],
)
def test_a_fault_names_file_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(WideCsvError, match=message) as caught:
        read_wide_csv(write(tmp_path, text))
    assert "metrics.csv" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WideCsvError, match=r"none\.csv"):
        read_wide_csv(tmp_path / "none.csv")


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[float]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "metrics.csv"
    pd.DataFrame({"timestamp": range(len(rows)), "x": rows}).to_csv(path, index=False)
    np.testing.assert_array_equal(read_wide_csv(path)["x"], rows)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["10", "20", "30"], [10, 20, 30]),
        (["1700000000000", "1700000060000"], [1.7e9, 1.7e9 + 60]),
        (["2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"], [1767225600, 1767225660]),
        (["2026-01-01 00:00:00", "2026-01-01 00:00:30"], [1767225600, 1767225630]),
        (["a", "b", "c"], [0, 1, 2]),
        (["3", "2", "1"], [0, 1, 2]),
    ],
)
def test_times_are_told_from_their_form(texts: list[str], expected: list[float]) -> None:
    np.testing.assert_allclose(times_of(pd.Series(texts), len(texts)), expected)


def test_a_later_time_that_cannot_be_read_goes_on_by_the_usual_step() -> None:
    times = times_of(pd.Series(["0", "60", "120", "?", "240"]), 3)
    np.testing.assert_allclose(times, [0, 60, 120, 180, 240])
