"""What waits to be told, kept beside the journal so that an outage or a restart loses nothing.

Four tables: the cursor (the newest journal event that was routed), threads (what each channel knows of
each incident), messages (written before the first try to send), channels (back-off). The cursor moves in
the transaction that writes the threads, and a thread is emptied in the one that writes its message: a
crash at any point repeats work with the same idempotency key instead of losing it. Delivery is at least
once. One process dispatches; others may read.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import sqlalchemy as sa
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from reporting.alerts.messages import AlertMessage
from reporting.alerts.routing import Thread

log = structlog.get_logger(__name__)

metadata = sa.MetaData()

_cursor = sa.Table(
    "alert_cursor",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.Integer, nullable=False),
)

_threads = sa.Table(
    "alert_threads",
    metadata,
    sa.Column("channel", sa.String, primary_key=True),
    sa.Column("incident_id", sa.String, primary_key=True),
    sa.Column("due_seconds", sa.Float, index=True),
    sa.Column("changed_seconds", sa.Float, nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
)

_messages = sa.Table(
    "alert_messages",
    metadata,
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("channel", sa.String, nullable=False),
    sa.Column("incident_id", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("created_seconds", sa.Float, nullable=False),
    sa.Column("not_before_seconds", sa.Float, nullable=False),
    sa.Column("finished_seconds", sa.Float),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("journaled", sa.Boolean, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("ix_alert_messages_waiting", "state", "channel", "not_before_seconds"),
    sa.Index("ix_alert_messages_unjournaled", "journaled", "state"),
)

_channels = sa.Table(
    "alert_channels",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("not_before_seconds", sa.Float, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
)


class EntryState(StrEnum):
    """Where a message is in its life."""

    PENDING = "pending"
    DELIVERED = "delivered"
    PARKED = "parked"
    """Given up; the journal says so."""
    SUPERSEDED = "superseded"
    """Not delivered in time; a newer message of the same incident tells its steps too."""


_FINAL = (EntryState.DELIVERED.value, EntryState.PARKED.value)


class Entry(BaseModel):
    """One message to one channel, with what became of it."""

    model_config = ConfigDict(frozen=True)

    channel: str
    state: EntryState
    created_seconds: float
    not_before_seconds: float
    finished_seconds: float | None = None
    attempts: int
    error: str
    message: AlertMessage

    @property
    def key(self) -> str:
        """The idempotency key, which names the entry."""
        return self.message.idempotency_key


class ChannelState(BaseModel):
    """How a channel has been doing."""

    model_config = ConfigDict(frozen=True)

    name: str
    not_before_seconds: float = 0.0
    failures: int = 0
    """Tries in a row that did not get through."""


class Outbox:
    """The tables and the transactions over them."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(galen_read_only=True)
        metadata.create_all(engine)

    def cursor(self) -> int:
        """Return the ``seq`` of the newest journal event that was routed; 0 before the first."""
        with self._reader.connect() as connection:
            return connection.execute(sa.select(_cursor.c.seq)).scalar_one_or_none() or 0

    def save_routing(self, threads: Sequence[Thread], cursor: int, now_seconds: float) -> None:
        """Keep what routing decided, and how far it has read, in one transaction."""
        with self._engine.begin() as connection:
            for thread in threads:
                _save_thread(connection, thread, now_seconds)
            moved = connection.execute(sa.update(_cursor).values(seq=cursor))
            if moved.rowcount == 0:
                connection.execute(sa.insert(_cursor).values(id=1, seq=cursor))

    def threads(self, incident_id: str) -> dict[str, Thread]:
        """Return what each channel knows of an incident, by channel."""
        query = sa.select(_threads.c.body).where(_threads.c.incident_id == incident_id)
        return {thread.channel: thread for thread in self._read_threads(query)}

    def due_threads(self, now_seconds: float, limit: int = 200) -> list[Thread]:
        """Return threads whose steps have waited long enough, the longest due first."""
        query = (
            sa.select(_threads.c.body)
            .where(_threads.c.due_seconds <= now_seconds)
            .order_by(_threads.c.due_seconds)
            .limit(limit)
        )
        return self._read_threads(query)

    def _read_threads(self, query: sa.Select[str]) -> list[Thread]:
        with self._reader.connect() as connection:
            bodies = connection.execute(query).scalars().all()
        threads: list[Thread] = []
        for body in bodies:
            try:
                threads.append(Thread.model_validate_json(body))
            except ValidationError as error:
                # Another version wrote it. Without it an incident may be told twice; with an error
                # here nothing would be told any more.
                log.warning("alert_thread_unreadable", error=str(error)[:500])
        return threads

    def undelivered(self, channel: str, incident_id: str) -> list[Entry]:
        """Return the messages of an incident that a channel has not got, oldest first."""
        return self._entries(
            _is(EntryState.PENDING)
            & (_messages.c.channel == channel)
            & (_messages.c.incident_id == incident_id)
        )

    def put(
        self, thread: Thread, message: AlertMessage, replaces: Sequence[Entry], now_seconds: float
    ) -> None:
        """Write a message that is to be sent, and the thread that it was taken from.

        Args:
            thread: with its steps taken.
            message: to send; one that is there already by its key is left as it is.
            replaces: undelivered messages whose steps this one tells too.
            now_seconds: the time of writing.
        """
        oldest = min([now_seconds, *(entry.created_seconds for entry in replaces)])
        row = {
            "key": message.idempotency_key,
            "channel": thread.channel,
            "incident_id": thread.incident_id,
            "state": EntryState.PENDING.value,
            "created_seconds": oldest,
            "not_before_seconds": now_seconds,
            "attempts": 0,
            "error": "",
            "journaled": False,
            "body": message.model_dump_json(),
        }
        old_keys = [entry.key for entry in replaces]
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(_messages)
                .where(_messages.c.key.in_(old_keys), _is(EntryState.PENDING))
                .values(state=EntryState.SUPERSEDED.value, finished_seconds=now_seconds)
            )
            there = sa.select(_messages.c.key).where(_messages.c.key == message.idempotency_key)
            if connection.execute(there).one_or_none() is None:
                connection.execute(sa.insert(_messages).values(**row))
            _save_thread(connection, thread, now_seconds)

    def drop(self, thread: Thread) -> None:
        """Forget a thread."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_threads).where(_thread_key(thread)))

    def next_entry(self, channel: str, now_seconds: float) -> Entry | None:
        """Return the message that a channel should get next, or None."""
        due = _is(EntryState.PENDING) & (_messages.c.channel == channel)
        found = self._entries(due & (_messages.c.not_before_seconds <= now_seconds), limit=1)
        return found[0] if found else None

    def pending(self) -> dict[str, int]:
        """Return how many messages wait, by channel."""
        query = (
            sa.select(_messages.c.channel, sa.func.count())
            .where(_is(EntryState.PENDING))
            .group_by(_messages.c.channel)
        )
        with self._reader.connect() as connection:
            return {name: count for name, count in connection.execute(query).all()}  # noqa: C416

    def overflow(self, channel: str, keep: int) -> list[Entry]:
        """Return the oldest undelivered messages of a channel beyond the newest ``keep``."""
        surplus = self.pending().get(channel, 0) - keep
        if surplus <= 0:
            return []
        waiting = _is(EntryState.PENDING) & (_messages.c.channel == channel)
        return self._entries(waiting, order=_messages.c.created_seconds, limit=surplus)

    def expired(self, before_seconds: float) -> list[Entry]:
        """Return undelivered messages of any channel that were created before a time."""
        return self._entries(
            _is(EntryState.PENDING) & (_messages.c.created_seconds < before_seconds)
        )

    def exhausted(self, max_attempts: int) -> list[Entry]:
        """Return undelivered messages that failed as often as allowed."""
        return self._entries(_is(EntryState.PENDING) & (_messages.c.attempts >= max_attempts))

    def unjournaled(self) -> list[Entry]:
        """Return messages whose end the journal does not know yet, oldest first."""
        ended = _messages.c.state.in_(_FINAL)
        return self._entries(ended & _messages.c.journaled.is_(False))

    def finish(self, entry: Entry, state: EntryState, now_seconds: float, error: str = "") -> None:
        """Record that a message was delivered or given up."""
        self._change(entry.key, state=state.value, finished_seconds=now_seconds, error=error)

    def postpone(
        self, entry: Entry, *, until_seconds: float, error: str, counts: bool = True
    ) -> None:
        """Record a try that did not get through, and when to try again."""
        attempts = entry.attempts + (1 if counts else 0)
        self._change(entry.key, not_before_seconds=until_seconds, attempts=attempts, error=error)

    def mark_journaled(self, entry: Entry) -> None:
        """Record that the journal knows the end of a message."""
        self._change(entry.key, journaled=True)

    def _change(self, key: str, **values: object) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.update(_messages).where(_messages.c.key == key).values(**values))

    def channel(self, name: str) -> ChannelState:
        """Return how a channel has been doing."""
        query = sa.select(_channels).where(_channels.c.name == name)
        with self._reader.connect() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return ChannelState(name=name) if row is None else ChannelState(**dict(row))

    def save_channel(self, state: ChannelState) -> None:
        """Keep how a channel has been doing."""
        values = state.model_dump(exclude={"name"})
        with self._engine.begin() as connection:
            found = connection.execute(
                sa.update(_channels).where(_channels.c.name == state.name).values(**values)
            )
            if found.rowcount == 0:
                connection.execute(sa.insert(_channels).values(name=state.name, **values))

    def prune(self, before_seconds: float, open_incidents: Sequence[str]) -> int:
        """Delete ended messages, and threads of ended incidents, from before a time."""
        ended = ~_is(EntryState.PENDING) & (_messages.c.journaled | _is(EntryState.SUPERSEDED))
        old_messages = ended & (_messages.c.finished_seconds < before_seconds)
        quiet = _threads.c.due_seconds.is_(None) & _threads.c.incident_id.not_in(open_incidents)
        old_threads = quiet & (_threads.c.changed_seconds < before_seconds)
        with self._engine.begin() as connection:
            messages = connection.execute(sa.delete(_messages).where(old_messages)).rowcount
            threads = connection.execute(sa.delete(_threads).where(old_threads)).rowcount
        return messages + threads

    def _entries(
        self,
        condition: sa.ColumnElement[bool],
        *,
        order: sa.ColumnElement[float] = _messages.c.not_before_seconds,
        limit: int = 200,
    ) -> list[Entry]:
        query = sa.select(_messages).where(condition).order_by(order, _messages.c.created_seconds)
        with self._reader.connect() as connection:
            rows = connection.execute(query.limit(limit)).mappings().all()
        return [entry for entry in map(self._entry, rows) if entry is not None]

    def _entry(self, row: sa.RowMapping) -> Entry | None:
        try:
            message = AlertMessage.model_validate_json(row["body"])
        except ValidationError as error:
            # Another version wrote it: it can never be sent, and must not stop those behind it.
            log.warning("alert_message_unreadable", key=row["key"], error=str(error)[:500])
            self._change(
                row["key"],
                state=EntryState.PARKED.value,
                finished_seconds=row["created_seconds"],
                journaled=True,
                error="written by another version of Galen",
            )
            return None
        names = set(Entry.model_fields) - {"message"}
        return Entry(message=message, **{name: row[name] for name in names})


def _is(state: EntryState) -> sa.ColumnElement[bool]:
    return _messages.c.state == state.value


def _thread_key(thread: Thread) -> sa.ColumnElement[bool]:
    return (_threads.c.channel == thread.channel) & (_threads.c.incident_id == thread.incident_id)


def _save_thread(connection: sa.Connection, thread: Thread, now_seconds: float) -> None:
    values = {
        "due_seconds": thread.due_seconds,
        "changed_seconds": now_seconds,
        "body": thread.model_dump_json(),
    }
    found = connection.execute(sa.update(_threads).where(_thread_key(thread)).values(**values))
    if found.rowcount == 0:
        identity = {"channel": thread.channel, "incident_id": thread.incident_id}
        connection.execute(sa.insert(_threads).values(**identity, **values))
