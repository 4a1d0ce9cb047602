from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.spool import Spool, SpoolError

ROOM = 64  # of a row beside its payload


def waiting(spool: Spool) -> list[bytes]:
    return [record.payload for record in spool.peek(max_samples=10**9)]


def test_records_leave_in_order_and_survive_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a" / "spool.sqlite", max_bytes=10_000)
    for number in range(5):
        assert spool.append(f"record {number}".encode(), samples=10) == 0
    first = spool.peek(max_samples=20)
    assert [record.payload for record in first] == [b"record 0", b"record 1"]
    spool.remove(first)
    spool.close()
    again = Spool(tmp_path / "a" / "spool.sqlite", max_bytes=10_000)
    assert waiting(again) == [b"record 2", b"record 3", b"record 4"]
    assert again.state().waiting_samples == 30
    again.close()


def test_what_was_appended_survives_a_process_that_dies(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    script = (
        "import os, sys; from pathlib import Path; from collectors.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), max_bytes=10_000)\n"
        "for number in range(3): spool.append(b'%d' % number, samples=1)\n"
        "spool.remove(spool.peek(max_samples=1)); os._exit(9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=60)
    assert ended.returncode == 9
    spool = Spool(path, max_bytes=10_000)
    assert waiting(spool) == [b"1", b"2"]
    spool.close()


def test_a_record_larger_than_a_batch_leaves_by_itself(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", max_bytes=10_000)
    spool.append(b"large", samples=500)
    assert [record.samples for record in spool.peek(max_samples=1)] == [500]


def test_when_full_the_refused_go_first_then_the_oldest_and_all_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    spool = Spool(path, max_bytes=3 * (10 + ROOM))
    for letter in "abc":
        spool.append(letter.encode() * 10, samples=7)
    refused = spool.peek(max_samples=10**9)[1]
    spool.park([refused], "HTTP 400")
    assert spool.append(b"d" * 10, samples=7) == 7
    assert waiting(spool) == [b"a" * 10, b"c" * 10, b"d" * 10]
    assert spool.append(b"e" * 10, samples=7) == 7
    assert waiting(spool) == [b"c" * 10, b"d" * 10, b"e" * 10]
    spool.close()
    again = Spool(path, max_bytes=10_000)
    assert again.state().dropped_samples == 14
    again.close()


def test_what_was_refused_can_wait_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", max_bytes=10_000)
    spool.append(b"one", samples=1)
    spool.append(b"two", samples=2)
    spool.park(spool.peek(max_samples=1), "HTTP 401")
    assert (spool.state().waiting_samples, spool.state().parked_samples) == (2, 1)
    assert spool.unpark() == 1
    assert waiting(spool) == [b"one", b"two"]


def test_only_one_process_holds_a_spool(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    held = Spool(path, max_bytes=10_000)
    with pytest.raises(SpoolError, match=r"spool\.sqlite.*stop the other"):
        Spool(path, max_bytes=10_000)
    held.close()
    Spool(path, max_bytes=10_000).close()


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    path.write_bytes(b"this is no database at all" * 50)
    spool = Spool(path, max_bytes=10_000)
    spool.append(b"one", samples=1)
    assert waiting(spool) == [b"one"]
    assert path.with_name("spool.sqlite.damaged").exists()


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 300), max_size=30), bound=st.integers(100, 1500))
def test_it_never_outgrows_its_bound_and_loses_nothing_uncounted(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], bound: int
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool") / "spool.sqlite", max_bytes=bound)
    for size in sizes:
        spool.append(b"x" * size, samples=1)
        state = spool.state()
        assert state.size_bytes <= max(bound, size + ROOM)
    state = spool.state()
    assert state.waiting_samples + state.dropped_samples == len(sizes)
    kept = waiting(spool)
    assert [len(payload) for payload in kept] == sizes[len(sizes) - len(kept) :]
    spool.close()
