from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from galen.supervisor import Part, Supervisor


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def python(name: str, code: str, **options: float) -> Part:
    return Part(name, [sys.executable, "-c", code], **options)  # type: ignore[arg-type]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "condition not met in time"
        time.sleep(0.01)


def test_a_part_that_ends_is_started_again_after_its_backoff(tmp_path: Path) -> None:
    clock = Clock()
    with Supervisor(tmp_path, clock=clock) as supervisor:
        supervisor.start(python("short", "print('here', flush=True); raise SystemExit(3)"))
        wait_for(lambda: not supervisor.is_running("short"))
        assert supervisor.check() == ["short ended with status 3; starts again in 0.5 s"]
        assert supervisor.check() == []
        clock.now = 0.6
        assert supervisor.check() == ["short started again"]
        wait_for(lambda: not supervisor.is_running("short"))
        assert supervisor.check() == ["short ended with status 3; starts again in 1.0 s"]
        assert supervisor.log_tail("short") == "here\nhere"


def test_stop_waits_for_a_part_that_stops_by_itself(tmp_path: Path) -> None:
    code = (
        "import signal, time\n"
        "def stop(*_): print('stopped well', flush=True); raise SystemExit(0)\n"
        "signal.signal(signal.SIGTERM, stop); print('up', flush=True)\n"
        "while True: time.sleep(0.05)"
    )
    supervisor = Supervisor(tmp_path)
    supervisor.start(python("polite", code))
    wait_for(lambda: "up" in supervisor.log_tail("polite"))
    supervisor.stop()
    assert "stopped well" in (tmp_path / "polite.log").read_text()


def test_a_part_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\n"
        "while True: time.sleep(0.05)"
    )
    supervisor = Supervisor(tmp_path)
    supervisor.start(python("stubborn", code, stop_seconds=0.2))
    wait_for(lambda: "up" in supervisor.log_tail("stubborn"))
    supervisor.stop()
