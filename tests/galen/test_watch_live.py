"""A real `galen watch` process: signals, sudden ends, and what outlives them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from analysis.detection.state_file import read_state
from analysis.journal import Event, EventKind, Journal
from galen.telemetry.status import StatusError, WatchStatus, read_status

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

BASE = "[collectors]\ngpu_mode = 'simulated'\n[reload]\npoll_seconds = 1\ntrial_seconds = 5\n"
GOOD = BASE + "[analysis.detection.alerts]\nclear_level = 0.6\n"
BAD = BASE + "[analysis.detection.alerts]\nclear_level = 7\n"


class Watch:
    """One process over a state directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "galen.toml"
        self.config.write_text(BASE)
        self.log = folder / "watch.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self.folder / "var" / "watch_status.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "galen", "watch", "--config", str(self.config),
                   "--state-dir", str(self.folder / "var")]  # fmt: skip
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def until(self, what: Callable[[], bool], seconds: float = 90.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()[-5000:]
            time.sleep(0.1)

    def status(self) -> WatchStatus | None:
        try:
            return read_status(self.folder / "var" / "watch_status.json")
        except StatusError:
            return None

    def ticks(self) -> int:
        status = self.status()
        return 0 if status is None else status.ticks

    def events(self, kind: EventKind) -> list[Event]:
        journal = Journal(self.folder / "var" / "journal.sqlite")
        try:
            return list(journal.events(kinds=[kind]))
        finally:
            journal.close()

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    running = Watch(tmp_path)
    yield running
    running.end()


def test_sighup_takes_up_the_configuration_and_a_bad_one_changes_nothing(watch: Watch) -> None:
    watch.start()
    watch.until(lambda: watch.ticks() >= 3)
    assert watch.process is not None
    first = watch.process.pid

    watch.config.write_text(BAD)
    watch.send(signal.SIGHUP)
    watch.until(lambda: bool(watch.events(EventKind.CONFIG_REJECTED)))
    (rejected,) = watch.events(EventKind.CONFIG_REJECTED)
    assert "analysis.detection.alerts.clear_level" in rejected.summary
    watch.until(
        lambda: (status := watch.status()) is not None and not status.config_reload_successful
    )

    watch.config.write_text(GOOD)
    watch.send(signal.SIGHUP)
    watch.until(lambda: bool(watch.events(EventKind.CONFIG_RELOADED)))
    (reloaded,) = watch.events(EventKind.CONFIG_RELOADED)
    assert reloaded.data["applied"] == ["analysis.detection.alerts.clear_level"]
    watch.until(lambda: "config_trial_passed" in watch.log.read_text())

    # Without a signal, too: the file itself is looked at.
    watch.config.write_text(BASE)
    watch.until(lambda: len(watch.events(EventKind.CONFIG_RELOADED)) == 2)
    ticks = watch.ticks()
    watch.until(lambda: watch.ticks() > ticks + 2)
    status = watch.status()
    assert status is not None
    assert status.config_reload_successful
    assert status.part_failures == {}
    assert (watch.process.pid, watch.process.poll()) == (first, None)
    watch.end(signal.SIGTERM)
    assert watch.process.returncode == 0


def test_a_killed_loop_resumes_with_what_it_had_saved(watch: Watch) -> None:
    state = watch.folder / "var" / "detection.npz"
    watch.start()
    watch.until(lambda: watch.ticks() >= 8)
    watch.end(signal.SIGTERM)  # an orderly end saves
    keys, parts = read_state(state)
    known = parts["absence"]["count"].max()
    assert known >= 7

    watch.start()
    watch.until(lambda: watch.log.read_text().count("detection_state_taken_up") == 1)
    watch.until(lambda: watch.ticks() >= 4)
    watch.end(signal.SIGKILL)
    # Killed at any moment the file is whole: the last save of this or of the process before.
    again, _ = read_state(state)
    assert again[: len(keys)] == keys

    began = time.monotonic()
    watch.start()
    watch.until(lambda: watch.log.read_text().count("detection_state_taken_up") == 2)
    watch.until(lambda: watch.ticks() >= 3)
    assert time.monotonic() - began < 60
    assert "detection_caught_up" in watch.log.read_text()  # by what the killed one had stored
    watch.end(signal.SIGTERM)
    _, last = read_state(state)
    assert last["absence"]["count"].max() > known
    assert not np.isnan(last["seen"]["seconds"]).all()
    assert not list(state.parent.glob("detection.npz.*"))
    assert not list(state.parent.glob(".detection.npz.*"))
    assert os.access(state, os.R_OK)
