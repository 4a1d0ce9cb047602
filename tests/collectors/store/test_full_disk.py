"""A full disk: the call fails and says so, what was there stays, and it goes on when there is space."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from collectors.contract import Sample
from collectors.store.contract import StoreError
from collectors.store.sqlite import SqliteSeriesStore

T0 = 1_700_002_800  # a whole hour
EVER = {"start_seconds": float("-inf"), "end_seconds": float("inf")}
NOISE = np.random.default_rng(0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB, a quarter of which the store holds back."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def tick(store: SqliteSeriesStore, at: int) -> None:
    store.write([Sample(T0 + at, f"host/{n}", "x", float(NOISE.random())) for n in range(200)])


def test_it_goes_on_when_there_is_space_again(disk: Path) -> None:
    store = SqliteSeriesStore(disk / "series.sqlite")
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(4 << 20))
    written: list[int] = []
    told: set[bool] = set()
    failed, at = 0, 0
    while failed < 50:
        try:
            tick(store, at)
            written.append(at)
        except StoreError as error:
            told.add("check that the disk has space" in str(error))
            failed += 1
        at += 1
    assert told == {True}
    ballast.unlink()
    for more in range(at, at + 50):
        tick(store, more)
        written.append(more)
    frame = store.read(**EVER)
    assert sorted({int(at - T0) for at in frame["time"]}) == written
    assert len(frame) == 200 * len(written)
    store.close()
    again = SqliteSeriesStore(disk / "series.sqlite")
    assert len(again.read(**EVER)) == len(frame)
    again.close()
    assert not list(disk.glob("*.damaged-*"))


def test_pruning_frees_a_full_disk(disk: Path) -> None:
    store = SqliteSeriesStore(disk / "series.sqlite")
    at, failed = 0, 0
    while failed < 3:
        with suppress(StoreError):
            store.compact(now_seconds=T0 + at, budget_seconds=1.0)
        try:
            tick(store, at)
            at += 20
        except StoreError:
            failed += 1
    assert len(store.read(**EVER)) == 200 * at // 20
    assert store.prune(before_seconds=T0 + at / 2) > 0
    kept = len(store.read(**EVER))
    for more in range(50):
        tick(store, at + more)
    assert len(store.read(**EVER)) == kept + 200 * 50
    store.close()


def test_compaction_on_a_full_disk_fails_whole_and_works_later(disk: Path) -> None:
    store = SqliteSeriesStore(disk / "series.sqlite")
    for at in range(0, 7200, 12):
        tick(store, at)
    before = store.read(**EVER)
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoreError, match="check that the disk has space"):
        store.compact(now_seconds=T0 + 10_000, budget_seconds=10.0)
    assert store.read(**EVER).equals(before)
    ballast.unlink()
    assert store.compact(now_seconds=T0 + 10_000, budget_seconds=10.0)
    assert store.read(**EVER).equals(before)
    store.close()


PROGRAM = f"""
import json, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from collectors.contract import Sample
from collectors.store.contract import StoreError
from collectors.store.sqlite import SqliteSeriesStore
store = SqliteSeriesStore(sys.argv[1])
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
limit(1 << 20)
told, written = set(), []
for at in range(600):
    if at == 500:
        limit(resource.RLIM_INFINITY)
    try:
        store.write([Sample({T0} + at, f"host/{{n}}", "x", at / 7 + n) for n in range(200)])
        written.append(at)
    except StoreError as error:
        told.add(str(error))
store.close()
print(json.dumps([sorted(told), written]))
"""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The same without a file system of its own: the kernel refuses to let the file grow."""
    path = tmp_path / "series.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        check=True, capture_output=True, text=True, timeout=100, env=dict(os.environ),
    )  # fmt: skip
    told, written = json.loads(done.stdout.splitlines()[-1])
    assert told
    assert all("check that the disk has space" in message for message in told)
    assert 0 < len(written) < 600
    assert written[-100:] == list(range(500, 600))
    store = SqliteSeriesStore(path)
    assert sorted({int(at - T0) for at in store.read(**EVER)["time"]}) == written
    store.close()
    shutil.rmtree(tmp_path)
