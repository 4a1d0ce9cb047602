from __future__ import annotations

from typing import Any

import pytest

from analysis.journal import Event, EventKind
from reporting.reports.statistics import channels, precision, wilson


def event(kind: EventKind, incident: str | None = "i1", **data: Any) -> Event:
    return Event(
        seq=1,
        time_seconds=1.0,
        kind=kind,
        incident_id=incident,
        actor="ana",
        summary="",
        data=data,
        previous_hash="",
        hash="",
    )


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81/263 and 0/20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(ValueError, match="trials"):
        wilson(1, 0)


def test_only_judged_incidents_count_and_the_newest_judgement_holds() -> None:
    judged = precision(
        ["i1", "i2", "i3", "i4"],
        [
            event(EventKind.FEEDBACK_GIVEN, "i1", answer="wrong"),
            event(EventKind.FEEDBACK_GIVEN, "i1", answer="right"),
            event(EventKind.FEEDBACK_GIVEN, "i2", answer="perhaps"),
            event(EventKind.FEEDBACK_GIVEN, "i3", answer="partly"),
            event(EventKind.FEEDBACK_GIVEN, "elsewhere", answer="right"),
        ],
    )
    assert (judged.incidents, judged.judged, judged.right, judged.partly) == (4, 2, 1, 1)
    assert judged.precision == 0.5
    assert precision(["i1"], []).precision is None


def test_channels_count_what_came_and_what_was_given_up() -> None:
    rows = channels(
        [
            event(EventKind.NOTIFICATION_SENT, channel="slack", waited_seconds=2.0),
            event(EventKind.NOTIFICATION_SENT, channel="slack", waited_seconds=4.0),
            event(EventKind.NOTIFICATION_FAILED, channel="pager"),
        ]
    )
    assert [(row.channel, row.delivered, row.failed) for row in rows] == [
        ("pager", 0, 1),
        ("slack", 2, 0),
    ]
    assert rows[1].median_wait_seconds == 3.0
