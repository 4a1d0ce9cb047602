from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from collectors.contract import Sample, SeriesKey
from collectors.store.contract import StoreError
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore

T0 = 1_700_000_000.0


def _sample(offset: float, value: float, signal_name: str = "gpu_power_usage_watts") -> Sample:
    return Sample(T0 + offset, "host/box/gpu/0", signal_name, value, {"simulated": "true"})


def _read_until(path: Path, wanted: int, queue: multiprocessing.Queue[list[int]]) -> None:
    reader = SqliteSeriesReader(path)
    seen: list[int] = []
    while not seen or seen[-1] < wanted:
        frame = reader.read(start_seconds=0, end_seconds=T0 * 2)
        # A transaction holds two samples a tick, so a torn read would show an odd count.
        seen.append(len(frame))
    queue.put(seen)


def test_a_second_process_reads_while_the_first_writes(tmp_path: Path) -> None:
    path = tmp_path / "series.sqlite"
    store = SqliteSeriesStore(path)
    store.write([_sample(0, 0.0), _sample(0, 0.0, "gpu_sm_clock_mhz")])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    reader = context.Process(target=_read_until, args=(path, 400, queue), daemon=True)
    reader.start()
    tick = 1
    while reader.is_alive() and queue.empty() and tick < 200_000:
        store.write([_sample(tick, 1.0), _sample(tick, 2.0, "gpu_sm_clock_mhz")])
        tick += 1
    seen = queue.get(timeout=60)
    reader.join(timeout=30)
    assert seen[-1] >= 400
    assert all(count % 2 == 0 for count in seen)
    assert seen == sorted(seen)


def test_everything_committed_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "series.sqlite"
    code = f"""
import os, sys
from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesStore
store = SqliteSeriesStore({str(path)!r})
for tick in range(50):
    store.write([Sample({T0} + tick, "host/box", "host_load", float(tick))])
print("written", flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "written\n"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=30)

    store = SqliteSeriesStore(path)  # the dead writer's seat is free again
    frame = store.read(start_seconds=0, end_seconds=T0 * 2)
    assert list(frame["value"]) == [float(tick) for tick in range(50)]
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    first = SqliteSeriesStore(tmp_path / "series.sqlite")
    with pytest.raises(StoreError, match=r"another process already writes .*series\.sqlite"):
        SqliteSeriesStore(tmp_path / "series.sqlite")
    first.close()
    SqliteSeriesStore(tmp_path / "series.sqlite").close()


def test_a_file_that_is_not_a_database_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "series.sqlite"
    path.write_bytes(b"this is not a database, it only lies where one should be" * 40)
    store = SqliteSeriesStore(path)
    assert store.write([_sample(0, 1.0)]) == 1
    assert len(store.read(start_seconds=0, end_seconds=T0 * 2)) == 1
    assert (tmp_path / "series.sqlite.damaged-1").read_bytes().startswith(b"this is not")


def test_damage_found_while_writing_starts_a_new_file_and_readers_follow(tmp_path: Path) -> None:
    path = tmp_path / "series.sqlite"
    store = SqliteSeriesStore(path)
    for tick in range(300):
        store.write([_sample(tick, float(tick), f"signal_{number}") for number in range(10)])
    reader = SqliteSeriesReader(path)
    assert len(reader.read(start_seconds=0, end_seconds=T0 * 2)) == 3000
    store.close()
    content = bytearray(path.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    path.write_bytes(bytes(content))

    store = SqliteSeriesStore(path)
    store.write([_sample(1000, 5.0, f"signal_{number}") for number in range(10)])
    assert [row.last_value for row in store.series()] == [5.0] * 10
    assert len(reader.read(start_seconds=0, end_seconds=T0 * 2)) == 10
    assert (tmp_path / "series.sqlite.damaged-1").exists()


def test_a_reader_made_before_the_file_says_what_to_start_and_then_works(tmp_path: Path) -> None:
    reader = SqliteSeriesReader(tmp_path / "series.sqlite")
    with pytest.raises(StoreError, match="start `galen watch`"):
        reader.series()
    store = SqliteSeriesStore(tmp_path / "series.sqlite")
    store.write([_sample(0, 7.0)])
    assert reader.series()[0].last_value == 7.0


def test_a_layout_of_the_future_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "series.sqlite"
    store = SqliteSeriesStore(path)
    store._connection.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(StoreError, match="layout 99"):
        SqliteSeriesStore(path)
    assert path.exists()


def test_prune_drops_old_samples_and_emptied_series(tmp_path: Path) -> None:
    store = SqliteSeriesStore(tmp_path / "series.sqlite")
    store.write([_sample(0, 1.0, "old"), _sample(0, 1.0, "both"), _sample(10, 2.0, "both")])
    assert store.prune(before_seconds=T0 + 5) == 2
    assert [row.key for row in store.series()] == [SeriesKey("host/box/gpu/0", "both")]
    store.write([_sample(20, 3.0, "old")])
    assert [row.key.signal for row in store.series()] == ["both", "old"]


def test_labels_follow_the_newest_sample(tmp_path: Path) -> None:
    store = SqliteSeriesStore(tmp_path / "series.sqlite")
    store.write([Sample(T0, "service/llm", "llm_slots", 8.0, {"model": "a"})])
    store.write([Sample(T0 + 1, "service/llm", "llm_slots", 8.0, {"model": "b"})])
    assert dict(store.series()[0].labels) == {"model": "b"}


def test_the_log_is_folded_back_although_a_reader_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "series.sqlite"
    store = SqliteSeriesStore(path)
    reader = SqliteSeriesReader(path)
    for tick in range(3000):
        store.write([_sample(tick, float(tick))])
        if tick % 500 == 0:
            reader.read(start_seconds=0, end_seconds=T0 * 2)
    log_bytes = (tmp_path / "series.sqlite-wal").stat().st_size
    assert log_bytes < 4_000_000
