from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from collectors.contract import CollectorError
from collectors.gpu.killable import KillableChild, TooSlow

ECHO = (sys.executable, "-c", "import sys\nfor line in sys.stdin: print(line, end='', flush=True)")
DEAF = (sys.executable, "-c", "import time\ntime.sleep(600)")


def test_it_answers_and_stays() -> None:
    child = KillableChild(ECHO)
    try:
        assert child.ask(b"one", 20.0) == b"one\n"
        first = child.process_id
        assert child.warm
        assert child.ask(b"two", 20.0) == b"two\n"
        assert child.process_id == first
    finally:
        child.kill()
    assert not child.warm


def test_a_silent_child_is_killed_and_the_next_question_starts_another() -> None:
    child = KillableChild(DEAF)
    with pytest.raises(TooSlow, match="no answer in"):
        child.ask(b"", 0.05)
    assert child.process_id is None
    child._command = list(ECHO)
    assert child.ask(b"x", 20.0) == b"x\n"
    child.kill()


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(CollectorError, match="cannot start"):
        KillableChild(("/no/such/program",)).ask(b"", 1.0)


def test_children_that_do_not_die_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in uninterruptible sleep survives its killing; such processes must not pile up."""
    child = KillableChild(DEAF)
    stuck: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen.wait

    def wait(process: subprocess.Popen[bytes], timeout: float | None = None) -> Any:
        if process not in stuck:
            stuck.append(process)
        raise subprocess.TimeoutExpired("nvml", timeout or 0.0)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    monkeypatch.setattr(subprocess.Popen, "poll", lambda _: None)
    for _ in range(3):
        with pytest.raises(TooSlow, match="no answer"):
            child.ask(b"", 0.01)
    with pytest.raises(TooSlow, match="3 killed NVML processes are stuck"):
        child.ask(b"", 0.01)
    assert len(stuck) == 3
    monkeypatch.undo()
    for process in stuck:
        real(process)
    with pytest.raises(TooSlow, match="no answer"):  # they have died: it may be tried again
        child.ask(b"", 0.01)


def test_a_child_that_closes_its_output_and_stays_is_an_error() -> None:
    mute = "import os, time; os.close(1); time.sleep(600)"
    child = KillableChild((sys.executable, "-c", mute))
    with pytest.raises(CollectorError, match="ended with status None"):
        child.ask(b"", 20.0)
    assert child.process_id is None
