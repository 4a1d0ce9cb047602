from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.diagnosis.offline_frame import (
    FrameError,
    parse_time,
    read_edges,
    read_frame,
    split_column,
)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "metrics.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_column_is_split_at_its_last_colon() -> None:
    assert split_column("AWS::ECS::Fargate:latency_p90") == ("AWS::ECS::Fargate", "latency_p90")


@pytest.mark.parametrize("column", ["latency", ":latency", "a:", ""])
def test_a_column_without_both_parts_is_refused(column: str) -> None:
    with pytest.raises(FrameError, match="entity:signal"):
        split_column(column)


def test_rows_are_sorted_and_empty_cells_are_missing(tmp_path: Path) -> None:
    frame = read_frame(write(tmp_path, "timestamp,a:x,b:y\n20,2,\n10,1,nan\n20,3,5\n"))
    assert frame.index.tolist() == [10.0, 20.0]
    assert frame["a:x"].tolist() == [1.0, 3.0]
    assert np.isnan(frame["b:y"].iloc[0])


def test_times_may_be_iso_8601(tmp_path: Path) -> None:
    frame = read_frame(write(tmp_path, "time,a:x\n2026-11-21T00:00:00Z,1\n"))
    assert frame.index[0] == parse_time("2026-11-21T01:00:00+01:00")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("timestamp\n1\n", "line 1: needs a time column and at least one metric"),
        ("timestamp,a:x\n", "has a header and no rows"),
        ("timestamp,latency\n1,2\n", "line 1: column 'latency' is not of the form"),
        ("timestamp,a:x,a:x\n1,2,3\n", "line 1: column 'a:x' is there twice"),
        ("timestamp,a:x\n1,2\n2,fast\n", "line 3, column 'a:x': 'fast' is not a number"),
        ("timestamp,a:x\n1,2\nsoon,3\n", "line 3, column 'timestamp': 'soon' is not a time"),
        ("timestamp,a:x\n1,2,3\n", "line 2: 3 fields, the header has 2"),
        (b"timestamp,a:x\n1,\xff\n", "is not UTF-8 text (byte 16)"),
        ('timestamp,a:x\n1,"2\n', "is not valid CSV"),
    ],
)
def test_a_fault_names_the_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(FrameError, match=re.escape(message)) as caught:
        read_frame(write(tmp_path, text))
    assert "metrics.csv" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="cannot be read"):
        read_frame(tmp_path / "nothing.csv")


def test_edges(tmp_path: Path) -> None:
    assert read_edges(write(tmp_path, "target,source\nb,a\n")) == [("a", "b")]
    with pytest.raises(FrameError, match="needs the columns source and target"):
        read_edges(write(tmp_path, "from,to\na,b\n"))
    with pytest.raises(FrameError, match="line 3: needs a source and a target"):
        read_edges(write(tmp_path, "source,target\na,b\nc,\n"))


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_an_error(text: str) -> None:
    try:
        seconds = parse_time(text)
    except FrameError:
        return
    assert np.isfinite(seconds)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    path = write(tmp_path_factory.mktemp("any"), text)
    try:
        frame = read_frame(path)
    except FrameError:
        return
    assert frame.index.is_monotonic_increasing
