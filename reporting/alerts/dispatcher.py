"""Takes journal events to people: route, compose, deliver, record.

Each call of :meth:`AlertDispatcher.run_once` is short and leaves all state in the database, so that it
can be called from a loop, killed at any instruction, and called again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
import structlog
from pydantic import ValidationError

from analysis.findings import Incident, IncidentState
from analysis.journal import Event, EventKind, Journal
from reporting.alerts.contract import Delivery, DeliveryResult, Notifier
from reporting.alerts.lane import DeadlineExceededError, Lane
from reporting.alerts.messages import AlertMessage, build_message
from reporting.alerts.outbox import ChannelState, Entry, EntryState, Outbox
from reporting.alerts.routing import (
    ROUTED_KINDS,
    Decision,
    Rules,
    Thread,
    idempotency_key,
    remind,
    route,
    taken,
)
from reporting.settings import ReportingSettings

log = structlog.get_logger(__name__)

_PAGE = 500
_MAX_PAGES = 10
_MAX_ROUNDS = 20
_MAX_EVENTS_A_MESSAGE = 500
_PRUNE_INTERVAL_SECONDS = 600.0
# The share of each wait that is random, so that clients which failed together do not return together.
_JITTER = 0.25
_INNER_DEADLINE_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Dispatched:
    """What one call did."""

    routed: int = 0
    """Steps that were queued, counted for each channel."""
    composed: int = 0
    """Messages written to the outbox."""
    delivered: int = 0
    retried: int = 0
    """Tries that did not get through."""
    parked: int = 0
    """Messages given up."""
    pending: int = 0
    """Messages that wait, over all channels."""


class AlertDispatcher:
    """Tells each configured channel about incidents, at least once and in order of urgency.

    A call takes up to ``send_deadline_seconds`` for each message when a channel hangs, so a watch loop
    calls it from a thread of its own. Only one process may dispatch over one journal.

    Args:
        settings: of reporting.
        journal: read for incidents and events, written with what was sent and what failed.
        notifiers: the channels, with unique names; those that are not supported are left out.
        clock: a stopwatch, for how long deliveries take.
        randomness: for the jitter of retries.
    """

    def __init__(
        self,
        settings: ReportingSettings,
        journal: Journal,
        notifiers: Sequence[Notifier],
        clock: Callable[[], float] = time.monotonic,
        randomness: random.Random | None = None,
    ) -> None:
        names = [notifier.name for notifier in notifiers]
        if len(set(names)) != len(names):
            raise ValueError(f"notifiers need unique names, got {sorted(names)}")
        self._settings = settings
        self._journal = journal
        self._outbox = Outbox(journal.engine)
        self._clock = clock
        self._random = randomness or random.Random()  # noqa: S311 - jitter is no secret
        self._notifiers = {each.name: each for each in notifiers if _usable(each)}
        self._lanes: dict[str, Lane[Delivery]] = {name: Lane(name) for name in self._notifiers}
        self._rules = {name: self._rules_of(name) for name in self._notifiers}
        self._pruned_seconds: float | None = None

    def run_once(self, now_seconds: float) -> Dispatched:
        """Route new events, write due messages, try to deliver, and record what came of it.

        Args:
            now_seconds: the time in seconds since the epoch, as the journal counts it.
        """
        started = self._clock()
        routed = self._guarded("route", partial(self._route, now_seconds))
        self._guarded("remind", partial(self._remind, now_seconds))
        composed = self._guarded("compose", partial(self._compose, now_seconds))
        delivered, retried = self._deliver_all(now_seconds, started)
        parked = self._guarded("park", partial(self._park, now_seconds))
        self._guarded("record", partial(self._record, now_seconds))
        self._guarded("prune", partial(self._prune, now_seconds))
        pending = self._guarded("count", lambda: sum(self._outbox.pending().values()))
        return Dispatched(routed, composed, delivered, retried, parked, pending)

    def close(self) -> None:
        """Release the channels; what waits is sent after the next start."""
        for notifier in self._notifiers.values():
            notifier.close()

    def _guarded(self, stage: str, work: Callable[[], int]) -> int:
        # A database that is locked or full for a moment, or a record that cannot be read, must stop
        # neither the other stages nor the loop that calls: nothing is lost, because state moves only
        # in committed transactions.
        try:
            return work()
        except (sa.exc.SQLAlchemyError, ValidationError) as error:
            log.exception("alert_stage_failed", stage=stage, error=str(error))
            return 0

    def _rules_of(self, channel: str) -> Rules:
        return Rules(
            minimum_severity=self._settings.minimum_severity(channel),
            group_wait_seconds=self._settings.group_wait_seconds,
            repeat_interval_seconds=self._settings.repeat_interval_seconds,
            max_age_seconds=self._settings.max_age_seconds,
        )

    def _route(self, now_seconds: float) -> int:
        queued = 0
        for _ in range(_MAX_PAGES):
            cursor = self._outbox.cursor()
            # Read before the events: those that follow it may be behind the page's end.
            newest = self._journal.last_seq()
            if newest <= cursor:
                break
            events = self._journal.events(after_seq=cursor, kinds=ROUTED_KINDS, limit=_PAGE)
            changed = self._route_page(events, now_seconds)
            queued += sum(count for _, count in changed)
            full = len(events) == _PAGE
            last = events[-1].seq if events else cursor
            reached = last if full else max(last, newest)
            self._outbox.save_routing([thread for thread, _ in changed], reached, now_seconds)
            if not full:
                break
        return queued

    def _route_page(self, events: Sequence[Event], now_seconds: float) -> list[tuple[Thread, int]]:
        """Return the threads that changed, each with how many steps were queued in it."""
        incidents: dict[str, Incident | None] = {}
        threads: dict[tuple[str, str], tuple[Thread, int]] = {}
        for event in events:
            identity = event.incident_id
            if identity is None:
                continue
            if identity not in incidents:
                incidents[identity] = self._incident(identity)
                known = self._outbox.threads(identity)
                for channel in self._rules:
                    empty = Thread(channel=channel, incident_id=identity)
                    threads[channel, identity] = (known.get(channel, empty), 0)
            incident = incidents[identity]
            if incident is None:
                log.warning("alert_incident_missing", incident=identity, seq=event.seq)
                continue
            for channel, rules in self._rules.items():
                thread, count = threads[channel, identity]
                routed = route(event, incident, thread, rules, now_seconds)
                if routed.decision is Decision.QUEUED:
                    threads[channel, identity] = (routed.thread, count + 1)
                log.debug(
                    "alert_routed", channel=channel, seq=event.seq, decision=routed.decision.value
                )
        return [(thread, count) for thread, count in threads.values() if count]

    def _incident(self, incident_id: str) -> Incident | None:
        try:
            return self._journal.incident(incident_id)
        except ValidationError:
            # Another version wrote it. Its events are passed over, so that those behind get through.
            log.exception("alert_incident_unreadable", incident=incident_id)
            return None

    def _remind(self, now_seconds: float) -> int:
        changed: list[Thread] = []
        for incident in self._journal.incidents(state=IncidentState.OPEN):
            known = self._outbox.threads(incident.id)
            for channel, rules in self._rules.items():
                thread = known.get(channel, Thread(channel=channel, incident_id=incident.id))
                after = remind(thread, incident, rules, now_seconds)
                if after is not thread:
                    changed.append(after)
        if changed:
            self._outbox.save_routing(changed, self._outbox.cursor(), now_seconds)
        return len(changed)

    def _compose(self, now_seconds: float) -> int:
        composed = 0
        for thread in self._outbox.due_threads(now_seconds):
            incident = self._incident(thread.incident_id)
            if incident is None or thread.channel not in self._rules:
                log.warning(
                    "alert_thread_dropped", channel=thread.channel, incident=thread.incident_id
                )
                self._outbox.drop(thread)
                continue
            waiting = self._outbox.undelivered(thread.channel, thread.incident_id)
            message = self._message(thread, incident, waiting, now_seconds)
            self._outbox.put(taken(thread, now_seconds), message, waiting, now_seconds)
            composed += 1
        return composed

    def _message(
        self, thread: Thread, incident: Incident, waiting: Sequence[Entry], now_seconds: float
    ) -> AlertMessage:
        told = [step for entry in waiting for step in entry.message.steps]
        return build_message(
            incident,
            self._journal.events(incident_id=incident.id, limit=_MAX_EVENTS_A_MESSAGE),
            steps=[*told, *thread.steps],
            idempotency_key=idempotency_key(thread),
            now_seconds=now_seconds,
            dashboard_url=self._settings.public_dashboard_url,
        )

    def _deliver_all(self, now_seconds: float, started: float) -> tuple[int, int]:
        delivered = retried = 0
        for _ in range(_MAX_ROUNDS):
            now = now_seconds + self._clock() - started
            sent = self._deliver_round(now)
            delivered += sum(each is DeliveryResult.DELIVERED for each in sent)
            retried += sum(each is not DeliveryResult.DELIVERED for each in sent)
            if not sent:
                break
        return delivered, retried

    def _deliver_round(self, now_seconds: float) -> list[DeliveryResult]:
        """Try one message on each channel that is ready, all channels at the same time."""
        deadline = self._settings.send_deadline_seconds
        # The notifier's own limit comes first: it knows the better words for what went wrong.
        inner = _INNER_DEADLINE_SHARE * deadline
        started = self._clock()
        flying: list[tuple[str, Entry]] = []
        for name, notifier in self._notifiers.items():
            entry = self._next(name, now_seconds)
            if entry is not None:
                self._lanes[name].start(partial(notifier.send, entry.message, inner))
                flying.append((name, entry))
        results: list[DeliveryResult] = []
        for name, entry in flying:
            left = deadline - (self._clock() - started)
            delivery = self._land(name, max(0.001, left))
            now = now_seconds + self._clock() - started
            self._guarded("settle", partial(self._settle, entry, delivery, now))
            results.append(delivery.result)
        return results

    def _next(self, channel: str, now_seconds: float) -> Entry | None:
        if self._lanes[channel].busy:
            return None
        try:
            if self._outbox.channel(channel).not_before_seconds > now_seconds:
                return None
            return self._outbox.next_entry(channel, now_seconds)
        except sa.exc.SQLAlchemyError as error:
            log.exception("alert_stage_failed", stage="pick", channel=channel, error=str(error))
            return None

    def _land(self, channel: str, deadline_seconds: float) -> Delivery:
        try:
            return self._lanes[channel].wait(deadline_seconds)
        except DeadlineExceededError as error:
            return Delivery(DeliveryResult.RETRY, str(error))
        except Exception as error:
            log.exception("notifier_raised", channel=channel)
            return Delivery(DeliveryResult.RETRY, f"the notifier raised {type(error).__name__}")

    def _settle(self, entry: Entry, delivery: Delivery, now_seconds: float) -> int:
        channel = self._outbox.channel(entry.channel)
        if delivery.result is DeliveryResult.DELIVERED:
            self._outbox.finish(entry, EntryState.DELIVERED, now_seconds)
            pause = self._notifiers[entry.channel].min_interval_seconds
            self._save(channel, failures=0, until=now_seconds + pause)
            return 1
        log.warning(
            "alert_not_delivered",
            channel=entry.channel,
            key=entry.key,
            result=delivery.result.value,
            detail=delivery.detail,
            attempts=entry.attempts + 1,
        )
        if delivery.result is DeliveryResult.REJECTED:
            self._outbox.finish(entry, EntryState.PARKED, now_seconds, delivery.detail)
            return 0
        if delivery.result is DeliveryResult.RATE_LIMITED:
            wait = delivery.retry_after_seconds or self._backoff(channel.failures + 1)
            until = now_seconds + wait
            self._outbox.postpone(entry, until_seconds=until, error=delivery.detail, counts=False)
            self._save(channel, failures=channel.failures, until=until)
            return 0
        until = now_seconds + max(
            self._backoff(channel.failures + 1), delivery.retry_after_seconds or 0.0
        )
        self._outbox.postpone(entry, until_seconds=until, error=delivery.detail)
        self._save(channel, failures=channel.failures + 1, until=until)
        return 0

    def _save(self, channel: ChannelState, *, failures: int, until: float) -> None:
        changed = {"failures": failures, "not_before_seconds": until}
        self._outbox.save_channel(channel.model_copy(update=changed))

    def _backoff(self, failures: int) -> float:
        """Return the wait after so many failures in a row: doubling, bounded, with jitter."""
        doublings = min(failures - 1, 30)
        limit = self._settings.retry_limit_seconds
        wait = min(limit, self._settings.retry_base_seconds * 2.0**doublings)
        return wait * (1.0 - _JITTER * self._random.random())

    def _park(self, now_seconds: float) -> int:
        hours = self._settings.max_age_seconds / 3600
        parked: dict[str, tuple[Entry, str]] = {}
        for entry in self._outbox.expired(now_seconds - self._settings.max_age_seconds):
            parked[entry.key] = (entry, f"not delivered within {hours:g} h")
        for name in self._notifiers:
            for entry in self._outbox.overflow(name, self._settings.max_pending):
                parked[entry.key] = (entry, f"over {self._settings.max_pending} messages waited")
        for entry in self._outbox.exhausted(self._settings.max_attempts):
            parked[entry.key] = (entry, f"given up after {entry.attempts} tries")
        for entry, reason in parked.values():
            error = f"{reason}; last: {entry.error}" if entry.error else reason
            self._outbox.finish(entry, EntryState.PARKED, now_seconds, error)
        return len(parked)

    def _record(self, now_seconds: float) -> int:
        entries = self._outbox.unjournaled()
        for entry in entries:
            delivered = entry.state is EntryState.DELIVERED
            verb = "Told" if delivered else "Could not tell"
            why = "" if delivered else f" ({entry.error})"
            self._journal.append(
                EventKind.NOTIFICATION_SENT if delivered else EventKind.NOTIFICATION_FAILED,
                time_seconds=entry.finished_seconds or now_seconds,
                incident_id=entry.message.incident_id,
                actor=entry.channel,
                summary=f"{verb} {entry.channel}: {entry.message.headline}{why}",
                data={
                    "channel": entry.channel,
                    "key": entry.key,
                    "steps": [step.value for step in entry.message.steps],
                    "attempts": entry.attempts + (1 if delivered else 0),
                    "waited_seconds": round(now_seconds - entry.created_seconds, 3),
                    "error": entry.error,
                },
            )
            self._outbox.mark_journaled(entry)
        return len(entries)

    def _prune(self, now_seconds: float) -> int:
        last = self._pruned_seconds
        if last is not None and now_seconds - last < _PRUNE_INTERVAL_SECONDS:
            return 0
        self._pruned_seconds = now_seconds
        still_open = [each.id for each in self._journal.incidents(state=IncidentState.OPEN)]
        before = now_seconds - self._settings.keep_delivered_seconds
        return self._outbox.prune(before, still_open)


def _usable(notifier: Notifier) -> bool:
    support = notifier.is_supported()
    if not support.supported:
        log.info("notifier_off", channel=notifier.name, reason=support.reason, fix=support.fix)
    return support.supported
