"""What the pages read: the series store, the journal, the ledger and the files beside them.

Readings are cached for about a second, so that ten viewers cost as much as one; a cache may serve data
as old as twice that, which is why pages show the age of the data and never the time of the read. A
store that is not there yet is empty, not an error; a store that cannot be read is a
:class:`DataError` with a fix.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic
import sqlalchemy as sa
import streamlit as st
from numpy.typing import NDArray

from analysis.findings import Incident, IncidentState
from analysis.journal import Event, EventKind, Journal
from collectors.contract import SeriesKey
from collectors.entities import kind_of
from collectors.store.contract import StoreError, resolution_for
from collectors.store.sqlite import SqliteSeriesReader
from dashboard.sampling import Line, thin
from healing.actions import Action, ActionState
from healing.ledger import Ledger

FloatArray = NDArray[np.float64]

_TTL_SECONDS = 1.0
_CHAIN_TTL_SECONDS = 60.0
_GRID_CELLS = 600
_RAW_SPAN_SECONDS = 2 * 86_400
"""A longer span is drawn from roll-ups, which are kept when the samples are gone."""


class DataError(Exception):
    """A store could not be read. ``fix`` says what a person can do."""

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Reading:
    """The newest value of a series."""

    value: float
    time_seconds: float
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest value of every series."""

    readings: Mapping[SeriesKey, Reading] = field(default_factory=dict)

    @property
    def newest_seconds(self) -> float | None:
        """Return the time of the newest sample of all, None where there is none."""
        return max((reading.time_seconds for reading in self.readings.values()), default=None)

    @property
    def simulated(self) -> bool:
        """Return whether any series is labelled as simulated."""
        return any(reading.simulated for reading in self.readings.values())

    def get(self, entity: str, signal: str) -> Reading | None:
        """Return one reading, None where the series was never seen."""
        return self.readings.get(SeriesKey(entity, signal))

    def entities(self, kind: str) -> list[str]:
        """Return the entities of a kind, by name."""
        return sorted({key.entity for key in self.readings if kind_of(key.entity) == kind})

    def signals(self, entity: str) -> list[str]:
        """Return the signals that an entity has, by name."""
        return sorted(key.signal for key in self.readings if key.entity == entity)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what a broken store raises into an error that a person can act on."""
    try:
        yield
    except StoreError as error:
        raise DataError(str(error), fix="Run `galen doctor` to check the store.") from error
    except (sa.exc.SQLAlchemyError, OSError) as error:
        detail = str(getattr(error, "orig", None) or error)
        raise DataError(
            f"{path} cannot be read: {detail}",
            fix="Check that the file is a database of Galen and that this user may read and write it; "
            "`galen doctor` checks both.",
        ) from error
    except (pydantic.ValidationError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path} holds an entry that this version does not understand: {_first_line(error)}",
            fix="Run the dashboard and `galen watch` in the same version.",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@st.cache_resource(max_entries=4, show_spinner=False)
def _series_reader(path: str) -> SqliteSeriesReader:
    return SqliteSeriesReader(path)


@st.cache_resource(max_entries=4, show_spinner=False)
def _journal(path: str, inode: int) -> Journal:  # noqa: ARG001 - a new file needs a new connection
    return Journal(Path(path))


@st.cache_data(ttl=_TTL_SECONDS, max_entries=4, show_spinner=False)
def _latest(path: str) -> dict[SeriesKey, Reading]:
    with _reading(path):
        found = _series_reader(path).series()
    return {
        info.key: Reading(
            value=info.last_value,
            time_seconds=info.last_seconds,
            simulated=info.labels.get("simulated") == "true",
        )
        for info in found
    }


@st.cache_data(ttl=60, max_entries=48, show_spinner=False)
def _lines(
    path: str,
    entities: tuple[str, ...],
    signals: tuple[str, ...],
    start_seconds: float,
    end_seconds: float,
) -> dict[SeriesKey, Line]:
    reader = _series_reader(path)
    chosen: dict[str, Any] = {
        "start_seconds": start_seconds, "end_seconds": end_seconds,
        "entities": entities, "signals": signals,
    }  # fmt: skip
    resolution = resolution_for(end_seconds - start_seconds, points=_RAW_SPAN_SECONDS)
    with _reading(path):
        if resolution is None:
            frame = reader.read(**chosen)
        else:
            frame = _extremes(
                reader.read_rollup(**chosen, resolution_seconds=resolution), resolution
            )
    lines: dict[SeriesKey, Line] = {}
    for (entity, signal), rows in frame.groupby(["entity", "signal"], sort=True):
        times, values = rows["time"].to_numpy(), rows["value"].to_numpy()
        lines[SeriesKey(str(entity), str(signal))] = thin(times, values)
    return lines


def _extremes(buckets: pd.DataFrame, resolution_seconds: float) -> pd.DataFrame:
    """Return the lowest and the highest of each bucket as two samples, so that no spike is lost."""
    low = buckets.rename(columns={"min": "value"})
    # Evenly apart, or every bucket would seem to follow a gap.
    high = buckets.assign(time=buckets["time"] + resolution_seconds / 2, value=buckets["max"])
    columns = ["time", "entity", "signal", "value"]
    return pd.concat([low[columns], high[columns]]).sort_values("time", ignore_index=True)


@dataclass(frozen=True, slots=True)
class ReportFile:
    """One file of the archive of reports."""

    path: Path
    size_bytes: int
    written_seconds: float


class StateDirectory:
    """Everything under one state directory, as the pages see it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.series_path = path / "series.sqlite"
        self.journal_path = path / "journal.sqlite"
        self.stop_path = path / "healing.stop"
        self.reports_path = path / "reports"

    # Series

    def latest(self) -> Latest:
        """Return the newest value of every series; empty while there is no store.

        Raises:
            DataError: when the store is there and cannot be read.
        """
        if not self.series_path.exists():
            return Latest()
        return Latest(_latest(str(self.series_path)))

    def lines(
        self,
        entities: Collection[str],
        signals: Collection[str],
        start_seconds: float,
        end_seconds: float,
    ) -> dict[SeriesKey, Line]:
        """Return series over a span, each thinned to at most 1000 points, gaps kept as gaps.

        The span is widened to a grid of 1/600 of its length, which is about a pixel of a panel, so
        that panels, viewers and refreshes in between share one read.

        Raises:
            DataError: when the store is there and cannot be read.
        """
        if not self.series_path.exists() or not entities or not signals:
            return {}
        grid = max(1.0, (end_seconds - start_seconds) / _GRID_CELLS)
        return _lines(
            str(self.series_path),
            tuple(sorted(entities)),
            tuple(sorted(signals)),
            float(np.floor(start_seconds / grid) * grid),
            float(np.ceil(end_seconds / grid) * grid),
        )

    # Journal and ledger

    @property
    def journal(self) -> Journal | None:
        """Return the journal, None while there is none.

        Raises:
            DataError: when the file is there and is not a journal.
        """
        try:
            inode = self.journal_path.stat().st_ino
        except FileNotFoundError:
            return None
        with _reading(str(self.journal_path)):
            return _journal(str(self.journal_path), inode)

    def incidents(
        self,
        *,
        state: IncidentState | None = None,
        since_seconds: float | None = None,
        limit: int = 200,
    ) -> list[Incident]:
        """Return incidents, newest first; see :meth:`analysis.journal.Journal.incidents`."""
        journal = self.journal
        if journal is None:
            return []
        with _reading(str(self.journal_path)):
            return journal.incidents(state=state, since_seconds=since_seconds, limit=limit)

    def incident(self, incident_id: str) -> Incident | None:
        """Return one incident, None where the journal has none of this id."""
        journal = self.journal
        if journal is None:
            return None
        with _reading(str(self.journal_path)):
            return journal.incident(incident_id)

    def incident_events(self, incident_id: str) -> list[Event]:
        """Return what happened in an incident, oldest first."""
        journal = self.journal
        if journal is None:
            return []
        with _reading(str(self.journal_path)):
            return journal.events(incident_id=incident_id)

    def recent_events(self, *, limit: int) -> list[Event]:
        """Return the newest events, newest first."""
        journal = self.journal
        if journal is None:
            return []
        with _reading(str(self.journal_path)):
            after = max(0, journal.last_seq() - limit)
            return journal.events(after_seq=after, limit=limit)[::-1]

    def running_mode(self) -> str | None:
        """Return the mode of healing that the watch loop wrote down when it last started."""
        journal = self.journal
        if journal is None:
            return None
        with _reading(str(self.journal_path)):
            starts = journal.events(kinds=[EventKind.STARTED], limit=100_000)
        for event in reversed(starts):
            if "healing_mode" in event.data:
                return str(event.data["healing_mode"])
        return None

    def actions(
        self,
        *,
        since_seconds: float | None = None,
        states: Collection[ActionState] | None = None,
        incident_id: str | None = None,
        limit: int = 500,
    ) -> Sequence[Action]:
        """Return actions of healing, newest first."""
        journal = self.journal
        if journal is None:
            return []
        with _reading(str(self.journal_path)):
            found = Ledger(journal).actions(
                since_seconds=since_seconds, states=states, incident_id=incident_id, limit=limit
            )
        return sorted(found, key=lambda action: action.created_seconds, reverse=True)

    def action(self, action_id: str) -> Action:
        """Return one action as it now stands.

        Raises:
            healing.errors.ActionNotFoundError: when there is no such action.
            DataError: when there is no journal, or it cannot be read.
        """
        return self._ledger().get(action_id)

    def approve(self, action_id: str, actor: str, now_seconds: float) -> Action:
        """Say yes to a proposal; see :meth:`healing.ledger.Ledger.approve`."""
        with _reading(str(self.journal_path)):
            return self._ledger().approve(action_id, actor, now_seconds)

    def reject(self, action_id: str, actor: str, reason: str, now_seconds: float) -> Action:
        """Say no to a proposal; see :meth:`healing.ledger.Ledger.reject`."""
        with _reading(str(self.journal_path)):
            return self._ledger().reject(action_id, actor, reason, now_seconds)

    def append(
        self,
        kind: EventKind,
        *,
        time_seconds: float,
        actor: str,
        summary: str,
        incident_id: str | None = None,
        data: Mapping[str, object] | None = None,
    ) -> Event:
        """Write down what a person said or did here.

        Raises:
            DataError: when there is no journal, or it cannot be written.
        """
        with _reading(str(self.journal_path)):
            return self._present_journal().append(
                kind,
                time_seconds=time_seconds,
                actor=actor,
                summary=summary,
                incident_id=incident_id,
                data=data,
            )

    def _present_journal(self) -> Journal:
        journal = self.journal
        if journal is None:
            raise DataError(
                f"there is no journal at {self.journal_path}", fix="Start `galen watch`."
            )
        return journal

    def _ledger(self) -> Ledger:
        with _reading(str(self.journal_path)):
            return Ledger(self._present_journal())

    def broken_links(self) -> list[int]:
        """Return the events whose place in the chain does not hold; checked at most once a minute."""
        if self.journal is None:
            return []
        return _broken_links(str(self.journal_path), self.journal_path.stat().st_ino)

    # Files

    def stop_reason(self) -> str | None:
        """Return what stands in the kill switch's file, None where healing is not stopped."""
        try:
            return self.stop_path.read_text("utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            # A switch that cannot be read counts as thrown: the guard sees that the file is there.
            return f"cannot be read: {error}"

    def reports(self) -> list[ReportFile]:
        """Return the archive of reports, newest first."""
        if not self.reports_path.is_dir():
            return []
        with _reading(str(self.reports_path)):
            files = [
                ReportFile(path, path.stat().st_size, path.stat().st_mtime)
                for path in self.reports_path.iterdir()
                if path.suffix in {".html", ".md", ".json"} and path.is_file()
            ]
        return sorted(files, key=lambda file: (-file.written_seconds, file.path.name))


@st.cache_data(ttl=_CHAIN_TTL_SECONDS, max_entries=4, show_spinner=False)
def _broken_links(path: str, inode: int) -> list[int]:
    with _reading(path):
        return _journal(path, inode).broken_links()
