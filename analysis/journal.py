"""The journal: incidents, and an append-only chain of everything that happened.

SQLAlchemy Core on SQLite (WAL, so that others read while the watch loop writes) or on PostgreSQL by
URL. Each event carries the SHA-256 of its content and of the event before it, so that a change or a
gap inside the chain shows; that is evidence of tampering, not proof against a rebuilt chain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from analysis.findings import Incident, IncidentState

_GENESIS = "0" * 64

metadata = sa.MetaData()

_incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("opened_seconds", sa.Float, nullable=False, index=True),
    sa.Column("updated_seconds", sa.Float, nullable=False),
    sa.Column("resolved_seconds", sa.Float),
    sa.Column("body", sa.Text, nullable=False),
)

_events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("time_seconds", sa.Float, nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("incident_id", sa.String, index=True),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("summary", sa.Text, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("previous_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)


class EventKind(StrEnum):
    """Everything that the journal records."""

    STARTED = "started"
    STOPPED = "stopped"
    FAULT_INJECTED = "fault_injected"
    FAULT_CLEARED = "fault_cleared"
    INCIDENT_OPENED = "incident_opened"
    INCIDENT_UPDATED = "incident_updated"
    INCIDENT_RESOLVED = "incident_resolved"
    LEVEL_SHIFTED = "level_shifted"
    ACTION_PROPOSED = "action_proposed"
    ACTION_APPROVED = "action_approved"
    ACTION_REJECTED = "action_rejected"
    ACTION_EXPIRED = "action_expired"
    ACTION_BLOCKED = "action_blocked"
    ACTION_DRY_RUN = "action_dry_run"
    ACTION_STARTED = "action_started"
    ACTION_EXECUTED = "action_executed"
    ACTION_FAILED = "action_failed"
    ACTION_CONFIRMED = "action_confirmed"
    ACTION_ROLLED_BACK = "action_rolled_back"
    ACTION_UNDONE = "action_undone"
    ESCALATED = "escalated"
    HEALING_STOPPED = "healing_stopped"
    HEALING_ALLOWED = "healing_allowed"
    NOTIFICATION_SENT = "notification_sent"
    NOTIFICATION_FAILED = "notification_failed"
    REPORT_WRITTEN = "report_written"
    FEEDBACK_GIVEN = "feedback_given"
    PART_FAILED = "part_failed"
    CONFIG_RELOADED = "config_reloaded"
    CONFIG_REJECTED = "config_rejected"
    CONFIG_ROLLED_BACK = "config_rolled_back"


class Event(BaseModel):
    """One entry of the journal."""

    model_config = ConfigDict(frozen=True)

    seq: int
    time_seconds: float
    kind: EventKind
    incident_id: str | None
    actor: str
    summary: str
    data: Mapping[str, Any]
    previous_hash: str
    hash: str


def database_url(target: str | Path) -> str:
    """Return a database URL: a path becomes SQLite, a URL stays as it is."""
    text = str(target)
    return text if "://" in text else f"sqlite:///{text}"


def open_engine(target: str | Path) -> sa.Engine:
    """Open a database for the journal and the tables that live beside it."""
    url = sa.make_url(database_url(target))
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": 10.0})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_immediate)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver must not open transactions by itself: _begin_immediate does, so that a writer waits
    # for its turn at once instead of failing when it upgrades a read lock.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _begin_immediate(connection: sa.Connection) -> None:
    read_only = connection.get_execution_options().get("galen_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


class Journal:
    """Reads and appends. Safe to use from several threads and several processes."""

    def __init__(self, target: str | Path | sa.Engine) -> None:
        self.engine = target if isinstance(target, sa.Engine) else open_engine(target)
        self._reader = self.engine.execution_options(galen_read_only=True)
        metadata.create_all(self.engine)

    def save_incident(self, incident: Incident) -> None:
        """Store an incident as it now stands, replacing what was stored of it before."""
        row = {
            "state": incident.state.value,
            "opened_seconds": incident.opened_seconds,
            "updated_seconds": incident.updated_seconds,
            "resolved_seconds": incident.resolved_seconds,
            "body": incident.model_dump_json(),
        }
        with self.engine.begin() as connection:
            found = connection.execute(
                sa.update(_incidents).where(_incidents.c.id == incident.id).values(**row)
            )
            if found.rowcount == 0:
                connection.execute(sa.insert(_incidents).values(id=incident.id, **row))

    def incident(self, incident_id: str) -> Incident | None:
        """Return one incident, or None."""
        query = sa.select(_incidents.c.body).where(_incidents.c.id == incident_id)
        with self._reader.connect() as connection:
            body = connection.execute(query).scalar_one_or_none()
        return None if body is None else Incident.model_validate_json(body)

    def incidents(
        self,
        *,
        state: IncidentState | None = None,
        since_seconds: float | None = None,
        until_seconds: float | None = None,
        limit: int = 200,
    ) -> list[Incident]:
        """Return incidents, newest first. A window keeps those that were open at any time in it."""
        query = sa.select(_incidents.c.body).order_by(_incidents.c.opened_seconds.desc())
        if state is not None:
            query = query.where(_incidents.c.state == state.value)
        if since_seconds is not None:
            resolved = _incidents.c.resolved_seconds
            query = query.where(sa.or_(resolved.is_(None), resolved >= since_seconds))
        if until_seconds is not None:
            query = query.where(_incidents.c.opened_seconds < until_seconds)
        with self._reader.connect() as connection:
            bodies = connection.execute(query.limit(limit)).scalars().all()
        return [Incident.model_validate_json(body) for body in bodies]

    def append(
        self,
        kind: EventKind,
        *,
        time_seconds: float,
        summary: str,
        incident_id: str | None = None,
        actor: str = "galen",
        data: Mapping[str, Any] | None = None,
        connection: sa.Connection | None = None,
    ) -> Event:
        """Append one event to the chain and return it.

        With ``connection`` the event joins a transaction that the caller has begun on this journal's
        engine, so that a change and the event that tells of it are written together or not at all.
        """
        if connection is None:
            with self.engine.begin() as own:
                return self.append(
                    kind,
                    time_seconds=time_seconds,
                    summary=summary,
                    incident_id=incident_id,
                    actor=actor,
                    data=data,
                    connection=own,
                )
        newest = sa.select(_events.c.seq, _events.c.hash).order_by(_events.c.seq.desc())
        last = connection.execute(newest.limit(1)).one_or_none()
        content: dict[str, Any] = {
            "seq": 1 if last is None else last.seq + 1,
            "time_seconds": float(time_seconds),
            "kind": kind.value,
            "incident_id": incident_id,
            "actor": actor,
            "summary": summary,
            "data": json.dumps(dict(data or {}), sort_keys=True, default=str),
            "previous_hash": _GENESIS if last is None else last.hash,
        }
        content["hash"] = _digest(content)
        connection.execute(sa.insert(_events).values(**content))
        return _event(content)

    def events(
        self,
        *,
        after_seq: int = 0,
        since_seconds: float | None = None,
        until_seconds: float | None = None,
        incident_id: str | None = None,
        kinds: Collection[EventKind] | None = None,
        limit: int = 1000,
    ) -> list[Event]:
        """Return events in the order in which they happened, the oldest ``limit`` of the selection."""
        query = sa.select(_events).where(_events.c.seq > after_seq).order_by(_events.c.seq)
        if since_seconds is not None:
            query = query.where(_events.c.time_seconds >= since_seconds)
        if until_seconds is not None:
            query = query.where(_events.c.time_seconds < until_seconds)
        if incident_id is not None:
            query = query.where(_events.c.incident_id == incident_id)
        if kinds is not None:
            query = query.where(_events.c.kind.in_([kind.value for kind in kinds]))
        with self._reader.connect() as connection:
            rows: Sequence[sa.RowMapping] = connection.execute(query.limit(limit)).mappings().all()
        return [_event(row) for row in rows]

    def last_seq(self) -> int:
        """Return the number of the newest event, 0 where there is none."""
        with self._reader.connect() as connection:
            return connection.execute(sa.select(sa.func.max(_events.c.seq))).scalar_one() or 0

    def counts(self, *, after_seq: int = 0, until_seq: int) -> dict[str, int]:
        """Return how many events of each kind there are with ``after_seq < seq <= until_seq``."""
        query = (
            sa.select(_events.c.kind, sa.func.count())
            .where(_events.c.seq > after_seq, _events.c.seq <= until_seq)
            .group_by(_events.c.kind)
        )
        with self._reader.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def broken_links(self) -> list[int]:
        """Return the ``seq`` of each event whose hash or link does not fit; empty when all is well."""
        broken: list[int] = []
        previous, expected_seq = _GENESIS, 1
        with self._reader.connect() as connection:
            for row in connection.execute(sa.select(_events).order_by(_events.c.seq)).mappings():
                content = {name: row[name] for name in row if name != "hash"}
                sound = row["hash"] == _digest(content) and row["previous_hash"] == previous
                if not sound or row["seq"] != expected_seq:
                    broken.append(row["seq"])
                previous, expected_seq = row["hash"], row["seq"] + 1
        return broken

    def close(self) -> None:
        """Release the connections."""
        self.engine.dispose()


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps({name: content[name] for name in sorted(content)}, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _event(row: Mapping[Any, Any]) -> Event:
    return Event(**{**row, "data": json.loads(row["data"])})
