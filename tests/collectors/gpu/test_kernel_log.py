from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collectors.gpu import kernel_log
from collectors.gpu.kernel_log import (
    FileReader,
    JournalReader,
    KmsgReader,
    LogBatch,
    LogError,
    open_log,
)
from collectors.gpu.log_lines import line_time

XID = "NVRM: Xid (PCI:0000:18:00): 79, pid=1, GPU has fallen off the bus."


# --- /dev/kmsg ---------------------------------------------------------------------------------------


class Ring:
    """A device of which each read gives one record, as /dev/kmsg does."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.setblocking(False)
        self.sequence = 100

    def open(self) -> int:
        return os.dup(self.theirs.fileno())

    def put(self, text: str | bytes, *, facility: int = 0, microseconds: int = 5_000_000) -> None:
        body = text.encode() if isinstance(text, str) else text
        head = f"{facility << 3 | 3},{self.sequence},{microseconds},-;".encode()
        self.ours.send(head + body + b"\n SUBSYSTEM=pci\n DEVICE=+pci:0000:18:00.0\n")
        self.sequence += 1


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring()
    yield made
    made.ours.close()
    made.theirs.close()


@pytest.fixture
def kmsg(ring: Ring) -> Iterator[KmsgReader]:
    reader = KmsgReader(ring.open, boot_seconds=lambda: 1000.0)
    yield reader
    reader.close()


def test_records_of_the_kernel_come_with_their_time(ring: Ring, kmsg: KmsgReader) -> None:
    ring.put("usb 1-1: new device")
    ring.put(XID, microseconds=5_250_000)
    batch = kmsg.read()
    assert [(line.text, line.time_seconds) for line in batch.lines] == [(XID, 1005.25)]
    assert batch.lost == 0
    assert kmsg.read() == LogBatch()


def test_what_a_program_wrote_does_not_count(ring: Ring, kmsg: KmsgReader) -> None:
    ring.put(XID, facility=1)
    assert kmsg.read().lines == []
    willing = KmsgReader(ring.open, kernel_only=False)
    ring.put(XID, facility=1)
    assert len(willing.read().lines) == 1
    willing.close()


def test_overwritten_records_are_counted(ring: Ring, kmsg: KmsgReader) -> None:
    ring.put(XID)
    kmsg.read()
    ring.sequence += 41
    ring.put(XID)
    batch = kmsg.read()
    assert (len(batch.lines), batch.lost) == (1, 41)


def test_a_gap_that_the_device_reports_is_read_over(
    ring: Ring, kmsg: KmsgReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, gaps = os.read, [OSError(errno.EPIPE, "gap")]

    def read(file: int, size: int) -> bytes:
        if gaps:
            raise gaps.pop()
        return real(file, size)

    monkeypatch.setattr(kernel_log.os, "read", read)
    ring.put(XID)
    assert len(kmsg.read().lines) == 1


def test_a_device_that_fails_is_opened_again_without_repeating(
    ring: Ring, kmsg: KmsgReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring.put(XID)
    assert len(kmsg.read().lines) == 1
    with monkeypatch.context() as patch:
        patch.setattr(kernel_log.os, "read", lambda *_: (_ for _ in ()).throw(OSError(5, "broken")))
        with pytest.raises(LogError, match="/dev/kmsg: broken"):
            kmsg.read()
    ring.sequence -= 1  # an opened device starts with what the ring still holds
    ring.put(XID)
    ring.put(XID)
    assert len(kmsg.read().lines) == 1


def test_a_flood_is_read_in_parts(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_log, "_MOST_RECORDS", 20)
    reader = KmsgReader(ring.open)
    for _ in range(50):
        ring.put(XID)
    assert [len(reader.read().lines) for _ in range(4)] == [20, 20, 10, 0]
    reader.close()


@pytest.mark.parametrize(
    "record", [b"", b";", b"x,y,z;NVRM: Xid", b"3,1;NVRM", b"\xff\xfe\x00;NVRM", b"3,-1,0,-;NVRM"]
)
def test_broken_records_do_no_harm(ring: Ring, kmsg: KmsgReader, record: bytes) -> None:
    ring.ours.send(record or b"\0")
    ring.put(XID + " \udcff".encode("utf-8", "surrogateescape").decode("latin-1"))
    assert kmsg.read().lines[-1].text.startswith(XID)


def test_bytes_that_are_not_utf8_are_replaced(ring: Ring, kmsg: KmsgReader) -> None:
    ring.put(XID.encode() + b" \xff\xfe")
    assert kmsg.read().lines[0].text == XID + " \ufffd\ufffd"


def test_the_real_device() -> None:
    try:
        os.close(kernel_log._open_kmsg())
    except OSError as error:
        pytest.skip(f"/dev/kmsg cannot be read here: {error}")
    reader = open_log("auto")
    assert isinstance(reader, KmsgReader)
    first = reader.read()
    assert first.lost == 0
    for _ in range(20):  # to the end of a ring of any size
        reader.read()
    assert reader._next_sequence is not None
    reader.close()


# --- journald ----------------------------------------------------------------------------------------


def _entry(message: object, *, facility: str | None = "0", seconds: float = 1000.0) -> str:
    entry = {"MESSAGE": message, "__REALTIME_TIMESTAMP": str(int(seconds * 1e6)), "_PID": "1"}
    return json.dumps(entry | ({} if facility is None else {"SYSLOG_FACILITY": facility}))


def _journal(tmp_path: Path, *lines: str, stay: bool = True) -> JournalReader:
    script = tmp_path / "journalctl.py"
    tail = "import time; time.sleep(600)" if stay else ""
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line in lines))
    script.write_text(
        f"print(open({str(tmp_path / 'lines')!r}).read(), end='', flush=True)\n{tail}"
    )
    return JournalReader([sys.executable, str(script)], monotonic=lambda: 0.0)


def _until(reader: JournalReader, count: int) -> list[str]:
    found: list[str] = []
    waiter = threading.Event()
    for _ in range(600):
        found += [line.text for line in reader.read().lines]
        if len(found) >= count:
            return found
        waiter.wait(0.05)
    raise AssertionError(found)


def test_entries_of_the_kernel(tmp_path: Path) -> None:
    reader = _journal(
        tmp_path,
        _entry("usb 1-1: new device"),
        _entry(XID, seconds=1000.5),
        _entry(XID, facility="1"),
        _entry(list(XID.encode() + b"\xff")),
        _entry(list(b"something else \xff")),
        _entry(None),
        '{"MESSAGE": "NVRM cut',
        _entry(XID + " last"),
    )
    try:
        assert _until(reader, 3) == [XID, XID + "\ufffd", XID + " last"]
    finally:
        reader.close()


def test_journald_cuts_the_first_word_off_what_a_program_wrote(tmp_path: Path) -> None:
    # As journald 252 gave it for a line written into /dev/kmsg.
    entry = {
        "SYSLOG_FACILITY": "1",
        "SYSLOG_IDENTIFIER": "NVRM",
        "MESSAGE": "Xid (PCI:0000:18:00): 14, pid=1, name=galen, test",
        "__REALTIME_TIMESTAMP": "1795235632707335",
    }
    reader = _journal(tmp_path, json.dumps(entry))
    reader._kernel_only = False
    try:
        assert _until(reader, 1) == ["NVRM: Xid (PCI:0000:18:00): 14, pid=1, name=galen, test"]
    finally:
        reader.close()


def test_the_time_is_when_the_kernel_wrote_and_not_when_journald_read(tmp_path: Path) -> None:
    entry = json.loads(_entry(XID, seconds=9_999.0)) | {"_SOURCE_MONOTONIC_TIMESTAMP": "2500000"}
    reader = _journal(tmp_path, json.dumps(entry))
    reader._boot_seconds = lambda: 1000.0
    waiter = threading.Event()
    try:
        while not (lines := reader.read().lines):
            waiter.wait(0.05)
    finally:
        reader.close()
    assert lines[0].time_seconds == 1002.5


def test_a_journal_that_ends_is_an_error_and_is_started_again(tmp_path: Path) -> None:
    now = [0.0]
    reader = _journal(tmp_path, _entry(XID, seconds=1.0), stay=False)
    reader._monotonic = lambda: now[0]
    waiter = threading.Event()

    def ends() -> list[str]:
        found: list[str] = []

        def read_on() -> None:
            for _ in range(600):
                found.extend(line.text for line in reader.read().lines)
                waiter.wait(0.05)

        with pytest.raises(LogError, match="ended with status 0"):
            read_on()
        return found

    assert ends() == [XID]
    with pytest.raises(LogError, match="started again soon"):
        reader.read()
    now[0] = 60.0
    (tmp_path / "lines").write_text(
        f"{_entry(XID, seconds=1.0)}\n{_entry(XID + ' new', seconds=2.0)}\n"
    )
    assert ends() == [XID + " new"]  # its history is not told twice


def test_a_journal_that_is_not_there() -> None:
    with pytest.raises(LogError, match="No such file"):
        JournalReader(["/no/such/journalctl"]).read()


# --- a file ------------------------------------------------------------------------------------------


def _texts(reader: FileReader) -> list[str]:
    return [line.text for line in reader.read().lines]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "kern.log").touch()
    return tmp_path / "kern.log"


def _append(path: Path, text: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def test_lines_that_are_added(path: Path) -> None:
    reader = FileReader(path)
    assert _texts(reader) == []
    _append(path, f"{XID}\nsomething else\n{XID[:20]}")
    assert _texts(reader) == [XID]
    _append(path, f"{XID[20:]}\n")  # a line that came in two pieces
    assert _texts(reader) == [XID]


def test_history_counts_only_with_its_time(path: Path) -> None:
    _append(path, f"{XID}\n2026-11-20T10:00:00.5+00:00 box kernel: {XID}\n")
    lines = FileReader(path).read().lines
    assert [line.time_seconds for line in lines] == [
        datetime(2026, 11, 20, 10, 0, 0, 500_000, UTC).timestamp()
    ]


def test_rotation_by_renaming_loses_nothing(path: Path) -> None:
    reader = FileReader(path)
    _texts(reader)
    _append(path, f"{XID} 1\n")
    _texts(reader)
    _append(path, f"{XID} 2\n")
    path.rename(path.with_suffix(".1"))
    assert _texts(reader) == [f"{XID} 2"]  # the new file is not there yet
    _append(path.with_suffix(".1"), f"{XID} 3\n")
    _append(path, f"{XID} 4\n")
    assert _texts(reader) == [f"{XID} 3", f"{XID} 4"]
    _append(path, f"{XID} 5\n")
    assert _texts(reader) == [f"{XID} 5"]


def test_a_line_that_comes_just_before_a_rotation_is_not_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = FileReader(path)
    _texts(reader)
    real = reader._rotated

    def rotated() -> bool:
        if path.with_suffix(".1").exists():
            return real()
        _append(path, f"{XID} last\n")  # after the reading and before the look
        path.rename(path.with_suffix(".1"))
        _append(path, f"{XID} first\n")
        return real()

    monkeypatch.setattr(reader, "_rotated", rotated)
    assert _texts(reader) == [f"{XID} last", f"{XID} first"]


def test_rotation_by_truncation(path: Path) -> None:
    reader = FileReader(path)
    _texts(reader)
    _append(path, f"{XID} and a longer tail\n")
    _texts(reader)
    path.write_text("")
    _append(path, f"{XID}\n")
    assert _texts(reader) == [XID]


def test_a_file_that_goes_and_comes_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FileReader(path)
    _append(path, f"2026-11-20T10:00:00Z {XID}\n")
    assert len(_texts(reader)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(
            kernel_log.os, "pread", lambda *_: (_ for _ in ()).throw(OSError(5, "broken"))
        )
        with pytest.raises(LogError, match="broken"):
            reader.read()
    _append(path, f"{XID}\n")
    assert _texts(reader) == [XID]  # it goes on where it stopped
    with pytest.raises(LogError, match="No such file"):
        FileReader(path.with_name("absent")).read()


def test_a_line_without_end_is_cut(path: Path) -> None:
    reader = FileReader(path)
    _texts(reader)
    _append(path, XID + "x" * 300_000)
    batch = reader.read()
    assert (len(batch.lines), batch.lost) == (1, 1)
    assert len(batch.lines[0].text) == 8192
    _append(path, f"still the same\n{XID}\n")
    assert _texts(reader) == [XID]


def test_a_huge_file_is_read_from_its_last_part_and_in_parts(path: Path) -> None:
    line = f"2026-11-20T10:00:00Z {XID}\n"
    _append(path, line * 60_000)
    reader = FileReader(path)
    found = len(_texts(reader))
    assert found == (1024 * 1024) // len(line)
    _append(path, line * 60_000)
    parts = [len(_texts(reader)) for _ in range(5)]
    assert sum(parts) == 60_000
    assert max(parts) * len(line) <= 2 * 1024 * 1024 + 65536


def test_a_log_that_is_no_text(path: Path) -> None:
    reader = FileReader(path)
    _texts(reader)
    _append(path, b"\x00\xff\xfeNVRM: Xid (PCI:\xff\n\x80\x81NVRM\n")
    assert len(_texts(reader)) == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(pieces=st.lists(st.binary(max_size=200), max_size=12))
def test_pieces_of_any_bytes_give_the_lines_of_the_whole(
    pieces: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "any.log"
    path.write_bytes(b"")
    reader = FileReader(path)
    reader.read()
    found: list[str] = []
    for piece in pieces:
        _append(path, piece.replace(b"a", b"NVRM"))
        found += _texts(reader)
    reader.close()
    whole = b"".join(pieces).replace(b"a", b"NVRM").split(b"\n")[:-1]
    ours = [line for line in whole if b"NVRM" in line or b"SXid" in line]
    assert found == [line.decode(errors="replace") for line in ours]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("2026-11-20T10:00:00Z box", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("2026-11-20T10:00:00.123456789+00:00 b", datetime(2026, 11, 20, 10, 0, 0, 123456, UTC)),
        ("2026-11-20 11:00:00,5+01:00 b", datetime(2026, 11, 20, 10, 0, 0, 500_000, UTC)),
        ("Nov 20 10:00:00 box kernel:", datetime(2026, 11, 20, 10).astimezone()),
        ("<4>Nov  2 10:00:00 box kernel:", datetime(2026, 11, 2, 10).astimezone()),
        ("Dec 31 23:59:59 box kernel:", datetime(2025, 12, 31, 23, 59, 59).astimezone()),
    ],
)
def test_times_of_lines(line: str, expected: datetime) -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
    assert line_time(line, now) == expected.timestamp()


@pytest.mark.parametrize(
    "line", ["", "[ 12.5] NVRM", "Foo 12 10:00:00 b", "Nov 31 10:00:00 b", "9999-99-99T99:99:99Z"]
)
def test_lines_without_a_time(line: str) -> None:
    assert line_time(line, 1_800_000_000.0) is None


@pytest.mark.parametrize(
    ("source", "kind"),
    [("kmsg", KmsgReader), ("journal", JournalReader), ("/var/log/x", FileReader)],
)
def test_a_source_by_name(source: str, kind: type) -> None:
    assert isinstance(open_log(source), kind)
    assert open_log("none") is None
