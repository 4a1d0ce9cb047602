"""A row that is not what was written is set aside and named; everything else goes on being read."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collectors.contract import Sample
from collectors.store.contract import StoreError
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore

T0 = 1_700_002_800.0  # a whole hour
EVER = {"start_seconds": float("-inf"), "end_seconds": float("inf")}
HOURS = 4


def make(path: Path) -> None:
    """Two series, an hour of which is in no block yet."""
    store = SqliteSeriesStore(path)
    for at in range(0, HOURS * 3600, 60):
        store.write([Sample(T0 + at, f"host/{name}", "x", at * 1.1) for name in "ab"])
    store.compact(now_seconds=T0 + (HOURS - 1) * 3600 + 200, budget_seconds=10.0)
    store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make(tmp_path / "series.sqlite")
    return tmp_path / "series.sqlite"


def spoil(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.create_function(
        "flip", 1, lambda data: bytes([*data[:-3], data[-3] ^ 16, *data[-2:]])
    )
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE blocks SET data = flip(data) WHERE id = 2",
        "UPDATE blocks SET times = flip(times) WHERE id = 2",
        "UPDATE blocks SET data = x'' WHERE id = 2",
        "UPDATE blocks SET data = 'text' WHERE id = 2",
        "UPDATE blocks SET count = 9000000000000 WHERE id = 2",
        "UPDATE blocks SET count = -1 WHERE id = 2",
    ],
)
def test_a_damaged_block_costs_its_hour_only(path: Path, statement: str) -> None:
    spoil(path, statement)
    reader = SqliteSeriesReader(path)
    with structlog.testing.capture_logs() as logs:
        frame = reader.read(**EVER)
        reader.read(**EVER)
    assert len(frame) == 2 * HOURS * 60 - 60
    (told,) = (entry for entry in logs if entry["event"] == "series_store_row_damaged")
    assert (told["table"], told["start_seconds"]) == ("blocks", T0 + 3600)
    assert told["end_seconds"] == T0 + 7200 - 60
    # What was counted of it stays.
    assert reader.read_rollup(**EVER)["count"].sum() == 2 * HOURS * 60


def test_a_damaged_block_is_set_aside_when_its_hour_is_opened(path: Path) -> None:
    spoil(path, "UPDATE blocks SET data = flip(data) WHERE id = 2")
    store = SqliteSeriesStore(path)
    store.write([Sample(T0 + 3601, name, "x", 5.0) for name in ("host/a", "host/b")])
    with structlog.testing.capture_logs() as logs:
        store.compact(now_seconds=T0 + HOURS * 3600, budget_seconds=10.0)
    assert [entry["table"] for entry in logs if entry["event"] == "series_store_set_aside"] == [
        "blocks"
    ]
    row = store._connection.execute("SELECT origin, count, reason, length(data) FROM set_aside")
    origin, count, reason, size = row.fetchone()
    assert (origin, count, reason) == ("blocks", 60, "the check sum differs")
    assert size > 0
    with structlog.testing.capture_logs() as logs:
        assert len(store.read(**EVER)) == 2 * HOURS * 60 - 60 + 2
    assert logs == []
    assert store.read_rollup(**EVER)["count"].sum() == 2 * HOURS * 60 + 2
    store.close()


def test_damaged_newest_samples_cost_their_call_only(path: Path) -> None:
    spoil(path, "UPDATE hot SET data = flip(data) WHERE id = (SELECT max(id) - 5 FROM hot)")
    store = SqliteSeriesStore(path)
    assert len(store.read(**EVER)) == 2 * HOURS * 60 - 2
    assert len(store.series()) == 2
    store.compact(now_seconds=T0 * 2, budget_seconds=10.0)
    assert len(store.read(**EVER)) == 2 * HOURS * 60 - 2
    assert store._connection.execute("SELECT origin, count FROM set_aside").fetchall() == [
        ("hot", 2)
    ]
    store.close()


def test_damaged_minutes_leave_their_hour(path: Path) -> None:
    spoil(path, "UPDATE rollups SET minutes = flip(minutes) WHERE id = 2")
    reader = SqliteSeriesReader(path)
    assert len(reader.read_rollup(**EVER)) == 2 * HOURS * 60 - 60
    assert reader.read_rollup(**EVER, resolution_seconds=3600)["count"].tolist() == [60] * 8
    store = SqliteSeriesStore(path)
    store.write([Sample(T0 + 3601, name, "x", 5.0) for name in ("host/a", "host/b")])
    store.compact(now_seconds=T0 + HOURS * 3600, budget_seconds=10.0)
    assert store._connection.execute("SELECT origin FROM set_aside").fetchall() == [("rollups",)]
    counts = store.read_rollup(**EVER, resolution_seconds=3600)["count"].tolist()
    assert sorted(counts) == [60] * 6 + [61] * 2
    store.close()


def test_a_prune_through_a_damaged_block_goes_on(path: Path) -> None:
    spoil(path, "UPDATE blocks SET data = flip(data) WHERE id = 2")
    store = SqliteSeriesStore(path)
    store.prune(before_seconds=T0 + 3600 + 1800)
    assert len(store.read(**EVER)) == 2 * (HOURS * 60 - 90) - 30
    store.close()


def test_a_name_in_the_file_that_is_no_text_any_more_is_damage(path: Path) -> None:
    whole = path.read_bytes()
    at, places = -1, []
    while (at := whole.find(b"blocks_by_slot", at + 1)) >= 0:
        places.append(at)
    assert places
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] = 0xF3
        path.write_bytes(bytes(spoilt))
        for side in ("-wal", "-shm"):
            Path(f"{path}{side}").unlink(missing_ok=True)
        store = SqliteSeriesStore(path)
        store.write([Sample(T0 + 90_000, "host/a", "x", 5.0)])
        assert 5.0 in store.read(**EVER)["value"].tolist()
        store.close()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_no_flipped_byte_anywhere_ends_the_writer_or_gives_a_wrong_value(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    whole = folder.parent / "whole.sqlite"
    if not whole.exists():
        make(whole)
    path = folder / "series.sqlite"
    shutil.copy(whole, path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        store = SqliteSeriesStore(path)
    except StoreError as error:
        if "layout" not in str(error):  # the version itself was hit
            raise
        return
    try:
        frame = store.read(**EVER)
    except StoreError:
        pass  # SQLite calls the file damaged; the next write sets it aside
    else:
        assert ((frame["value"] - (frame["time"] - T0) * 1.1).abs() < 1e-6).all()
    for at in range(3):  # the first may set the file aside, and what it had
        store.write([Sample(T0 + 90_000 + at, "host/a", "x", 5.0 + at)])
        store.compact(now_seconds=T0 * 2, budget_seconds=10.0)
    assert 7.0 in store.read(start_seconds=T0 + 90_000, end_seconds=T0 * 2)["value"].tolist()
    store.close()
    shutil.rmtree(folder)
