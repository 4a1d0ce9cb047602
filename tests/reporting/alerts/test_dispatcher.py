"""From journal events to a server that fails, limits, hangs and recovers."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from analysis.findings import Incident, IncidentState, Severity
from analysis.journal import EventKind, Journal
from collectors.contract import Support
from reporting.alerts.contract import Delivery, DeliveryResult
from reporting.alerts.dispatcher import AlertDispatcher
from reporting.alerts.messages import AlertMessage
from reporting.alerts.slack import SlackNotifier
from reporting.alerts.webhook import WebhookNotifier
from reporting.settings import ReportingSettings, WebhookSettings

MakeIncident = Callable[..., Incident]
SETTINGS = ReportingSettings(group_wait_seconds=2.0, send_deadline_seconds=2.0)


class Recorder:
    """A channel in memory that answers as it is told."""

    min_interval_seconds = 0.0

    def __init__(self, name: str = "pager", *outcomes: Delivery | Exception) -> None:
        self.name = name
        self.outcomes = list(outcomes)
        self.messages: list[AlertMessage] = []

    def is_supported(self) -> Support:
        return Support(supported=True)

    def send(self, message: AlertMessage, deadline_seconds: float) -> Delivery:
        self.messages.append(message)
        outcome = self.outcomes.pop(0) if self.outcomes else Delivery(DeliveryResult.DELIVERED)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        pass


def dispatcher(
    journal: Journal, *channels: Any, settings: ReportingSettings = SETTINGS
) -> AlertDispatcher:
    # A clock that stands still: deliveries in tests take no time.
    return AlertDispatcher(settings, journal, channels, lambda: 0.0, random.Random(0))


def opens(journal: Journal, incident: Incident) -> None:
    journal.save_incident(incident)
    journal.append(
        EventKind.INCIDENT_OPENED,
        time_seconds=incident.opened_seconds,
        summary=incident.title,
        incident_id=incident.id,
    )


def resolves(journal: Journal, incident: Incident, at: float) -> Incident:
    over = incident.model_copy(update={"state": IncidentState.RESOLVED, "resolved_seconds": at})
    journal.save_incident(over)
    journal.append(
        EventKind.INCIDENT_RESOLVED, time_seconds=at, summary="over", incident_id=incident.id
    )
    return over


def sent_events(journal: Journal) -> list[str]:
    return [event.data["key"] for event in journal.events(kinds={EventKind.NOTIFICATION_SENT})]


def failed_events(journal: Journal) -> list[str]:
    found = journal.events(kinds={EventKind.NOTIFICATION_FAILED})
    return [event.data["error"] for event in found]


def test_opened_acted_and_resolved_in_quick_succession_are_one_message(
    journal: Journal, make_incident: MakeIncident
) -> None:
    pager = Recorder()
    tell = dispatcher(journal, pager)
    incident = make_incident()
    opens(journal, incident)
    assert tell.run_once(1004.5).delivered == 0
    journal.append(
        EventKind.ACTION_CONFIRMED,
        time_seconds=1005.0,
        summary="Restarted the engine",
        incident_id="inc-1",
        data={"proof": ["steps run again"]},
    )
    resolves(journal, incident, 1005.5)
    assert tell.run_once(1005.6).delivered == 0
    assert tell.run_once(1006.0).delivered == 1
    assert [step.value for step in pager.messages[0].steps] == ["opened", "acted", "resolved"]
    assert "healed by Galen" in pager.messages[0].headline
    assert tell.run_once(1100.0).delivered == 0
    assert len(sent_events(journal)) == 1


def test_an_outage_delays_and_loses_nothing(
    journal: Journal, make_incident: MakeIncident, server: Any
) -> None:
    """Down, rate limited, hanging, then well again: told once, with everything in it."""
    server.answers(503, "down")
    server.answers(429, "slow down", Retry_After="60")
    server.hangs()
    settings = SETTINGS.model_copy(update={"send_deadline_seconds": 1.0})
    tell = dispatcher(journal, SlackNotifier(SecretStr(server.url)), settings=settings)
    incident = make_incident()
    opens(journal, incident)
    assert tell.run_once(1006.0).retried == 1  # 503
    assert tell.run_once(1006.5).retried == 0  # backs off
    assert tell.run_once(1009.0).retried == 1  # 429
    assert tell.run_once(1068.0).retried == 0  # honours Retry-After
    resolves(journal, incident, 1068.5)
    assert tell.run_once(1069.0).retried == 1  # hangs until the deadline
    assert tell.run_once(1070.5).composed == 1  # the resolution joins what was not delivered
    server.release.set()
    thread = tell._lanes["slack"]._thread
    assert thread is not None
    thread.join(20)  # until the call that was given up on has ended, the channel is not used
    assert tell.run_once(1200.0).delivered == 1
    assert tell.run_once(1300.0).delivered == 0
    final = server.received[-1].json
    assert "opened, resolved" in str(final["blocks"])
    assert len(server.received) == 4
    assert len(sent_events(journal)) == 1
    assert failed_events(journal) == []


def test_a_channel_that_hangs_does_not_hold_up_another(
    journal: Journal, make_incident: MakeIncident, server: Any
) -> None:
    server.hangs()
    pager = Recorder()
    settings = SETTINGS.model_copy(update={"send_deadline_seconds": 1.0})
    tell = dispatcher(journal, SlackNotifier(SecretStr(server.url)), pager, settings=settings)
    opens(journal, make_incident())
    done = tell.run_once(1006.0)
    assert (done.delivered, done.retried) == (1, 1)
    assert done.pending == 1


def test_a_message_that_the_channel_never_takes_is_parked_and_the_next_goes_out(
    journal: Journal, make_incident: MakeIncident
) -> None:
    pager = Recorder("pager", Delivery(DeliveryResult.REJECTED, "400: bad"))
    tell = dispatcher(journal, pager)
    opens(journal, make_incident("inc-1"))
    opens(journal, make_incident("inc-2"))
    done = tell.run_once(1006.0)
    assert (done.delivered, done.retried, done.pending) == (1, 1, 0)
    assert failed_events(journal) == ["400: bad"]


def test_a_message_that_breaks_its_channel_does_not_block_the_next(
    journal: Journal, make_incident: MakeIncident
) -> None:
    class Fragile(Recorder):
        def send(self, message: AlertMessage, deadline_seconds: float) -> Delivery:
            self.messages.append(message)
            poison = message.incident_id == "inc-1"
            return Delivery(DeliveryResult.RETRY if poison else DeliveryResult.DELIVERED, "500")

    settings = SETTINGS.model_copy(update={"max_attempts": 3, "retry_limit_seconds": 4.0})
    tell = dispatcher(journal, Fragile(), settings=settings)
    for number in (1, 2, 3):
        opens(journal, make_incident(f"inc-{number}"))
    for second in range(1006, 1040):
        tell.run_once(float(second))
    assert len(sent_events(journal)) == 2
    assert failed_events(journal) == ["given up after 3 tries; last: 500"]


def test_after_a_day_a_message_is_parked_even_on_a_channel_that_is_gone(
    journal: Journal, make_incident: MakeIncident
) -> None:
    down = Recorder("pager", *[Delivery(DeliveryResult.RETRY, "down")] * 50)
    opens(journal, make_incident())
    dispatcher(journal, down).run_once(1006.0)
    other = dispatcher(journal, Recorder("other"))
    assert other.run_once(1006.0 + 86400.0).parked == 0
    assert other.run_once(1006.0 + 86401.0).parked == 1
    assert failed_events(journal) == ["not delivered within 24 h; last: down"]


def test_the_outbox_is_bounded(journal: Journal, make_incident: MakeIncident) -> None:
    settings = SETTINGS.model_copy(update={"max_pending": 10})
    down = Recorder("pager", *[Delivery(DeliveryResult.RETRY, "down")] * 50)
    for number in range(14):
        opens(journal, make_incident(f"inc-{number}"))
    done = dispatcher(journal, down, settings=settings).run_once(1006.0)
    assert (done.pending, done.parked) == (10, 4)
    assert all("over 10 messages waited" in error for error in failed_events(journal))


def test_a_notifier_that_raises_is_tried_again(
    journal: Journal, make_incident: MakeIncident
) -> None:
    broken = Recorder("broken", RuntimeError("bug"))
    well = Recorder("well")
    tell = dispatcher(journal, broken, well)
    opens(journal, make_incident())
    assert tell.run_once(1006.0).delivered == 1
    assert tell.run_once(1010.0).delivered == 1
    assert len(broken.messages) == 2
    assert broken.messages[0].idempotency_key == broken.messages[1].idempotency_key


def test_waits_double_up_to_the_limit_and_start_over_after_success(
    journal: Journal, make_incident: MakeIncident
) -> None:
    outcomes = [Delivery(DeliveryResult.RETRY, "down")] * 9
    pager = Recorder("pager", *outcomes)
    settings = SETTINGS.model_copy(update={"retry_limit_seconds": 64.0})
    tell = dispatcher(journal, pager, settings=settings)
    opens(journal, make_incident())
    tried: list[float] = []
    for second in range(340):
        now = 1006.0 + second
        before = len(pager.messages)
        tell.run_once(now)
        if len(pager.messages) > before:
            tried.append(now)
    waits = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert len(waits) == 9
    for number, wait in enumerate(waits):
        full = min(64.0, 2.0 * 2**number)
        assert 0.75 * full <= wait <= full + 1.0
    assert len(sent_events(journal)) == 1


def test_a_restart_repeats_nothing(journal: Journal, make_incident: MakeIncident) -> None:
    pager = Recorder()
    opens(journal, make_incident())
    dispatcher(journal, pager).run_once(1006.0)
    again = dispatcher(journal, pager)
    assert again.run_once(1007.0).delivered == 0
    assert len(pager.messages) == 1


def test_each_channel_gets_what_its_severity_allows(
    journal: Journal, make_incident: MakeIncident
) -> None:
    pager = WebhookSettings(
        name="pager", url=SecretStr("http://x/"), minimum_severity=Severity.CRITICAL
    )
    settings = SETTINGS.model_copy(update={"webhooks": (pager,)})
    loud, all_of_it = Recorder("pager"), Recorder("slack")
    tell = dispatcher(journal, loud, all_of_it, settings=settings)
    opens(journal, make_incident("small", severity=Severity.WARNING))
    opens(journal, make_incident("large", severity=Severity.CRITICAL))
    tell.run_once(1006.0)
    assert [message.incident_id for message in loud.messages] == ["large"]
    assert {message.incident_id for message in all_of_it.messages} == {"small", "large"}


def test_an_incident_that_stays_open_is_told_again(
    journal: Journal, make_incident: MakeIncident
) -> None:
    pager = Recorder()
    tell = dispatcher(journal, pager)
    opens(journal, make_incident())
    for minute in range(0, 9 * 60, 10):
        tell.run_once(1006.0 + 60.0 * minute)
    assert [message.steps[0].value for message in pager.messages] == [
        "opened",
        "reminder",
        "reminder",
    ]
    assert len({message.idempotency_key for message in pager.messages}) == 3


def test_a_channel_that_comes_later_is_told_what_is_still_open(
    journal: Journal, make_incident: MakeIncident
) -> None:
    opens(journal, make_incident("still-open"))
    opens(journal, make_incident("too-small", severity=Severity.INFO))
    opens(journal, make_incident("over"))
    resolves(journal, make_incident("over"), 1010.0)
    dispatcher(journal).run_once(1020.0)  # nobody to tell yet
    pager = Recorder()
    tell = dispatcher(journal, pager)
    tell.run_once(2000.0)
    tell.run_once(2001.0)
    assert [message.incident_id for message in pager.messages] == ["still-open"]


def test_records_of_another_version_stop_nothing(
    journal: Journal, make_incident: MakeIncident
) -> None:
    for name in ("bad-incident", "bad-message", "bad-thread", "good"):
        opens(journal, make_incident(name))
    down = Recorder("pager", *[Delivery(DeliveryResult.RETRY, "down")] * 9)
    tell = dispatcher(journal, down)
    tell.run_once(1005.0)
    tell.run_once(1006.0)
    opens(journal, make_incident("new-and-bad", opened_seconds=1007.0))
    with journal.engine.begin() as connection:
        for statement in (
            "UPDATE incidents SET body = '{}' WHERE id IN ('bad-incident', 'new-and-bad')",
            "UPDATE alert_messages SET body = '{}' WHERE incident_id = 'bad-message'",
            "UPDATE alert_threads SET body = '{}' WHERE incident_id = 'bad-thread'",
        ):
            connection.exec_driver_sql(statement)
    pager = Recorder()
    again = dispatcher(journal, pager)
    for second in range(1010, 1020):
        again.run_once(float(second))
    told = {message.incident_id for message in pager.messages}
    assert told == {"bad-incident", "bad-thread", "good"}


def test_an_event_of_an_unknown_incident_is_passed_over(
    journal: Journal, make_incident: MakeIncident
) -> None:
    pager = Recorder()
    journal.append(
        EventKind.INCIDENT_OPENED, time_seconds=1.0, summary="ghost", incident_id="ghost"
    )
    opens(journal, make_incident())
    dispatcher(journal, pager).run_once(1006.0)
    assert [message.incident_id for message in pager.messages] == ["inc-1"]


def test_long_journals_are_read_in_pages(journal: Journal, make_incident: MakeIncident) -> None:
    incident = make_incident()
    opens(journal, incident)
    for number in range(1200):
        journal.append(
            EventKind.INCIDENT_UPDATED,
            time_seconds=1004.0 + number / 1000,
            summary="more",
            incident_id="inc-1",
        )
    resolves(journal, incident, 1005.9)
    pager = Recorder()
    dispatcher(journal, pager).run_once(1010.0)
    assert [step.value for step in pager.messages[0].steps] == ["opened", "resolved"]


def test_two_channels_of_one_name_are_refused(journal: Journal) -> None:
    with pytest.raises(ValueError, match="unique names"):
        dispatcher(journal, Recorder("a"), Recorder("a"))


_CHILD = """
    import os, signal, sys
    from analysis.journal import Journal
    from collectors.contract import Support
    from reporting.alerts.dispatcher import AlertDispatcher
    from reporting.settings import ReportingSettings

    class Deadly:
        name = "pager"
        min_interval_seconds = 0.0
        def is_supported(self):
            return Support(supported=True)
        def send(self, message, deadline_seconds):
            os.kill(os.getpid(), signal.SIGKILL)
        def close(self):
            pass

    journal = Journal(sys.argv[1])
    AlertDispatcher(ReportingSettings(group_wait_seconds=2.0), journal, [Deadly()]).run_once(1006.0)
"""


def test_a_kill_between_writing_and_sending_loses_nothing(
    tmp_path: Path, journal: Journal, make_incident: MakeIncident, server: Any
) -> None:
    opens(journal, make_incident())
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_CHILD), str(tmp_path / "journal.sqlite")],
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == -signal.SIGKILL
    assert server.received == []
    settings = WebhookSettings(name="pager", url=SecretStr(server.url))
    with httpx.Client(trust_env=False) as client:
        tell = dispatcher(journal, WebhookNotifier(settings, client))
        assert tell.run_once(1007.0).delivered == 1
        assert tell.run_once(1020.0).delivered == 0
    assert server.received[0].json["incident_id"] == "inc-1"
    assert sent_events(journal) == [server.received[0].json["idempotency_key"]]
    assert journal.broken_links() == []
