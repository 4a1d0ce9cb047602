"""The ledger of actions: a table beside the journal's, in the same database.

A state changes by one conditional UPDATE, so that of two processes that want to move the same action
(a person approves on the dashboard while the watch loop lets the proposal expire) exactly one wins.
Each change and the journal event that tells of it are one transaction. The ledger itself refuses a
second action under way on an entity, its parents or its children, whoever asks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from analysis.journal import EventKind, Journal
from collectors.entities import FLEET
from healing.actions import Action, ActionState, Mode
from healing.errors import (
    ActionNotFoundError,
    DuplicateActionError,
    EntityBusyError,
    LedgerError,
    WrongStateError,
)
from healing.wording import plain_text

__all__ = ["EVENT_OF", "IN_EFFECT", "LIVE", "UNDER_WAY", "Ledger", "LedgerError", "related"]

UNDER_WAY = frozenset({ActionState.INTENT, ActionState.EXECUTED})
"""States in which an action may be changing its entity, or the change is being verified."""

LIVE = UNDER_WAY | {ActionState.PROPOSED, ActionState.APPROVED}
"""States from which an action goes on by itself or by a person's word."""

IN_EFFECT = frozenset({ActionState.CONFIRMED, ActionState.FAILED})
"""States in which a temporary action that was executed still stands."""

EVENT_OF: Mapping[ActionState, EventKind] = {
    ActionState.BLOCKED: EventKind.ACTION_BLOCKED,
    ActionState.DRY_RUN: EventKind.ACTION_DRY_RUN,
    ActionState.PROPOSED: EventKind.ACTION_PROPOSED,
    ActionState.APPROVED: EventKind.ACTION_APPROVED,
    ActionState.REJECTED: EventKind.ACTION_REJECTED,
    ActionState.EXPIRED: EventKind.ACTION_EXPIRED,
    ActionState.INTENT: EventKind.ACTION_STARTED,
    ActionState.EXECUTED: EventKind.ACTION_EXECUTED,
    ActionState.FAILED: EventKind.ACTION_FAILED,
    ActionState.CONFIRMED: EventKind.ACTION_CONFIRMED,
    ActionState.ROLLED_BACK: EventKind.ACTION_ROLLED_BACK,
    ActionState.UNDONE: EventKind.ACTION_UNDONE,
    ActionState.ESCALATED: EventKind.ESCALATED,
}

_LONGEST_REASON = 2000
_LONGEST_ACTOR = 100

_FINISHED = frozenset(ActionState) - LIVE

_metadata = sa.MetaData()

