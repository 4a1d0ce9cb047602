"""The few statistics of a report, with their definitions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np

from analysis.findings import IncidentState
from analysis.journal import Event, EventKind
from reporting.reports.model import ChannelFigures, Durations, IncidentRow, Precision

_Z_95 = 1.959963984540054
_ANSWERS = ("right", "partly", "wrong")


def durations(incidents: Sequence[IncidentRow]) -> tuple[Durations, ...]:
    """Return time to detect and time to repair over the incidents that opened in the window."""
    detect = [row.detect_seconds for row in incidents if row.detect_seconds is not None]
    repair = [row.repair_seconds for row in incidents if row.repair_seconds is not None]
    still_open = sum(row.state is IncidentState.OPEN for row in incidents)
    return (
        _durations(
            "Time to detect",
            "from the start of the fault, known where it was injected, to the opening of the incident",
            detect,
            len(incidents) - len(detect),
            "the start of the fault is not known",
        ),
        _durations(
            "Time to repair",
            "from the opening of the incident to its resolution",
            repair,
            still_open,
            "still open",
        ),
    )


def _durations(
    name: str, definition: str, seconds: Sequence[float], not_counted: int, because: str
) -> Durations:
    known = len(seconds) > 0
    return Durations(
        name=name,
        definition=definition,
        count=len(seconds),
        median_seconds=median(seconds) if known else None,
        p90_seconds=float(np.quantile(seconds, 0.9)) if known else None,
        longest_seconds=max(seconds) if known else None,
        not_counted=not_counted,
        not_counted_because=because,
    )


def precision(incident_ids: Iterable[str], feedback: Iterable[Event]) -> Precision:
    """Return how many of the diagnoses that people judged were right.

    A judgement is a ``FEEDBACK_GIVEN`` event with ``{"answer": "right" | "partly" | "wrong"}``; the
    newest of each incident counts. The interval is Wilson's (Wilson 1927), which holds for small
    numbers too.
    """
    ids = set(incident_ids)
    answers: dict[str, str] = {}
    for event in feedback:
        answer = event.data.get("answer")
        if event.kind is EventKind.FEEDBACK_GIVEN and answer in _ANSWERS and event.incident_id:
            answers[event.incident_id] = answer
    judged = [answer for incident, answer in answers.items() if incident in ids]
    right, partly = judged.count("right"), judged.count("partly")
    if not judged:
        return Precision(incidents=len(ids), judged=0, right=0)
    low, high = wilson(right, len(judged))
    return Precision(
        incidents=len(ids),
        judged=len(judged),
        right=right,
        partly=partly,
        precision=right / len(judged),
        low=low,
        high=high,
    )


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion.

    >>> [round(bound, 4) for bound in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials and trials > 0: {successes}, {trials}")
    share, square = successes / trials, _Z_95**2
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    half = math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    half *= _Z_95 / (1 + square / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def channels(events: Iterable[Event]) -> tuple[ChannelFigures, ...]:
    """Return how the alerts of each channel went, from the journal's notes of them."""
    sent: dict[str, list[float | None]] = {}
    failed: dict[str, int] = {}
    for event in events:
        channel = str(event.data.get("channel", event.actor))
        if event.kind is EventKind.NOTIFICATION_SENT:
            waited = event.data.get("waited_seconds")
            known = float(waited) if isinstance(waited, int | float) else None
            sent.setdefault(channel, []).append(known)
        elif event.kind is EventKind.NOTIFICATION_FAILED:
            failed[channel] = failed.get(channel, 0) + 1
    rows = []
    for channel in sorted({*sent, *failed}):
        waits = [wait for wait in sent.get(channel, []) if wait is not None]
        rows.append(
            ChannelFigures(
                channel=channel,
                delivered=len(sent.get(channel, [])),
                failed=failed.get(channel, 0),
                median_wait_seconds=median(waits) if waits else None,
            )
        )
    return tuple(rows)
