"""The audit log: its files, its queue, and what a live service writes into it."""

import json
import os

import pytest

from inference.audit import AuditFile, AuditLog

LINE = b'{"kind":"access","n":%d}\n'


def _lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_are_bounded_in_size_and_number(tmp_path):
    path = tmp_path / "audit.jsonl"
    file = AuditFile(path, max_bytes=100, files=3)
    for number in range(40):
        file.write([LINE % number])
    file.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"
    ]  # fmt: skip
    assert all(p.stat().st_size <= 100 for p in tmp_path.iterdir())
    kept = [
        entry["n"]
        for name in ("audit.jsonl.2", "audit.jsonl.1", "audit.jsonl")
        for entry in _lines(tmp_path / name)
    ]
    assert kept == list(range(40 - len(kept), 40))
    assert len(kept) > 6


def test_one_file_is_begun_anew(tmp_path):
    file = AuditFile(tmp_path / "audit.jsonl", max_bytes=60, files=1)
    file.write([LINE % number for number in range(10)])
    file.close()
    assert [p.name for p in tmp_path.iterdir()] == ["audit.jsonl"]
    assert _lines(tmp_path / "audit.jsonl")[-1]["n"] == 9


def test_a_file_is_private_and_is_continued(tmp_path):
    path = tmp_path / "state" / "audit.jsonl"
    for number in range(2):
        file = AuditFile(path, max_bytes=1000, files=2)
        file.write([LINE % number])
        file.close()
    assert [entry["n"] for entry in _lines(path)] == [0, 1]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_costs_lines_and_is_survived(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    log = AuditLog(AuditFile(path, max_bytes=1000, files=2))
    log.record({"kind": "admin", "n": 1})
    log._write()
    assert log.dropped == {"queue_full": 0, "write_failed": 1}
    path.unlink()
    log.record({"kind": "admin", "n": 2})
    log._write()
    assert _lines(path) == [{"kind": "admin", "n": 2}]
    assert log.written["admin"] == 1


def test_a_line_that_was_written_in_part_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "audit.jsonl"
    file = AuditFile(path, max_bytes=1000, files=2)
    file.write([LINE % 1])
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[:5]))
    with pytest.raises(OSError, match="5 of"):
        file.write([LINE % 2])
    monkeypatch.undo()
    file.write([LINE % 3])
    assert [entry["n"] for entry in _lines(path)] == [1, 3]


def test_the_queue_is_bounded_and_says_what_it_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("inference.audit._QUEUE_LINES", 3)
    log = AuditLog(AuditFile(tmp_path / "audit.jsonl", max_bytes=1000, files=2))
    for number in range(5):
        log.record({"kind": "access", "n": number})
    assert log.dropped["queue_full"] == 2
    log.start()
    log.close(10.0)
    assert [entry["n"] for entry in _lines(tmp_path / "audit.jsonl")] == [0, 1, 2]


@pytest.fixture
def start(tools, own_repository, tmp_path):
    def begin(**settings):
        return tools.run_service(own_repository, tmp_path / "state", **settings)

    return begin


@pytest.mark.integration
def test_administration_is_written_with_what_it_changed(start, tools, tmp_path):
    path = tmp_path / "state" / "audit.jsonl"
    with start(allow_faults=False) as live:
        live.admin.put("/admin/limits", json={"max_queue": 7}, headers={"x-request-id": "first"})
        live.admin.put("/admin/drain", json={"drain": True})
        live.admin.post("/admin/faults", json={"fault": "engine_crash"})
        live.admin.get("/admin/state")
        live.admin.post("/v2/repository/models/none/load", json={})
        live.client.put("/admin/drain", json={"drain": False, "reason": "a stranger's words"})
        live.complete("a secret word")
        tools.eventually(lambda: live.metric("audit_records_total", kind="admin") == 5, "written")
        assert live.metric("audit_records_total", kind="access") == 0
    limits, drain, fault, load, stranger = _lines(path)
    assert (limits["who"], limits["status"], limits["request_id"]) == ("admin", 200, "first")
    assert limits["path"] == "/admin/limits"
    assert limits["parameters"] == {"max_queue": 7}
    assert limits["changed"]["tiny.max_queue"] == {"old": 256, "new": 7}
    assert drain["changed"] == {"draining": {"old": False, "new": True}}
    assert (fault["status"], fault["reason"]) == (403, "faults_not_allowed")
    assert (load["path"], load["status"]) == ("/v2/repository/models/none/load", 404)
    assert (stranger["who"], stranger["status"], stranger["changed"]) == (None, 401, {})
    written = path.read_text(encoding="utf-8")
    for secret in (tools.token, "a secret word", "a stranger's words"):
        assert secret not in written


@pytest.mark.integration
def test_strangers_cannot_fill_the_files(start, tools, tmp_path):
    with start() as live:
        for _ in range(100):
            assert live.client.put("/admin/drain", json={"drain": True}).status_code == 401
        live.admin.put("/admin/drain", json={"drain": True})
    entries = _lines(tmp_path / "state" / "audit.jsonl")
    assert entries[-1]["who"] == "admin"
    assert len(entries) < 50


@pytest.mark.integration
def test_access_is_written_where_it_is_wanted_without_texts(start, tmp_path):
    path = tmp_path / "state" / "audit.jsonl"
    with start(audit_access=True) as live:
        answer = live.complete("a secret word", max_tokens=3, headers={"x-request-id": "mine"})
        live.complete(model="none")
    asked, refused = (entry for entry in _lines(path) if entry["kind"] == "access")
    assert (asked["request_id"], asked["address"], asked["who"]) == ("mine", "127.0.0.1", None)
    assert (asked["route"], asked["model"], asked["status"]) == ("/v1/completions", "tiny", 200)
    assert asked["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert asked["completion_tokens"] == 3
    assert asked["seconds"] > 0
    assert (refused["status"], refused["reason"]) == (404, "model_not_found")
    assert "secret" not in path.read_text(encoding="utf-8")


@pytest.mark.integration
def test_texts_are_written_only_where_they_are_asked_for(start, tmp_path):
    with start(audit_access=True, audit_prompts=True) as live:
        answer = live.complete("a secret word")
    (entry,) = _lines(tmp_path / "state" / "audit.jsonl")
    assert entry["prompt"] == "a secret word"
    assert entry["answer"] == answer.json()["choices"][0]["text"]
