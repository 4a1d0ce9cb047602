"""Alarms: the anomalies of successive ticks, joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.detection.contract import Detections
from analysis.findings import Anomaly, Direction
from collectors.contract import SeriesKey


@dataclass(frozen=True, slots=True)
class Alarm:
    """One anomaly from its first tick to its last."""

    key: SeriesKey
    onset_seconds: float
    raised_seconds: float
    last_seconds: float
    highest_score: float
    detectors: tuple[str, ...]
    direction: Direction = Direction.UP
    """That of the first tick."""


class AlarmRecorder:
    """Joins the anomalies of successive ticks into alarms."""

    def __init__(self) -> None:
        self._open: dict[SeriesKey, Alarm] = {}
        self._closed: list[Alarm] = []

    def take(self, detections: Detections) -> tuple[Sequence[Alarm], Sequence[Alarm]]:
        """Note one tick; return the alarms that began with it and those that it ended."""
        now = detections.time_seconds
        active = {SeriesKey(found.entity, found.signal): found for found in detections.anomalies}
        ended = [self._open.pop(key) for key in [key for key in self._open if key not in active]]
        self._closed.extend(ended)
        begun = []
        for key, anomaly in active.items():
            known = self._open.get(key)
            if known is None:
                begun.append(_first(key, anomaly, now))
                self._open[key] = begun[-1]
            else:
                self._open[key] = replace(
                    known,
                    last_seconds=now,
                    highest_score=max(anomaly.score, known.highest_score),
                    detectors=anomaly.detectors,
                )
        return begun, ended

    def alarms(self) -> list[Alarm]:
        """Return all alarms, also those that are not over, in the order of their raising."""
        return in_order((*self._closed, *self._open.values()))


def in_order(alarms: Sequence[Alarm]) -> list[Alarm]:
    """Return alarms as they were raised, ties by name."""
    return sorted(alarms, key=lambda alarm: (alarm.raised_seconds, alarm.key))


def _first(key: SeriesKey, anomaly: Anomaly, now: float) -> Alarm:
    return Alarm(
        key=key,
        onset_seconds=anomaly.onset_seconds,
        raised_seconds=now,
        last_seconds=now,
        highest_score=anomaly.score,
        detectors=anomaly.detectors,
        direction=anomaly.direction,
    )
