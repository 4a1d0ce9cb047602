"""What the watch loop is doing, in a small file that the exporter reads.

The series store keeps what was measured, the journal what happened. How Galen itself fares, and how
unusual each series is at this moment, is of neither kind: it is replaced at every tick.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from analysis.detection.contract import Detections, Realised
from analysis.detection.states import readings
from collectors.contract import Sample

_MOST_ANOMALIES = 200
_MOST_ENTITIES = 2000


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class EntityScore(_Frozen):
    """The highest score of an entity's series."""

    entity: str
    score: float
    simulated: bool = False


class SignalScore(_Frozen):
    """The score of one anomalous series."""

    entity: str
    signal: str
    score: float
    direction: str
    simulated: bool = False


class RealisedScore(_Frozen):
    """How often a detector called normal values unusual."""

    detector: str
    nominal_rate: float
    above: float
    seen: float
    worst_entity: str | None = None
    worst_signal: str = ""
    worst_rate: float = 0.0
    simulated: bool = False


class WatchStatus(_Frozen):
    """The state of the watch loop after one tick."""

    started_seconds: float
    interval_seconds: float
    time_seconds: float
    tick_seconds: float
    ticks: int
    samples: int
    series: int
    detection_state_bytes: int = 0
    part_failures: dict[str, int]
    anomalies: int
    """All of them; ``worst`` holds those with the highest scores."""
    entities: Sequence[EntityScore]
    worst: Sequence[SignalScore]
    realised: Sequence[RealisedScore] = ()
    config_reload_successful: bool = True
    config_reload_success_seconds: float | None = None


class StatusError(Exception):
    """There is no status, or it cannot be read."""


class StatusBoard:
    """Counts what the watch loop does and writes it down.

    Args:
        path: the file.
        started_seconds: when the loop started.
        interval_seconds: the time between two ticks.
    """

    def __init__(self, path: Path, *, started_seconds: float, interval_seconds: float) -> None:
        self._path = path
        self._started_seconds = started_seconds
        self._interval_seconds = interval_seconds
        self._failures: Counter[str] = Counter()
        self._ticks = 0
        self._samples = 0
        # What the loop started with was read successfully, or it would not run.
        self._reload_successful = True
        self._reload_success_seconds = started_seconds

    def failed(self, part: str) -> None:
        """Count a failure of a part of the loop."""
        self._failures[part] += 1

    def reloaded(self, successful: bool, now_seconds: float) -> None:
        """Note whether the newest attempt to read the configuration again succeeded."""
        self._reload_successful = successful
        if successful:
            self._reload_success_seconds = now_seconds

    def write(
        self,
        now_seconds: float,
        tick_seconds: float,
        samples: Sequence[Sample],
        found: Detections | None,
    ) -> None:
        """Count a tick and replace the file.

        Raises:
            OSError: when it cannot be written.
        """
        self._ticks += 1
        self._samples += len(samples)
        real = {one.entity for one in samples if one.labels.get("simulated") != "true"}
        # A real host that has a simulated GPU is real.
        simulated = {one.entity for one in samples} - real
        anomalies = () if found is None else found.anomalies
        status = WatchStatus(
            started_seconds=self._started_seconds,
            interval_seconds=self._interval_seconds,
            time_seconds=now_seconds,
            tick_seconds=tick_seconds,
            ticks=self._ticks,
            samples=self._samples,
            series=0 if found is None else len(found.states),
            detection_state_bytes=0 if found is None else found.state_bytes,
            part_failures=dict(self._failures),
            anomalies=len(anomalies),
            entities=() if found is None else list(_by_entity(found, simulated)),
            worst=[
                SignalScore(
                    entity=one.entity, signal=one.signal, score=one.score,
                    direction=one.direction.value, simulated=one.simulated,
                )
                for one in heapq.nlargest(_MOST_ANOMALIES, anomalies, key=lambda one: one.score)
            ],
            realised=[] if found is None else [_realised(one, simulated) for one in found.realised],
            config_reload_successful=self._reload_successful,
            config_reload_success_seconds=self._reload_success_seconds,
        )  # fmt: skip
        # A reader must never see half of a file; that it survives a power failure does not matter.
        draft = self._path.with_name(f"{self._path.name}.new")
        draft.write_text(status.model_dump_json(), "utf-8")
        draft.replace(self._path)


def read_status(path: Path) -> WatchStatus:
    """Return the newest status.

    Raises:
        StatusError: when there is none, or it is of another version.
    """
    try:
        return WatchStatus.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StatusError(f"{path}: {error.strerror}; does `galen watch` run?") from error
    except ValidationError as error:
        raise StatusError(f"{path}: not a status of this version of Galen") from error


def _realised(one: Realised, simulated: set[str]) -> RealisedScore:
    entity, signal = one.worst or (None, "")
    return RealisedScore(
        detector=one.detector,
        nominal_rate=one.nominal_rate,
        above=one.above,
        seen=one.seen,
        worst_entity=entity,
        worst_signal=signal,
        worst_rate=one.worst_rate,
        simulated=entity in simulated,
    )


def _by_entity(found: Detections, simulated: set[str]) -> Iterable[EntityScore]:
    highest: dict[str, float] = {}
    for key, _, score in readings(found.states):
        if score >= highest.get(key.entity, 0.0):
            highest[key.entity] = score
    for entity in heapq.nlargest(_MOST_ENTITIES, highest, key=highest.__getitem__):
        yield EntityScore(entity=entity, score=highest[entity], simulated=entity in simulated)
