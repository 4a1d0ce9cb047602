"""What detection over a fleet found, as it is printed and written."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from analysis.detection.fleet.results import FleetResult, SeriesSummary
from analysis.detection.fleet.task import ShardTask, Window
from analysis.detection.replaying.alarms import Alarm


class FoundAlarm(BaseModel):
    """One anomaly from its first tick to its last."""

    entity: str
    signal: str
    direction: str
    onset_seconds: float
    raised_seconds: float
    last_seconds: float
    highest_score: float
    detectors: list[str]

    @classmethod
    def of(cls, alarm: Alarm) -> FoundAlarm:
        """Shape an alarm for programs."""
        return cls(
            entity=alarm.key.entity,
            signal=alarm.key.signal,
            direction=alarm.direction.value,
            onset_seconds=alarm.onset_seconds,
            raised_seconds=alarm.raised_seconds,
            last_seconds=alarm.last_seconds,
            highest_score=alarm.highest_score,
            detectors=list(alarm.detectors),
        )


class EntityFindings(BaseModel):
    """What was seen of one entity."""

    entity: str
    series: int
    alarms: int
    anomalous_share: float
    """Of the ticks of all its series, those at which one was anomalous."""
    highest_score: float
    highest_at_seconds: float | None
    worst_signal: str


class ShardFault(BaseModel):
    """A shard whose series were not scored, and why."""

    shard: int
    entities: list[str]
    error: str
    fix: str
    worker: str


class Stages(BaseModel):
    """Seconds of all workers together."""

    reading: float
    reading_busy: float
    fitting: float
    scoring: float


class FleetFindings(BaseModel):
    """The result of a run over a fleet."""

    source: str
    start_seconds: float
    end_seconds: float
    step_seconds: float
    ticks: int
    series: int
    shapes: int
    alarms: list[FoundAlarm]
    entities: list[EntityFindings]
    """All of them, those with alarms and high scores first."""
    digest: str
    """Of every score of every series: equal digests are equal scores, bit for bit."""
    shards: int
    failed: list[ShardFault]
    incomplete: list[str]
    """Why answers of the server were incomplete."""
    stopped: bool
    workers: list[str]
    lost_workers: int
    seconds: float
    spent: Stages

    @classmethod
    def of(
        cls, result: FleetResult, tasks: Sequence[ShardTask], *, source: str, window: Window
    ) -> FleetFindings:
        """Shape what a run found."""
        alarms = result.alarms()
        spent = result.spent
        return cls(
            source=source,
            start_seconds=window.start_seconds,
            end_seconds=window.end_seconds,
            step_seconds=window.step_seconds,
            ticks=result.ticks,
            series=sum(len(one.series) for one in result.done),
            shapes=sum(one.shapes for one in result.done),
            alarms=[FoundAlarm.of(alarm) for alarm in alarms],
            entities=_entities(list(result.series()), alarms, result.ticks),
            digest=result.digest(),
            shards=len(tasks),
            failed=[
                ShardFault(
                    shard=one.number,
                    entities=list(one.entities),
                    error=one.error,
                    fix=one.fix,
                    worker=one.worker,
                )
                for one in result.failed
            ],
            incomplete=result.notes(),
            stopped=result.stopped,
            workers=sorted({one.worker for one in result.done}),
            lost_workers=result.lost_workers,
            seconds=result.seconds,
            spent=Stages(
                reading=spent.reading,
                reading_busy=spent.reading_busy,
                fitting=spent.fitting,
                scoring=spent.scoring,
            ),
        )

    @property
    def whole(self) -> bool:
        """Whether every series was scored, on all that the server has."""
        return not self.failed and not self.incomplete and not self.stopped


def _entities(
    series: Sequence[SeriesSummary], alarms: Sequence[Alarm], ticks: int
) -> list[EntityFindings]:
    by_entity: dict[str, list[SeriesSummary]] = {}
    for one in series:
        by_entity.setdefault(one.key.entity, []).append(one)
    counts: dict[str, int] = {}
    for alarm in alarms:
        counts[alarm.key.entity] = counts.get(alarm.key.entity, 0) + 1
    found = []
    for entity, members in by_entity.items():
        worst = max(members, key=lambda one: (one.anomalous_ticks > 0, one.highest_score))
        anomalous = sum(one.anomalous_ticks for one in members)
        found.append(
            EntityFindings(
                entity=entity,
                series=len(members),
                alarms=counts.get(entity, 0),
                anomalous_share=anomalous / max(ticks * len(members), 1),
                highest_score=worst.highest_score,
                highest_at_seconds=worst.highest_at_seconds,
                worst_signal=worst.key.signal,
            )
        )
    return sorted(found, key=lambda one: (-one.alarms, -one.highest_score, one.entity))


def write_alarms(alarms: Sequence[FoundAlarm], path: Path) -> None:
    """Write a line an alarm, as CSV."""
    names = list(FoundAlarm.model_fields)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(names)
        for alarm in alarms:
            values = alarm.model_dump() | {"detectors": " ".join(alarm.detectors)}
            rows.writerow([values[name] for name in names])