_actions = sa.Table(
    "actions",
    _metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("incident_id", sa.String, nullable=False, index=True),
    sa.Column("cause", sa.String, nullable=False),
    sa.Column("entity", sa.String, nullable=False, index=True),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("rung", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("mode", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("confidence", sa.Float, nullable=False),
    sa.Column("parameters", sa.Text, nullable=False),
    sa.Column("undo", sa.Text, nullable=False),
    sa.Column("proof", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("risk", sa.String, nullable=False),
    sa.Column("reversible", sa.Boolean, nullable=False),
    sa.Column("temporary", sa.Boolean, nullable=False),
    sa.Column("idempotency_key", sa.String, nullable=False, unique=True),
    sa.Column("created_seconds", sa.Float, nullable=False, index=True),
    sa.Column("updated_seconds", sa.Float, nullable=False),
    sa.Column("started_seconds", sa.Float, index=True),
    sa.Column("executed_seconds", sa.Float),
    sa.Column("finished_seconds", sa.Float),
    sa.Column("actor", sa.String, nullable=False),
)

_JSON_COLUMNS = ("parameters", "undo", "proof")


def related(one: str, other: str) -> bool:
    """Return whether two entities are the same, or one contains the other."""
    if FLEET in (one, other):
        return True
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


class Ledger:
    """Every action of healing. Safe to use from several threads and several processes."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._engine = journal.engine
        self._reader = journal.engine.execution_options(galen_read_only=True)
        _metadata.create_all(self._engine)

    def record(self, action: Action) -> Action:
        """Write a new action and the event of its state.

        Raises:
            DuplicateActionError: when its idempotency key is known.
            EntityBusyError: when its state is INTENT and another action is under way there.
        """
        reason = plain_text(action.reason, _LONGEST_REASON)
        action = action.model_copy(update={"reason": reason})
        with self._engine.begin() as connection:
            if action.state in UNDER_WAY:
                self._require_idle(connection, action)
            try:
                connection.execute(sa.insert(_actions).values(**_row(action)))
            except sa.exc.IntegrityError as error:
                raise DuplicateActionError(
                    f"action {action.idempotency_key!r} has been recorded before"
                ) from error
            self._tell(connection, action)
        return action

    def transition(
        self,
        action_id: str,
        from_states: Collection[ActionState],
        to_state: ActionState,
        *,
        now: float,
        reason: str,
        actor: str | None = None,
        proof: Collection[str] = (),
        confidence: float | None = None,
    ) -> Action:
        """Move an action to another state if it is in one of ``from_states``, and tell the journal.

        Args:
            action_id: the action.
            from_states: where it may come from.
            to_state: where it goes.
            now: the time in seconds since the epoch.
            reason: why, in words; this is what people read.
            actor: who decided, where that was not Galen.
            proof: what was measured; added to what is known.
            confidence: the confidence in the cause by now, where it counts.

        Raises:
            ActionNotFoundError: when there is no such action.
            WrongStateError: when it is in another state, for instance since another process was first.
            EntityBusyError: when it would start while another action is under way there.
        """
        with self._engine.begin() as connection:
            before = self._load(connection, action_id)
            if to_state is ActionState.INTENT:
                self._require_idle(connection, before)
            changes: dict[str, Any] = {
                "state": to_state.value,
                "reason": plain_text(reason, _LONGEST_REASON),
                "updated_seconds": now,
                "proof": json.dumps([*before.proof, *proof]),
            }
            if actor is not None:
                changes["actor"] = plain_text(actor, _LONGEST_ACTOR)
            if confidence is not None:
                changes["confidence"] = confidence
            if to_state is ActionState.INTENT:
                changes["started_seconds"] = now
            if to_state is ActionState.EXECUTED:
                changes["executed_seconds"] = now
            if to_state in _FINISHED and before.finished_seconds is None:
                changes["finished_seconds"] = now
            moved = connection.execute(
                sa.update(_actions)
                .where(_actions.c.id == action_id)
                .where(_actions.c.state.in_([state.value for state in from_states]))
                .values(**changes)
            )
            if moved.rowcount == 0:
                wanted = " or ".join(sorted(state.value for state in from_states))
                raise WrongStateError(
                    f"action {action_id} is {before.state.value}, not {wanted}: {before.reason}"
                )
            after = self._load(connection, action_id)
            self._tell(connection, after)
        return after

    def remember_undo(self, action_id: str, undo: Mapping[str, Any]) -> None:
        """Write down what restores the state before an action; called before the action is done."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(_actions)
                .where(_actions.c.id == action_id)
                .values(undo=json.dumps(dict(undo)))
            )

    def approve(self, action_id: str, actor: str, now: float) -> Action:
        """Say yes to a proposal. It goes through the guard again before it runs.

        Raises:
            ActionNotFoundError: when there is no such action.
            WrongStateError: when it is not (or no longer) proposed.
        """
        proposal = self.get(action_id)
        return self.transition(
            action_id,
            {ActionState.PROPOSED},
            ActionState.APPROVED,
            now=now,
            actor=actor,
            reason=f"{actor} approved {proposal.action} on {proposal.entity}",
        )

    def reject(self, action_id: str, actor: str, reason: str, now: float) -> Action:
        """Say no to a proposal. Healing leaves its incident to people from then on.

        Raises:
            ActionNotFoundError: when there is no such action.
            WrongStateError: when it is not (or no longer) proposed.
        """
        proposal = self.get(action_id)
        because = f": {reason}" if reason else ""
        return self.transition(
            action_id,
            {ActionState.PROPOSED},
            ActionState.REJECTED,
            now=now,
            actor=actor,
            reason=f"{actor} rejected {proposal.action} on {proposal.entity}{because}",
        )

    def get(self, action_id: str) -> Action:
        """Return one action.

        Raises:
            ActionNotFoundError: when there is no such action.
        """
        with self._reader.connect() as connection:
            return self._load(connection, action_id)

    def actions(
        self,
        *,
        since_seconds: float | None = None,
        until_seconds: float | None = None,
        states: Collection[ActionState] | None = None,
        incident_id: str | None = None,
        limit: int = 1000,
    ) -> list[Action]:
        """Return actions by the time of their creation, newest first, the newest ``limit``."""
        query = _newest_first().limit(limit)
        if since_seconds is not None:
            query = query.where(_actions.c.created_seconds >= since_seconds)
        if until_seconds is not None:
            query = query.where(_actions.c.created_seconds < until_seconds)
        if states is not None:
            query = query.where(_actions.c.state.in_([state.value for state in states]))
        if incident_id is not None:
            query = query.where(_actions.c.incident_id == incident_id)
        return self._read(query)

    def started_since(self, since_seconds: float, *, limit: int = 10_000) -> list[Action]:
        """Return actions whose intent was written since a time: what had or may have had an effect."""
        recent = _newest_first().where(_actions.c.started_seconds >= since_seconds)
        return self._read(recent.limit(limit))

    def standing(self, *, limit: int = 1000) -> list[Action]:
        """Return temporary actions that still stand and can be taken back, newest first."""
        query = (
            _newest_first()
            .where(_actions.c.temporary.is_(True))
            .where(_actions.c.undo != "{}")
            .where(_actions.c.executed_seconds.is_not(None))
            .where(_actions.c.state.in_([state.value for state in IN_EFFECT]))
        )
        return self._read(query.limit(limit))

    def counts(self) -> dict[tuple[str, str], int]:
        """Return how many actions there are by name and state."""
        query = sa.select(_actions.c.action, _actions.c.state, sa.func.count()).group_by(
            _actions.c.action, _actions.c.state
        )
        with self._reader.connect() as connection:
            return {(action, state): count for action, state, count in connection.execute(query)}

    def _read(self, query: sa.Select[Any]) -> list[Action]:
        with self._reader.connect() as connection:
            return [_action(row) for row in connection.execute(query).mappings().all()]

    @staticmethod
    def _load(connection: sa.Connection, action_id: str) -> Action:
        query = sa.select(_actions).where(_actions.c.id == action_id)
        row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise ActionNotFoundError(
                f"there is no action {action_id!r}",
                fix="`galen actions list` shows those there are.",
            )
        return _action(row)

    @staticmethod
    def _require_idle(connection: sa.Connection, action: Action) -> None:
        query = (
            sa.select(_actions.c.action, _actions.c.entity)
            .where(_actions.c.state.in_([state.value for state in UNDER_WAY]))
            .where(_actions.c.id != action.id)
        )
        for row in connection.execute(query):
            if related(row.entity, action.entity):
                raise EntityBusyError(action.entity, f"{row.action} on {row.entity}")

    def _tell(self, connection: sa.Connection, action: Action) -> None:
        self._journal.append(
            EVENT_OF[action.state],
            time_seconds=action.updated_seconds,
            summary=action.reason,
            incident_id=action.incident_id,
            actor=action.actor,
            data={
                "action_id": action.id,
                "action": action.action,
                "entity": action.entity,
                "cause": action.cause,
                "confidence": action.confidence,
                "rung": action.rung,
                "attempt": action.attempt,
                "mode": action.mode.value,
                "state": action.state.value,
                "risk": action.risk,
                "parameters": dict(action.parameters),
                "proof": list(action.proof),
            },
            connection=connection,
        )


def _newest_first() -> sa.Select[Any]:
    return sa.select(_actions).order_by(_actions.c.created_seconds.desc(), _actions.c.id.desc())


def _row(action: Action) -> dict[str, Any]:
    row = action.model_dump(mode="json")
    return {**row, **{name: json.dumps(row[name]) for name in _JSON_COLUMNS}}


def _action(row: Mapping[Any, Any]) -> Action:
    decoded = {name: json.loads(row[name]) for name in _JSON_COLUMNS}
    fields = {**row, **decoded, "mode": Mode(row["mode"]), "state": ActionState(row["state"])}
    return Action(**fields)
