from __future__ import annotations

from collections.abc import Callable

import pytest

from analysis.findings import Incident
from analysis.journal import Journal
from reporting.alerts.messages import AlertMessage, Step, build_message
from reporting.alerts.outbox import ChannelState, EntryState, Outbox
from reporting.alerts.routing import Thread, taken

MakeIncident = Callable[..., Incident]


@pytest.fixture
def outbox(journal: Journal) -> Outbox:
    return Outbox(journal.engine)


def message(make_incident: MakeIncident, key: str, incident_id: str = "inc-1") -> AlertMessage:
    incident = make_incident(incident_id)
    return build_message(incident, [], steps=[Step.OPENED], idempotency_key=key, now_seconds=1004.0)


def put(outbox: Outbox, sent: AlertMessage, now: float = 1004.0, channel: str = "slack") -> None:
    thread = Thread(channel=channel, incident_id=sent.incident_id)
    outbox.put(taken(thread, now), sent, outbox.undelivered(channel, sent.incident_id), now)


def test_routing_and_cursor_survive_a_restart(journal: Journal, outbox: Outbox) -> None:
    assert outbox.cursor() == 0
    thread = Thread(
        channel="slack", incident_id="inc-1", due_seconds=1034.0, steps=(Step.OPENED,), seqs=(7,)
    )
    outbox.save_routing([thread], 7, 1004.0)
    again = Outbox(journal.engine)
    assert again.cursor() == 7
    assert again.threads("inc-1") == {"slack": thread}
    assert again.due_threads(1033.9) == []
    assert again.due_threads(1034.0) == [thread]


def test_the_same_key_is_written_once(outbox: Outbox, make_incident: MakeIncident) -> None:
    put(outbox, message(make_incident, "a"))
    entry = outbox.next_entry("slack", 1004.0)
    assert entry is not None
    outbox.finish(entry, EntryState.DELIVERED, 1005.0)
    put(outbox, message(make_incident, "a"), now=1006.0)
    assert outbox.next_entry("slack", 2000.0) is None


def test_a_newer_message_takes_the_place_of_an_undelivered_one(
    outbox: Outbox, make_incident: MakeIncident
) -> None:
    put(outbox, message(make_incident, "a"), now=1004.0)
    put(outbox, message(make_incident, "b"), now=1100.0)
    put(outbox, message(make_incident, "c", "inc-2"), now=1100.0)
    assert outbox.pending() == {"slack": 2}
    entry = outbox.next_entry("slack", 1100.0)
    assert entry is not None
    assert entry.key == "b"
    assert entry.created_seconds == 1004.0  # its age counts from the first of its steps


def test_postponing_honours_time_and_counts(outbox: Outbox, make_incident: MakeIncident) -> None:
    put(outbox, message(make_incident, "a"))
    entry = outbox.next_entry("slack", 1004.0)
    assert entry is not None
    outbox.postpone(entry, until_seconds=1010.0, error="503")
    assert outbox.next_entry("slack", 1009.9) is None
    entry = outbox.next_entry("slack", 1010.0)
    assert entry is not None
    assert (entry.attempts, entry.error) == (1, "503")
    outbox.postpone(entry, until_seconds=1020.0, error="429", counts=False)
    assert outbox.exhausted(2) == []
    assert [each.key for each in outbox.exhausted(1)] == ["a"]


def test_overflow_and_age_name_the_oldest(outbox: Outbox, make_incident: MakeIncident) -> None:
    for number in range(5):
        put(outbox, message(make_incident, f"k{number}", f"inc-{number}"), now=1000.0 + number)
    assert [entry.key for entry in outbox.overflow("slack", 3)] == ["k0", "k1"]
    assert outbox.overflow("slack", 5) == []
    assert [entry.key for entry in outbox.expired(1002.0)] == ["k0", "k1"]


def test_pruning_keeps_what_still_matters(outbox: Outbox, make_incident: MakeIncident) -> None:
    for number in range(3):
        put(outbox, message(make_incident, f"k{number}", f"inc-{number}"))
    first, second, _ = (outbox.undelivered("slack", f"inc-{number}")[0] for number in range(3))
    outbox.finish(first, EntryState.DELIVERED, 1005.0)
    outbox.mark_journaled(first)
    outbox.finish(second, EntryState.DELIVERED, 1005.0)  # not journaled yet
    outbox.prune(9999.0, open_incidents=["inc-2"])
    assert [entry.key for entry in outbox.unjournaled()] == ["k1"]
    assert outbox.pending() == {"slack": 1}
    assert set(outbox.threads("inc-2")) == {"slack"}
    assert outbox.threads("inc-0") == {}


def test_a_channels_state_is_kept(journal: Journal, outbox: Outbox) -> None:
    assert outbox.channel("slack") == ChannelState(name="slack")
    state = ChannelState(name="slack", not_before_seconds=5.0, failures=3)
    outbox.save_channel(state)
    outbox.save_channel(state.model_copy(update={"failures": 4}))
    assert Outbox(journal.engine).channel("slack").failures == 4
