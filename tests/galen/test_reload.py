"""A changed configuration is taken up by the running loop, and given back when it is bad."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from analysis.analyst import Analyst, AnalystTick
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.detection.trial import ReplaceablePipeline
from analysis.history import History
from analysis.journal import EventKind, Journal
from collectors.contract import Sample
from collectors.poller import Tick
from galen.config import Settings, load_settings
from galen.reload import (
    ConfigFile,
    ConfigSource,
    Reloader,
    ReloadParts,
    ReloadRequest,
    changed_keys,
)
from galen.telemetry.status import StatusBoard, WatchStatus, read_status
from galen.watch import WatchLoop
from reporting.settings import ReportingSettings

START = 1_000_000.0
SERVICE = "service/llm"
LATENCY = "llm_request_latency_seconds"
QUIET = "[reload]\ntrial_seconds = 60\nmost_new_anomalies = 5\npoll_seconds = 5\n"
OFF = '[[analysis.detection.overrides]]\nsignals = ["llm_*"]\nenabled = false\n'
TOUCHY = """
[analysis.detection.baseline]
raise_sigmas = 2
tail_rate = 0.19
[[analysis.detection.overrides]]
signals = ["*"]
least = 0.0
minimum_values = 1
bad_direction = "both"
"""


class Watched:
    """The real loop with real analysis over ten services that this test measures itself."""

    def __init__(self, folder: Path, text: str = QUIET) -> None:
        self.file = folder / "galen.toml"
        self.file.write_text(text)
        self.settings = load_settings(self.file)
        self.journal = Journal(folder / "journal.sqlite")
        self.history = History(capacity_ticks=60)
        self.made: list[DetectionPipeline] = []
        self.detection = ReplaceablePipeline(
            self.settings.analysis.detection, self.history, make=self.make
        )
        self.analyst = Analyst(
            self.settings.analysis, self.journal, self.history, pipeline=self.detection
        )
        self.status_path = folder / "status.json"
        board = StatusBoard(self.status_path, started_seconds=START, interval_seconds=1.0)
        self.reporting: list[ReportingSettings] = []
        self.request = ReloadRequest()
        source = ConfigSource(ConfigFile(self.file), lambda: load_settings(self.file), self.request)
        self.reloader = Reloader(
            self.settings,
            source,
            ReloadParts(self.detection, self.reporting.append, self.journal, board.reloaded),
        )
        parts = SimpleNamespace(
            poller=SimpleNamespace(tick=self.poll),
            store=SimpleNamespace(write=len),
            history=self.history,
            analyst=SimpleNamespace(tick=self.think, save=lambda: None),
            healer=SimpleNamespace(tick=lambda *_: None),
            ledger=SimpleNamespace(standing=list),
            journal=self.journal,
            seasons=SimpleNamespace(take=lambda now: {}),
            upkeep=SimpleNamespace(due=lambda now: []),
        )
        self.now = START
        self.loop = WatchLoop(
            parts,  # type: ignore[arg-type]
            interval_seconds=1.0,
            clock=lambda: self.now,
            board=board,
            reloader=self.reloader,
        )
        self.random = np.random.default_rng(0)
        self.latency = 0.3
        self.noise = 0.02

    def make(self, settings: DetectionSettings) -> DetectionPipeline:
        self.made.append(DetectionPipeline(settings, self.history, executor=SameThreadExecutor()))
        return self.made[-1]

    def poll(self, now: float) -> Tick:
        samples = [
            Sample(
                now, f"{SERVICE}{number}", signal, usual * self.random.lognormal(0.0, self.noise)
            )
            for number in range(10)
            for signal, usual in ((LATENCY, self.latency), ("llm_queue_depth", 8.0))
        ]
        return Tick(now, samples, [])

    def think(self, *given: Any) -> AnalystTick:
        self.thought = self.analyst.tick(*given)
        return self.thought

    def run(self, ticks: int) -> WatchStatus:
        for _ in range(ticks):
            self.now += 1.0
            self.loop.tick(self.now)
        return read_status(self.status_path)

    def configure(self, text: str, *, ask: bool = True) -> None:
        self.file.write_text(text)
        if ask:
            self.request.ask()

    def events(self, *kinds: EventKind) -> list[Any]:
        return [event for event in self.journal.events() if not kinds or event.kind in kinds]

    def said(self) -> list[EventKind]:
        wanted = (
            EventKind.CONFIG_RELOADED,
            EventKind.CONFIG_REJECTED,
            EventKind.CONFIG_ROLLED_BACK,
        )
        return [event.kind for event in self.events(*wanted)]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    world = Watched(tmp_path)
    yield world
    world.analyst.close()
    world.journal.close()


def test_valid_settings_hold_at_the_next_tick_and_nothing_learnt_is_lost(watched: Watched) -> None:
    watched.run(120)
    watched.configure(QUIET + OFF)
    watched.latency = 2.0
    status = watched.run(1)
    assert (status.anomalies, status.config_reload_successful) == (0, True)
    assert status.config_reload_success_seconds == START + 121
    assert len(watched.detection.settings.overrides) == 1
    (event,) = watched.events(EventKind.CONFIG_RELOADED)
    assert event.data["applied"] == ["analysis.detection.overrides"]
    assert event.data["need_restart"] == []
    # The baseline is the one of before: without it, seconds after a start, nothing would score.
    states = watched.thought.detections.states
    latencies = [one for key, one in states.items() if key.signal == LATENCY]
    assert all(one.warmed_up and one.score > 1 and one.expected < 0.4 for one in latencies)

    assert watched.run(19).anomalies == 0
    watched.configure(QUIET)
    watched.latency = 30.0
    assert watched.run(5).anomalies == 10
    assert watched.said() == [EventKind.CONFIG_RELOADED] * 2


def test_a_maintenance_window_opens_without_a_restart(watched: Watched) -> None:
    watched.run(120)
    watched.latency = 3.0
    assert watched.run(10).anomalies == 10
    window = (
        '[[analysis.detection.maintenance]]\nname = "now"\nentities = ["service/llm1"]\n'
        f"start = {moment(watched.now)}\nend = {moment(watched.now + 600)}\n"
    )
    watched.configure(QUIET + window)
    assert watched.run(30).anomalies == 9


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def test_a_file_that_changes_is_read_once_it_rests(watched: Watched) -> None:
    watched.run(10)
    writes = iter(range(3))

    def write_more() -> None:
        watched.configure(QUIET + OFF + "# " + "x" * next(writes), ask=False)

    for _ in range(3):
        write_more()
        watched.run(4)
    assert watched.said() == []
    watched.run(10)
    assert watched.said() == [EventKind.CONFIG_RELOADED]
    watched.run(30)
    assert watched.said() == [EventKind.CONFIG_RELOADED]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[analysis.detection.alerts]\nhold_seconds = -1\n", "hold_seconds"),
        ("[analysis.detection.alert]\n", "did you mean"),
        ("[analysis\n", "not valid TOML"),
        (None, "gone"),
    ],
)
def test_what_is_invalid_changes_nothing_and_is_said(
    watched: Watched, text: str | None, reason: str
) -> None:
    watched.run(60)
    if text is None:
        watched.file.unlink()
        watched.request.ask()
    else:
        watched.configure(text)
    status = watched.run(5)
    assert not status.config_reload_successful
    assert status.config_reload_success_seconds == START
    (event,) = watched.events(EventKind.CONFIG_REJECTED)
    assert reason in event.summary
    assert str(watched.file) in event.summary
    assert len(watched.made) == 1

    watched.configure(QUIET)
    assert watched.run(2).config_reload_successful


def test_secrets_are_not_told(watched: Watched) -> None:
    hook = "https://hooks.slack.example/T0/B0/verysecret"
    watched.configure(QUIET + f'[reporting]\nslack_webhook_url = "{hook}"\n')
    watched.run(2)
    watched.configure(QUIET + '[reporting]\nslack_webhook_url = 7\ngroup_wait_seconds = "x"\n')
    watched.run(2)
    told = "".join(f"{event.summary}{event.data}" for event in watched.events())
    assert "verysecret" not in told


def test_what_needs_a_restart_is_named_and_waits(watched: Watched) -> None:
    watched.configure(QUIET + "[watch]\ninterval_seconds = 30\n" + OFF)
    watched.run(2)
    watched.request.ask()
    watched.run(1)
    first, second = watched.events(EventKind.CONFIG_RELOADED)
    assert first.data["need_restart"] == ["watch.interval_seconds"]
    assert first.data["applied"] == ["analysis.detection.overrides"]
    assert (second.data["applied"], second.data["need_restart"]) == ([], ["watch.interval_seconds"])
    assert watched.reloader.settings.watch.interval_seconds == 1.0


def test_reporting_is_put_on_its_new_settings(watched: Watched) -> None:
    watched.configure(QUIET + "[reporting]\ngroup_wait_seconds = 3\n")
    watched.run(2)
    assert [one.group_wait_seconds for one in watched.reporting] == [3]
    assert len(watched.made) == 1


def test_settings_that_raise_far_more_are_rolled_back(watched: Watched) -> None:
    watched.noise = 0.5
    watched.run(150)
    watched.configure(QUIET + TOUCHY + "[reporting]\ngroup_wait_seconds = 3\n")
    noisy = watched.run(3)
    assert noisy.config_reload_successful
    status = watched.run(70)
    (event,) = watched.events(EventKind.CONFIG_ROLLED_BACK)
    assert "series were raised" in event.summary
    assert SERVICE in event.summary
    assert (status.anomalies, status.config_reload_successful) == (0, False)
    assert watched.detection.settings == watched.settings.analysis.detection
    assert watched.reloader.settings == watched.settings
    assert [one.group_wait_seconds for one in watched.reporting] == [
        3,
        watched.settings.reporting.group_wait_seconds,
    ]
    # The old settings have missed no tick: they are the pipeline of the beginning.
    watched.latency = 30.0
    assert watched.run(10).anomalies == 10


def test_a_fault_in_the_trial_is_not_held_against_the_new_settings(watched: Watched) -> None:
    watched.run(120)
    watched.configure(QUIET + "[analysis.detection.alerts]\nclear_level = 0.6\n")
    watched.run(5)
    watched.latency = 3.0
    status = watched.run(80)
    assert status.anomalies == 10
    assert status.config_reload_successful
    assert watched.said() == [EventKind.CONFIG_RELOADED]
    assert watched.detection.settings.alerts.clear_level == 0.6


def test_a_fault_at_the_end_of_the_trial_is_not_either(watched: Watched) -> None:
    """Settings that are quicker by a few values are told apart from those that raise too much."""
    slow = '[[analysis.detection.overrides]]\nsignals = ["llm_*"]\nminimum_values = 12\n'
    slow += "minimum_seconds = 12\n"
    watched.configure(QUIET + slow)
    watched.run(120)
    watched.configure(QUIET)
    watched.run(53)
    watched.latency = 3.0
    assert watched.run(6).anomalies == 10
    status = watched.run(20)
    assert (status.anomalies, status.config_reload_successful) == (10, True)
    assert watched.said() == [EventKind.CONFIG_RELOADED] * 2


@pytest.mark.parametrize("after_ticks", [0, 3])
def test_settings_that_break_a_tick_are_rolled_back_in_that_tick(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, after_ticks: int
) -> None:
    watched.run(120)
    watched.latency = 2.0
    before = watched.run(10).anomalies
    watched.configure(QUIET + OFF)
    make = watched.detection._make

    def breaking(settings: DetectionSettings) -> DetectionPipeline:
        pipeline = make(settings)
        tick, left = pipeline.tick, iter(range(after_ticks))

        def fail(*given: Any) -> Any:
            if next(left, None) is None:
                raise RuntimeError("no such column")
            return tick(*given)

        monkeypatch.setattr(pipeline, "tick", fail)
        return pipeline

    monkeypatch.setattr(watched.detection, "_make", breaking)
    watched.run(after_ticks)
    status = watched.run(1)
    assert status.anomalies == before == 10
    assert status.part_failures == {}
    watched.run(1)
    (event,) = watched.events(EventKind.CONFIG_ROLLED_BACK)
    assert "no such column" in event.summary
    assert not read_status(watched.status_path).config_reload_successful


def test_settings_that_cannot_be_made_to_work_are_refused(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(settings: DetectionSettings) -> DetectionPipeline:
        raise MemoryError("too many trees")

    monkeypatch.setattr(watched.detection, "_make", refuse)
    watched.run(20)
    watched.configure(QUIET + OFF + "[reporting]\ngroup_wait_seconds = 3\n")
    status = watched.run(5)
    assert not status.config_reload_successful
    assert "too many trees" in watched.events(EventKind.CONFIG_REJECTED)[0].summary
    assert watched.reporting[-1] == watched.settings.reporting
    assert watched.reloader.settings == watched.settings
    assert status.series == 22  # the services' and the loop's own two: detection goes on


def test_a_second_change_in_a_trial_is_measured_by_the_first_good_one(watched: Watched) -> None:
    watched.noise = 0.5
    watched.run(150)
    watched.configure(QUIET + "[analysis.detection.alerts]\nclear_level = 0.6\n")
    watched.run(10)
    watched.configure(QUIET + TOUCHY)
    watched.run(80)
    assert watched.said()[-1] is EventKind.CONFIG_ROLLED_BACK
    assert watched.detection.settings == watched.settings.analysis.detection
    assert watched.reloader.settings == watched.settings


def test_without_a_trial_settings_are_taken_at_their_word(tmp_path: Path) -> None:
    world = Watched(tmp_path, "[reload]\ntrial_seconds = 0\n")
    world.noise = 0.5
    world.run(150)
    world.configure("[reload]\ntrial_seconds = 0\n" + TOUCHY)
    world.run(80)
    assert world.said() == [EventKind.CONFIG_RELOADED]
    assert world.detection.settings.baseline.raise_sigmas == 2
    world.analyst.close()


def test_a_rollback_goes_back_to_the_settings_just_before(tmp_path: Path) -> None:
    """Also where those were taken at their word."""
    world = Watched(tmp_path, QUIET)
    world.noise = 0.5
    world.run(150)
    good = "[analysis.detection.alerts]\nclear_level = 0.6\n[reporting]\ngroup_wait_seconds = 3\n"
    world.configure(QUIET.replace("= 60", "= 0") + good)
    world.run(5)
    held = world.reloader.settings
    assert held.analysis.detection.alerts.clear_level == 0.6
    world.configure(QUIET + good + TOUCHY)
    world.run(80)
    assert world.said()[-1] is EventKind.CONFIG_ROLLED_BACK
    assert world.reloader.settings == held
    assert world.detection.settings == held.analysis.detection
    assert [one.group_wait_seconds for one in world.reporting] == [3]
    world.analyst.close()


def test_polling_can_be_switched_off(tmp_path: Path) -> None:
    off = "[reload]\npoll_seconds = 0\n"
    world = Watched(tmp_path, off)
    world.configure(off + OFF, ask=False)
    world.run(30)
    assert world.said() == []
    world.analyst.close()


def test_a_file_that_appears_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "galen.toml"
    file = ConfigFile(path)
    assert not file.changed(0.0, 1.0)
    path.write_text("")
    assert [file.changed(float(now), 1.0) for now in range(1, 5)] == [False, True, False, False]


def test_a_file_that_is_replaced_by_a_link_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes does it for a ConfigMap: the name stays, the target moves."""
    one, other, path = tmp_path / "1", tmp_path / "2", tmp_path / "galen.toml"
    for target in (one, other):
        target.write_text("# same size")
        os.utime(target, (1, 1))
    path.symlink_to(one)
    file = ConfigFile(path)
    path.unlink()
    path.symlink_to(other)
    assert [file.changed(float(now), 1.0) for now in range(1, 4)] == [False, True, False]


def test_keys_that_differ_are_named_without_their_values() -> None:
    before = Settings()
    after = before.model_copy(
        update={
            "watch": before.watch.model_copy(update={"interval_seconds": 9.0}),
            "healing": before.healing.model_copy(update={"max_actions_per_hour": 3}),
        }
    )
    assert list(changed_keys(before, after)) == [
        "watch.interval_seconds",
        "healing.max_actions_per_hour",
    ]
    assert list(changed_keys(before, before)) == []
