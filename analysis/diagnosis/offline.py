"""Explaining a file of metrics: ``galen diagnose FILE --onset T``.

Canonical signals of GPU inference are ranked by the cause catalogue. For metrics that it does not know
the answer is the place: which entity the symptom comes from, by change, by moving together and by
conservation along the calls. Where the symptom and its best explanation are both nothing unusual in
their own pasts, the answer is that there is no fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.diagnosis.causes import CauseCatalogue
from analysis.diagnosis.offline_catalogue import canonical_columns, to_detections
from analysis.diagnosis.offline_change import Family, family_of
from analysis.diagnosis.offline_frame import Edges, FrameError, split_column
from analysis.diagnosis.offline_sources import (
    Source,
    Symptom,
    find_symptom,
    measure,
    rank_sources,
)
from analysis.diagnosis.ranking import Diagnoser
from analysis.diagnosis.settings import DiagnosisSettings, OfflineSettings
from analysis.diagnosis.words import number_words
from analysis.findings import Direction, Evidence, Finding, Hypothesis, Verdict

_UNKNOWN_NATS = 0.5
"""Log-odds of "unknown": a source needs a little more than nothing in its favour."""
_MOST_NATS = 8.0

_CAUSES = {
    Family.LATENCY: ("latency_source", "Time is lost here"),
    Family.ERROR: ("error_source", "Requests fail here"),
    Family.AVAILABILITY: ("error_source", "Requests fail here"),
}
_OTHER_CAUSE = ("anomalous_component", "Changed before or with the symptom")


class OfflineDiagnosis(Finding):
    """What a file says."""

    verdict: Verdict
    hypotheses: tuple[Hypothesis, ...]
    """The most probable first."""
    symptom: str | None = None
    """The column that was explained."""
    notes: tuple[str, ...] = ()
    """What a person should know about the file."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a hypothesis stands among the others."""

    rank: int
    confidence: float
    log_odds: float


@dataclass(frozen=True, slots=True)
class _Prepared:
    frame: pd.DataFrame
    onset_row: int
    edges: Edges
    notes: tuple[str, ...]


def diagnose_frame(
    frame: pd.DataFrame,
    onset: float,
    *,
    target: str | None = None,
    edges: Edges | None = None,
    settings: OfflineSettings | None = None,
    diagnosis: DiagnosisSettings | None = None,
    causes: CauseCatalogue | None = None,
) -> OfflineDiagnosis:
    """Explain what happened in a file of metrics from an onset on.

    Args:
        frame: one row a time, sorted; the index holds seconds, the columns are ``entity:signal``.
        onset: the time of the first row that may be abnormal, about; in the index' seconds.
        target: the column whose trouble is explained; the least likely change when left out.
        edges: pairs (source, target) of entities: the source calls the target.
        settings: of the off-line diagnosis.
        diagnosis: how the catalogue weighs evidence.
        causes: the cause catalogue; the bundled one when left out.

    Raises:
        FrameError: when the file, the onset and the target do not fit together.
    """
    settings = settings or OfflineSettings()
    prepared = _prepare(frame, onset, target, edges or (), settings)
    if _is_canonical(prepared.frame, target, settings):
        diagnoser = Diagnoser(diagnosis or DiagnosisSettings(), causes)
        return _by_catalogue(prepared, diagnoser, target)
    return _by_source(prepared, target, settings)


def _is_canonical(frame: pd.DataFrame, target: str | None, settings: OfflineSettings) -> bool:
    known = canonical_columns(frame)
    if target is not None and target not in known:
        return False
    return len({split_column(column).signal for column in known}) >= settings.min_catalogue_signals


def _prepare(
    frame: pd.DataFrame,
    onset: float,
    target: str | None,
    edges: Edges,
    settings: OfflineSettings,
) -> _Prepared:
    keys = {column: split_column(column) for column in frame.columns}
    times = frame.index.to_numpy(dtype=float)
    if not len(times):
        raise FrameError("there are no rows to explain")
    if target is not None and target not in keys:
        close = [column for column in keys if target.lower() in column.lower()][:3]
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise FrameError(f"target {target!r} is not a column{hint}")
    if not times[0] < onset <= times[-1]:
        raise FrameError(
            f"onset {onset:.0f} is not between the first row ({times[0]:.0f}) and the last "
            f"({times[-1]:.0f}); it is in the seconds of the first column"
        )
    onset_row = int(np.searchsorted(times, onset))
    if onset_row < settings.min_normal_rows:
        raise FrameError(
            f"only {onset_row} rows before the onset; {settings.min_normal_rows} are needed to know "
            "what is normal"
        )
    entities = {key.entity for key in keys.values()}
    lost = sorted({name for edge in edges for name in edge if name not in entities})
    notes = (f"{len(lost)} entities of the edges have no metrics: {', '.join(lost[:5])}",)
    return _Prepared(frame, onset_row, edges, notes if lost else ())


# --- with the catalogue --------------------------------------------------------------------------


def _by_catalogue(
    prepared: _Prepared, diagnoser: Diagnoser, target: str | None
) -> OfflineDiagnosis:
    canonical = to_detections(prepared.frame, prepared.onset_row)
    detections = canonical.detections
    scope = {key.entity for key in detections.states}
    found = diagnoser.diagnose(detections.time_seconds, detections, scope)
    strongest = max(detections.anomalies, key=lambda each: each.score, default=None)
    symptom = target
    if symptom is None and strongest is not None:
        symptom = f"{canonical.names.get(strongest.entity, strongest.entity)}:{strongest.signal}"
    return OfflineDiagnosis(
        verdict=found.verdict,
        hypotheses=tuple(_renamed(each, canonical.names) for each in found.hypotheses),
        symptom=symptom,
        notes=prepared.notes,
    )


