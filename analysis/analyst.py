"""One tick of thinking: detect, group, diagnose, write down.

The stages do not reach back, and one that fails is logged and does not stop the others: without
detection there is nothing new to group, but open incidents are still told to those that heal them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from analysis.detection.contract import Detections, FloatArray
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.seasonal_fit import SeasonalShape
from analysis.detection.state_file import DetectionStateError
from analysis.diagnosis.causes import CauseCatalogue, catalogue
from analysis.diagnosis.context import BeforeAndNow
from analysis.diagnosis.memory import EvidenceMemory
from analysis.diagnosis.ranking import Diagnoser
from analysis.diagnosis.words import shift_words
from analysis.findings import Incident, IncidentState, LevelShift
from analysis.history import History
from analysis.incident_changes import ChangeKind, IncidentChange, IncidentTick
from analysis.incidents import IncidentTracker
from analysis.journal import EventKind, Journal
from analysis.linkbook import LinkBook
from analysis.settings import AnalysisSettings
from collectors.contract import Sample, SeriesKey
from collectors.links import Link

_log = structlog.get_logger(__name__)

Result = TypeVar("Result")

_EVENTS = {
    ChangeKind.OPENED: EventKind.INCIDENT_OPENED,
    ChangeKind.REOPENED: EventKind.INCIDENT_OPENED,
    ChangeKind.UPDATED: EventKind.INCIDENT_UPDATED,
    ChangeKind.RESOLVED: EventKind.INCIDENT_RESOLVED,
}


class Pipeline(Protocol):
    """What the analyst needs of detection; :class:`DetectionPipeline` is the one that is used."""

    def tick(self, now_seconds: float, row: FloatArray) -> Detections:
        """Score the newest row of the history."""

    def adopt_shapes(self, shapes: Mapping[SeriesKey, SeasonalShape]) -> None:
        """Use seasonal shapes that were fitted on stored history."""

    def save(self, path: Path) -> None:
        """Write what has to be kept over a restart."""

    def load(self, path: Path) -> bool:
        """Take up what was written; False where there is nothing."""

    def close(self) -> None:
        """Release what detection holds."""


_MAX_UNWRITTEN = 1000
"""Changes kept while the journal cannot be written; an hour of trouble makes far fewer."""


@dataclass(frozen=True, slots=True)
class AnalystTick:
    """What one tick found."""

    detections: Detections
    incidents: Sequence[Incident]
    """Those that are open now, the oldest first."""
    changes: Sequence[IncidentChange]


class Analyst:
    """Turns samples into incidents in the journal.

    At construction open incidents are taken up again from the journal and the state of detection from
    its file; :meth:`save` writes that file.

    Args:
        settings: the ``[analysis]`` table.
        journal: where incidents and events are written.
        history: the recent past; :meth:`tick` appends to it.
        state_path: file that keeps detection's state over a restart; none when left out.
        pipeline: detection over that history, in place of the bundled one.
        causes: the cause catalogue, in place of the bundled one.
    """

    def __init__(
        self,
        settings: AnalysisSettings,
        journal: Journal,
        history: History,
        *,
        state_path: Path | None = None,
        pipeline: Pipeline | None = None,
        causes: CauseCatalogue | None = None,
    ) -> None:
        self._journal = journal
        self._history = history
        self._state_path = state_path
        self._pipeline = pipeline or DetectionPipeline(settings.detection, history)
        causes = causes or catalogue()
        self._links = LinkBook()
        self._tracker = IncidentTracker(
            settings.incidents,
            Diagnoser(settings.diagnosis, causes, self._links),
            EvidenceMemory(settings.memory, causes),
            BeforeAndNow(settings.context, causes, history),
        )
        self._unwritten: deque[IncidentChange | LevelShift] = deque()
        self._now_seconds = 0.0
        self._take_up()

    @property
    def suppressed(self) -> int:
        """How many groups of anomalies diagnosis has called no fault since the start."""
        return self._tracker.suppressed

    def tick(
        self, now_seconds: float, samples: Sequence[Sample], links: Sequence[Link] = ()
    ) -> AnalystTick:
        """Take in one tick and return what it means.

        Args:
            now_seconds: the time of the tick.
            samples: what was measured.
            links: what was said about where things run.
        """
        self._now_seconds = now_seconds
        self._links.note(now_seconds, links)
        row = self._history.append(now_seconds, samples)
        detections = self._guarded(
            "detection",
            lambda: self._pipeline.tick(now_seconds, row),
            Detections(now_seconds, (), {}),
        )
        nothing = IncidentTick(self._tracker.open_incidents, (), ())
        if detections.states:
            found = self._guarded("incidents", lambda: self._tracker.tick(detections), nothing)
        else:
            found = nothing
        self._write(found, detections.shifts)
        return AnalystTick(detections, found.incidents, found.changes)

    def adopt_shapes(self, shapes: Mapping[SeriesKey, SeasonalShape]) -> None:
        """Let detection use seasonal shapes that were fitted on stored history; between two ticks."""
        self._pipeline.adopt_shapes(shapes)

    def save(self) -> None:
        """Write detection's state to its file, so that a restart does not have to learn anew."""
        if self._state_path is not None:
            self._pipeline.save(self._state_path)

    def close(self) -> None:
        """Release what detection holds. The journal stays open: it belongs to the caller."""
        self._pipeline.close()

    def _take_up(self) -> None:
        restored = self._journal.incidents(state=IncidentState.OPEN)
        self._tracker.restore(restored)
        if restored:
            _log.info("incidents_taken_up", incidents=[each.id for each in restored])
        if self._state_path is None:
            return
        try:
            if self._pipeline.load(self._state_path):
                _log.info("detection_state_taken_up", path=str(self._state_path))
        except DetectionStateError as error:
            _log.warning("detection_starts_anew", reason=str(error))

    def _write(self, found: IncidentTick, shifts: Sequence[LevelShift]) -> None:
        # A change that could not be written is tried again, in order, before anything newer.
        self._unwritten.extend((*found.changes, *shifts))
        while len(self._unwritten) > _MAX_UNWRITTEN:
            lost = self._unwritten.popleft()
            if isinstance(lost, LevelShift):
                _log.error("level_shift_lost", entity=lost.entity, signal=lost.signal)
            else:
                _log.error("incident_change_lost", incident=lost.incident.id, kind=lost.kind.value)
        while self._unwritten:
            record = partial(self._record, self._unwritten[0])
            if not self._guarded("journal", record, False):
                return
            self._unwritten.popleft()
        for incident in found.refreshed:
            self._guarded("journal", partial(self._journal.save_incident, incident), None)

    def _record(self, change: IncidentChange | LevelShift) -> bool:
        if isinstance(change, LevelShift):
            self._record_shift(change)
            return True
        self._journal.save_incident(change.incident)
        self._journal.append(
            _EVENTS[change.kind],
            time_seconds=change.incident.updated_seconds,
            summary=change.summary,
            incident_id=change.incident.id,
            data=change.data,
        )
        return True

    def _record_shift(self, shift: LevelShift) -> None:
        words = f"{shift.signal} of {shift.entity} {shift_words(shift)}; this is its normal now"
        self._journal.append(
            EventKind.LEVEL_SHIFTED,
            time_seconds=self._now_seconds,
            summary=words,
            data=shift.model_dump(mode="json"),
        )

    def _guarded(self, stage: str, work: Callable[[], Result], otherwise: Result) -> Result:
        try:
            return work()
        except Exception:  # noqa: BLE001 - the watch loop outlives any fault of one stage
            _log.exception("analysis_stage_failed", stage=stage)
            return otherwise
