from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from analysis.journal import EventKind, Journal
from healing.actions import Action, ActionState
from healing.errors import (
    ActionNotFoundError,
    DuplicateActionError,
    EntityBusyError,
    HealingError,
    WrongStateError,
)
from healing.ledger import EVENT_OF, Ledger, related
from tests.healing.worlds import SERVICE, make_action


def test_what_is_recorded_is_what_is_read(ledger: Ledger) -> None:
    action = make_action(
        parameters={"level": 2, "reason": "a'); DROP TABLE actions;--"},
        undo={"level": 0},
        proof=("a",),
    )
    ledger.record(action)
    assert ledger.get("act-1") == action
    assert ledger.actions() == [action]


def test_every_state_has_an_event_and_each_change_tells_the_journal(
    ledger: Ledger, journal: Journal
) -> None:
    assert EVENT_OF.keys() == set(ActionState)
    ledger.record(make_action())
    ledger.approve("act-1", "mia", 1010.0)
    approved = journal.events()[-1]
    assert (approved.kind, approved.actor) == (EventKind.ACTION_APPROVED, "mia")
    assert approved.data["action_id"] == "act-1"
    assert approved.incident_id == "inc-1"
    assert journal.broken_links() == []


def test_a_change_that_does_not_happen_tells_nothing(ledger: Ledger, journal: Journal) -> None:
    ledger.record(make_action())
    ledger.reject("act-1", "mia", "not now", 1010.0)
    with pytest.raises(WrongStateError, match="is rejected, not proposed: mia rejected"):
        ledger.approve("act-1", "tom", 1011.0)
    assert [event.kind for event in journal.events()] == [
        EventKind.ACTION_PROPOSED,
        EventKind.ACTION_REJECTED,
    ]


def test_what_people_type_cannot_steer_a_terminal(ledger: Ledger, journal: Journal) -> None:
    ledger.record(make_action(reason="a\x1b[2Jb"))
    ledger.reject("act-1", "mia\x07", "no\r\n\x1b]0;owned\x07" + "x" * 5000, 2.0)
    action = ledger.get("act-1")
    assert action.actor == "mia"
    assert action.reason.isprintable()
    assert len(action.reason) == 2000
    assert journal.events()[0].summary == "a [2Jb"


def test_an_idempotency_key_is_taken_once(ledger: Ledger, journal: Journal) -> None:
    ledger.record(make_action(idempotency_key="k"))
    with pytest.raises(DuplicateActionError):
        ledger.record(make_action(id="act-2", idempotency_key="k"))
    assert len(journal.events()) == 1


def test_an_unknown_action_is_told(ledger: Ledger) -> None:
    for call in (
        lambda: ledger.get("nobody"),
        lambda: ledger.approve("nobody", "mia", 1.0),
        lambda: ledger.reject("nobody", "mia", "", 1.0),
    ):
        with pytest.raises(ActionNotFoundError, match="nobody"):
            call()


@pytest.mark.parametrize(
    "other", [SERVICE, f"{SERVICE}/replica/0", "fleet"], ids=["same", "child", "root"]
)
def test_two_actions_never_run_on_one_entity(ledger: Ledger, other: str) -> None:
    ledger.record(make_action(state=ActionState.INTENT))
    with pytest.raises(EntityBusyError, match="restart_engine on service/llm"):
        ledger.record(make_action(id="act-2", entity=other, state=ActionState.INTENT))
    ledger.record(make_action(id="act-3", entity=other, state=ActionState.APPROVED))
    with pytest.raises(EntityBusyError):
        _start(ledger, "act-3")
    ledger.record(make_action(id="act-4", entity="service/llm2", state=ActionState.INTENT))


def test_an_entity_is_free_again_when_the_action_is_over(ledger: Ledger) -> None:
    ledger.record(make_action(state=ActionState.EXECUTED))
    ledger.transition(
        "act-1",
        {ActionState.EXECUTED},
        ActionState.CONFIRMED,
        now=2.0,
        reason="proven",
        proof=["p"],
    )
    ledger.record(make_action(id="act-2", state=ActionState.INTENT))
    assert ledger.get("act-1").proof == ("p",)