def _renamed(hypothesis: Hypothesis, names: Mapping[str, str]) -> Hypothesis:
    def back(listed: tuple[Evidence, ...]) -> tuple[Evidence, ...]:
        return tuple(
            each.model_copy(update={"entity": names.get(each.entity, each.entity)})
            for each in listed
        )

    return hypothesis.model_copy(
        update={
            "entity": names.get(hypothesis.entity, hypothesis.entity),
            "evidence": back(hypothesis.evidence),
            "against": back(hypothesis.against),
        }
    )


# --- by source -----------------------------------------------------------------------------------


def _by_source(
    prepared: _Prepared, target: str | None, settings: OfflineSettings
) -> OfflineDiagnosis:
    frame, onset_row = prepared.frame, prepared.onset_row
    symptom: Symptom | None = None
    if target is None:
        symptom = find_symptom(frame, onset_row, prepared.edges, settings)
    else:
        change = measure(frame, target, onset_row, settings)
        if change is not None:
            key = split_column(target)
            symptom = Symptom(target, key, family_of(key.signal), change)
    if symptom is None:
        return OfflineDiagnosis(
            verdict=Verdict.UNKNOWN,
            hypotheses=(_plain(_Place(1, 1.0, 0.0), "unknown", "There is nothing to compare", ""),),
            symptom=target,
            notes=(*prepared.notes, "no column has values both before and after the onset"),
        )
    sources = rank_sources(frame, onset_row, symptom, prepared.edges, settings)
    return _conclude(prepared, symptom, sources, settings)


def _conclude(
    prepared: _Prepared, symptom: Symptom, sources: Sequence[Source], settings: OfflineSettings
) -> OfflineDiagnosis:
    best = sources[0] if sources else None
    joint = symptom.change.p_value
    if best is not None and best.entity != symptom.key.entity:
        joint *= best.change.p_value
    leading_nats = best.log_odds if best is not None else _UNKNOWN_NATS
    doubt = math.log(max(joint, 1e-300) / settings.fault_joint_p)
    no_fault = max(leading_nats, _UNKNOWN_NATS) + max(-_MOST_NATS, min(_MOST_NATS, doubt))
    scored: list[tuple[float, Source | str]] = [(each.log_odds, each) for each in sources]
    scored += [(no_fault, "no_fault"), (_UNKNOWN_NATS, "unknown")]
    scored.sort(key=lambda each: -each[0])
    weights = np.exp([log_odds - scored[0][0] for log_odds, _ in scored])
    confidences = (weights / weights.sum()).tolist()
    hypotheses = tuple(
        _hypothesis(what, _Place(rank, confidence, log_odds), symptom)
        for rank, ((log_odds, what), confidence) in enumerate(
            zip(scored, confidences, strict=True), start=1
        )
        if rank <= settings.max_hypotheses
    )
    leading = scored[0][1]
    verdict = Verdict(leading) if isinstance(leading, str) else Verdict.FAULT
    return OfflineDiagnosis(
        verdict=verdict,
        hypotheses=hypotheses,
        symptom=symptom.column,
        notes=prepared.notes,
    )


def _hypothesis(what: Source | str, place: _Place, symptom: Symptom) -> Hypothesis:
    if what == "no_fault":
        words = f"What {symptom.column} did has happened before by itself"
        return _plain(place, "no_fault", words, symptom.key.entity)
    if isinstance(what, str):
        words = "No metric in the file explains it"
        return _plain(place, "unknown", words, symptom.key.entity)
    cause, title = _CAUSES.get(symptom.family, _OTHER_CAUSE)
    if family_of(split_column(what.column).signal) is not symptom.family:
        cause, title = _OTHER_CAUSE
    reasons = _reasons(what, symptom)
    return Hypothesis(
        rank=place.rank,
        cause=cause,
        title=title,
        entity=what.entity,
        confidence=place.confidence,
        log_odds=place.log_odds,
        evidence=tuple(each for each in reasons if each.weight > 0),
        against=tuple(each for each in reasons if each.weight <= 0),
        action="page_human",
        remedies=("page_human",),
        next_check=f"Compare {what.entity} with what it calls at the time of the onset.",
    )


def _plain(place: _Place, cause: str, title: str, entity: str) -> Hypothesis:
    return Hypothesis(
        rank=place.rank,
        cause=cause,
        title=title,
        entity=entity,
        confidence=place.confidence,
        log_odds=place.log_odds,
    )


def _reasons(source: Source, symptom: Symptom) -> list[Evidence]:
    change, signal = source.change, split_column(source.column).signal
    was = f"normally {number_words(change.low)} to {number_words(change.high)}"
    own = max(0.0, source.own)
    reached = (
        f"{source.column} reached {number_words(change.observed)}, {was} "
        f"({number_words(change.z)} robust standard deviations)"
    )
    together = f"it moves with {symptom.column} (correlation {source.correlation:.2f})"
    explains = (
        f"by itself, without what it calls, it explains {own:.0%} of how {symptom.column} moved"
    )
    statements = (
        (source.change_nats, reached),
        (source.correlation_nats, together),
        (source.share_nats, explains),
    )
    up = Direction.UP if change.sign > 0 else Direction.DOWN
    return [
        Evidence(
            entity=source.entity,
            signal=signal,
            direction=up,
            baseline=change.baseline,
            observed=change.observed,
            low=change.low,
            high=change.high,
            score=change.z,
            weight=weight,
            statement=statement,
        )
        for weight, statement in statements
    ]
