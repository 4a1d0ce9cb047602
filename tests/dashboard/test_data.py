from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from analysis.findings import IncidentState
from analysis.journal import EventKind
from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesStore
from dashboard.data import DataError, StateDirectory
from healing.actions import ActionState

Point = Callable[..., None]
GPU1 = "host/box1/gpu/1"


def test_nothing_is_there_yet(tmp_path: Path, dashboard_at: Point, now: float) -> None:
    state = StateDirectory(tmp_path / "var")
    assert state.latest().newest_seconds is None
    assert state.lines(["service/llm"], ["engine_up"], 0, now) == {}
    assert (state.incidents(), state.recent_events(limit=5), list(state.actions())) == ([], [], [])
    assert (state.incident("x"), state.running_mode(), state.stop_reason()) == (None, None, None)
    assert (state.broken_links(), state.reports()) == ([], [])
    assert not (tmp_path / "var").exists(), "looking must not create anything"


def test_the_story_is_read_back(state_dir: Path, dashboard_at: Point, now: float) -> None:
    state = StateDirectory(state_dir)
    latest = state.latest()
    assert latest.newest_seconds == now
    assert latest.simulated
    assert latest.entities("gpu") == ["host/box1/gpu/0", GPU1]
    [(key, line)] = state.lines([GPU1], ["gpu_xid"], now - 600, now).items()
    assert key.entity == GPU1
    assert len(line.times) == 30
    assert [i.id for i in state.incidents(state=IncidentState.OPEN)] == ["inc-20261121-0007"]
    assert state.recent_events(limit=3)[0].kind is EventKind.NOTIFICATION_SENT
    assert len(state.recent_events(limit=3)) == 3
    assert state.running_mode() == "approve"
    assert state.broken_links() == []
    assert [action.state for action in state.actions()] == [
        ActionState.PROPOSED,
        ActionState.BLOCKED,
        ActionState.CONFIRMED,
    ]
    assert sorted(file.path.suffix for file in state.reports()) == [".html", ".json", ".md"]


def test_files_that_are_not_databases_are_errors_with_a_fix(
    tmp_path: Path, dashboard_at: Point
) -> None:
    (tmp_path / "series.sqlite").write_bytes(b"not a database" * 100)
    (tmp_path / "journal.sqlite").write_bytes(b"not a database" * 100)
    state = StateDirectory(tmp_path)
    with pytest.raises(DataError) as series:
        state.latest()
    with pytest.raises(DataError) as journal:
        state.incidents()
    assert "series.sqlite" in str(series.value)
    assert "journal.sqlite" in str(journal.value)
    assert series.value.fix
    assert journal.value.fix


def test_an_incident_of_another_version_is_an_error_with_a_fix(
    state_dir: Path, dashboard_at: Point
) -> None:
    with sqlite3.connect(state_dir / "journal.sqlite") as connection:
        connection.execute("UPDATE incidents SET body = '{\"unheard_of\": 1}'")
    with pytest.raises(DataError, match="does not understand") as caught:
        StateDirectory(state_dir).incidents()
    assert "version" in caught.value.fix


def test_a_changed_event_breaks_the_chain(state_dir: Path, dashboard_at: Point) -> None:
    with sqlite3.connect(state_dir / "journal.sqlite") as connection:
        connection.execute("UPDATE events SET summary = 'nothing happened' WHERE seq = 3")
    assert StateDirectory(state_dir).broken_links() == [3]


def test_a_journal_that_was_started_anew_is_opened_anew(
    state_dir: Path, dashboard_at: Point, tmp_path: Path
) -> None:
    state = StateDirectory(state_dir)
    assert state.incidents()
    (state_dir / "journal.sqlite").rename(tmp_path / "old")
    assert state.incidents() == []


def test_a_switch_that_cannot_be_read_counts_as_thrown(tmp_path: Path) -> None:
    (tmp_path / "healing.stop").mkdir()
    assert "cannot be read" in (StateDirectory(tmp_path).stop_reason() or "")


def test_a_long_span_is_drawn_from_rollups_and_outlives_the_samples(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    store = SqliteSeriesStore(tmp_path / "series.sqlite")
    for at in range(0, 86_400, 600):
        values = (1.0, 9.0, 2.0)
        store.write(
            [
                Sample(now - 4 * 86_400 + at + step, GPU1, "gpu_xid", value)
                for step, value in enumerate(values)
            ]
        )
    while not store.compact(now_seconds=now, budget_seconds=1.0):
        pass
    store.prune(before_seconds=now)
    store.close()
    state = StateDirectory(tmp_path)
    assert state.lines([GPU1], ["gpu_xid"], now - 86_400, now) == {}
    [line] = state.lines([GPU1], ["gpu_xid"], now - 7 * 86_400, now).values()
    assert set(line.values[np.isfinite(line.values)]) == {1.0, 9.0}
    assert line.times[0] == now - 4 * 86_400