def test_times_are_kept_of_each_step_and_the_verdict_is_not_moved_by_the_undo(
    ledger: Ledger,
) -> None:
    ledger.record(make_action(state=ActionState.APPROVED))
    _start(ledger, "act-1", 10.0)
    for state, now in (
        (ActionState.EXECUTED, 12.0),
        (ActionState.CONFIRMED, 20.0),
        (ActionState.UNDONE, 60.0),
    ):
        ledger.transition("act-1", set(ActionState), state, now=now, reason="on")
    action = ledger.get("act-1")
    assert action.started_seconds == 10.0
    assert action.executed_seconds == 12.0
    assert action.finished_seconds == 20.0
    assert action.updated_seconds == 60.0


def test_of_many_that_move_one_action_exactly_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Ledger(Journal(path)).record(make_action())
    ledgers = [Ledger(Journal(path)) for _ in range(6)]
    barrier = Barrier(len(ledgers))

    def move(number: int) -> str:
        barrier.wait()
        try:
            if number % 2:
                return ledgers[number].approve("act-1", f"person-{number}", 2.0).actor
            return ledgers[number].reject("act-1", f"person-{number}", "", 2.0).actor
        except WrongStateError:
            return ""

    with ThreadPoolExecutor(len(ledgers)) as pool:
        winners = [actor for actor in pool.map(move, range(len(ledgers))) if actor]
    assert len(winners) == 1
    assert ledgers[0].get("act-1").actor == winners[0]
    journal = Journal(path)
    assert len(journal.events()) == 2
    assert journal.broken_links() == []


def test_of_many_that_start_on_one_entity_exactly_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    ledgers = [Ledger(Journal(path)) for _ in range(6)]
    barrier = Barrier(len(ledgers))

    def start(number: int) -> bool:
        barrier.wait()
        try:
            ledgers[number].record(make_action(id=f"act-{number}", state=ActionState.INTENT))
        except EntityBusyError:
            return False
        return True

    with ThreadPoolExecutor(len(ledgers)) as pool:
        assert sum(pool.map(start, range(len(ledgers)))) == 1


def test_actions_are_selected(ledger: Ledger) -> None:
    for number in range(5):
        state = ActionState.BLOCKED if number % 2 else ActionState.PROPOSED
        ledger.record(
            make_action(
                id=f"act-{number}",
                incident_id=f"inc-{number // 2}",
                state=state,
                created_seconds=float(number),
            )
        )

    def ids(found: list[Action]) -> list[str]:
        return [action.id for action in found]

    assert ids(ledger.actions(since_seconds=1, until_seconds=3)) == ["act-2", "act-1"]
    assert ids(ledger.actions(states={ActionState.BLOCKED})) == ["act-3", "act-1"]
    assert ids(ledger.actions(incident_id="inc-0")) == ["act-1", "act-0"]
    assert ids(ledger.actions(limit=1)) == ["act-4"]


def test_only_what_was_done_and_can_be_restored_stands(ledger: Ledger) -> None:
    def record(name: str, **changes: object) -> None:
        fields = {"temporary": True, "undo": {"level": 0}, "executed_seconds": 5.0, **changes}
        ledger.record(make_action(id=name, entity=f"service/{name}", **fields))

    record("proven", state=ActionState.CONFIRMED)
    record("tried", state=ActionState.FAILED)
    record("never-done", state=ActionState.FAILED, executed_seconds=None)
    record("no-way-back", state=ActionState.CONFIRMED, undo={})
    record("lasting", state=ActionState.CONFIRMED, temporary=False)
    record("taken-back", state=ActionState.UNDONE)
    assert {action.id for action in ledger.standing()} == {"proven", "tried"}


def test_the_undo_is_written_down(ledger: Ledger) -> None:
    ledger.record(make_action(state=ActionState.INTENT))
    ledger.remember_undo("act-1", {"level": 1})
    assert ledger.get("act-1").undo == {"level": 1}


def test_errors_say_whether_trying_again_can_help() -> None:
    assert EntityBusyError("a", "b").retryable
    assert not WrongStateError("x").retryable
    assert issubclass(DuplicateActionError, HealingError)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("service/llm", "service/llm", True),
        ("service/llm", "service/llm/replica/0", True),
        ("service/llm/replica/0", "service/llm", True),
        ("service/llm", "service/llm2", False),
        ("service/llm/replica/0", "service/llm/replica/1", False),
        ("fleet", "host/box", True),
    ],
)
def test_relatives(one: str, other: str, expected: bool) -> None:
    assert related(one, other) is expected


def _start(ledger: Ledger, action_id: str, now: float = 2.0) -> None:
    ledger.transition(
        action_id, {ActionState.APPROVED}, ActionState.INTENT, now=now, reason="on my way"
    )
