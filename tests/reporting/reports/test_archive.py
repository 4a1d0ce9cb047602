from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from reporting.reports.archive import ReportArchive, period_name
from reporting.reports.model import Report
from reporting.settings import Format

DAY = 86400.0


def archive(directory: Path, keep_days: float = 90.0) -> ReportArchive:
    return ReportArchive(directory, formats=tuple(Format), keep_seconds=keep_days * DAY)


def day(report: Report, number: int, **changes: Any) -> Report:
    window = report.window.model_copy(
        update={"since_seconds": number * DAY, "until_seconds": (number + 1) * DAY}
    )
    return report.model_copy(update={"window": window, **changes})


def test_a_period_is_written_in_all_forms_and_listed(report: Report, tmp_path: Path) -> None:
    kept = archive(tmp_path / "reports")
    assert kept.entries() == ()
    entry = kept.write(report)
    assert entry.period == "20251120T010000Z--20251120T070000Z"
    assert {path.name for path in (tmp_path / "reports").iterdir()} == {
        "archive.index",
        *(f"{entry.period}.{form.value}" for form in Format),
    }
    assert kept.entries() == (entry,)
    assert kept.get(report.window.since_seconds, report.window.until_seconds) == entry
    assert stat.S_IMODE((tmp_path / "reports" / entry.files[0]).stat().st_mode) == 0o644


def test_a_period_is_written_once(report: Report, tmp_path: Path) -> None:
    kept = archive(tmp_path)
    first = kept.write(report)
    again = kept.write(report.model_copy(update={"verdict": "Something else."}))
    assert again == first
    assert "Something else." not in (tmp_path / first.files[0]).read_text("utf-8")


def test_a_file_that_is_gone_is_written_again(report: Report, tmp_path: Path) -> None:
    kept = archive(tmp_path)
    entry = kept.write(report)
    (tmp_path / entry.files[0]).unlink()
    assert kept.entries() == ()
    kept.write(report)
    assert len(kept.entries()) == 1


def test_the_newest_come_first_and_old_ones_go(report: Report, tmp_path: Path) -> None:
    kept = archive(tmp_path, keep_days=2.0)
    for number in (3, 1, 5, 4):
        kept.write(day(report, number))
    assert [entry.since_seconds / DAY for entry in kept.entries()] == [5.0, 4.0, 3.0]
    assert not list(tmp_path.glob(f"{period_name(DAY, 2 * DAY)}*"))


def test_a_lost_or_damaged_index_is_made_again(report: Report, tmp_path: Path) -> None:
    kept = archive(tmp_path)
    entries = {kept.write(day(report, number)) for number in (1, 2)}
    (tmp_path / "archive.index").write_text("{", "utf-8")
    assert set(kept.entries()) == entries
    (tmp_path / "archive.index").unlink()
    assert set(kept.entries()) == entries
    (tmp_path / "19700104T000000Z--19700105T000000Z.json").write_text("not a report", "utf-8")
    assert set(kept.entries()) == entries


def test_an_index_cannot_have_other_files_deleted(report: Report, tmp_path: Path) -> None:
    outside = tmp_path / "precious.txt"
    outside.write_text("keep me", "utf-8")
    kept = archive(tmp_path / "reports", keep_days=1.0)
    entry = kept.write(day(report, 1))
    evil = entry.model_copy(update={"files": ("../precious.txt",), "period": "x"})
    index = tmp_path / "reports" / "archive.index"
    index.write_text(f"[{evil.model_dump_json()}]", "utf-8")
    kept.write(day(report, 9))
    assert outside.read_text("utf-8") == "keep me"


def test_a_failed_write_leaves_nothing_behind(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        archive(tmp_path).write(report)
    assert list(tmp_path.iterdir()) == []
