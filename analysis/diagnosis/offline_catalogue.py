"""From a file of canonical signals to what detection would have said, so that the catalogue can rank.

Entities in a file need not be named as Galen names them: one without a ``kind/name`` path gets the kind
that its signals have, and stands on one host with all others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.detection.contract import Detections, SignalState
from analysis.diagnosis.offline_change import FloatArray
from analysis.diagnosis.offline_frame import split_column
from analysis.findings import Anomaly, Direction
from collectors.contract import SeriesKey
from collectors.entities import entity as entity_name
from collectors.entities import kind_of, top_of
from collectors.signals import Bad, Kind, Layer, Signal, catalogue

_KINDS = frozenset({"service", "host", "gpu", "collector"})
_HOST = "host/file"
_SIGMAS = 4.5
"""Robust standard deviations that score 1, as in live detection."""
_RELATIVE = 0.25
"""The least share of the level that scores 1."""
_DEADBANDS = 2.0
"""The least deviation that scores 1, in deadbands of the signal catalogue."""
_SETTLED_ROWS = 3
_TAIL = 0.02
_WORST = 0.1


@dataclass(frozen=True, slots=True)
class CanonicalFrame:
    """What the canonical columns of a file say, and how its entities are called in it."""

    detections: Detections
    names: Mapping[str, str]
    """The file's name of each entity."""


def canonical_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns whose signal the catalogue knows."""
    known = catalogue()
    return [column for column in frame.columns if split_column(column).signal in known]


def to_detections(frame: pd.DataFrame, onset_row: int) -> CanonicalFrame:
    """Say of each canonical column how it deviates from its own past after the onset."""
    columns = canonical_columns(frame)
    places = _places([split_column(column) for column in columns])
    times = frame.index.to_numpy(dtype=float)
    states: dict[SeriesKey, SignalState] = {}
    for column in columns:
        given = split_column(column)
        key = SeriesKey(places[given.entity], given.signal)
        values = frame[column].to_numpy(dtype=float)
        states[key] = _state(key, catalogue()[given.signal], times, values, onset_row)
    now = float(times[-1])
    anomalies = [_anomaly(state, now) for state in states.values() if state.active]
    names = {place: given for given, place in places.items()}
    return CanonicalFrame(Detections(now, anomalies, states), names)


def _places(keys: list[SeriesKey]) -> dict[str, str]:
    """Give every entity of a file a name of Galen's, on one host unless the file names hosts."""
    layers: dict[str, Counter[Layer]] = {}
    for key in keys:
        layers.setdefault(key.entity, Counter())[catalogue()[key.signal].layer] += 1
    hosts = sorted(name for name in layers if kind_of(top_of(name)) == "host" and "/" in name)
    host = top_of(hosts[0]) if hosts else _HOST
    places: dict[str, str] = {}
    for name, counts in layers.items():
        if "/" in name and kind_of(name) in _KINDS and not name.startswith("gpu/"):
            places[name] = name
            continue
        short = re.sub(r"^(service|host|gpu|collector)/", "", name)
        layer = counts.most_common(1)[0][0]
        if layer is Layer.GPU:
            places[name] = f"{host}/{entity_name('gpu', short)}"
        elif layer in {Layer.HOST, Layer.STORAGE, Layer.NETWORK}:
            places[name] = host if host not in places.values() else entity_name("host", short)
        elif layer is Layer.MONITORING:
            places[name] = entity_name("collector", short)
        else:
            places[name] = entity_name("service", short)
    return places


def _state(
    key: SeriesKey, signal: Signal, times: FloatArray, values: FloatArray, onset_row: int
) -> SignalState:
    before = values[:onset_row][np.isfinite(values[:onset_row])]
    after = values[onset_row:]
    present = after[np.isfinite(after)]
    if not len(present) or len(before) < _SETTLED_ROWS:
        return _silent_state(key, before, present, times[onset_row])
    low, expected, high = (float(each) for each in np.quantile(before, [_TAIL, 0.5, 1 - _TAIL]))
    observed = _worst(signal, present, expected)
    if signal.kind is Kind.EVENT:
        score = 2.0 if observed > max(0.0, high) else 0.0
        direction = Direction.EVENT if score else Direction.NORMAL
    else:
        threshold = _threshold(signal, before, expected)
        # The edge of the normal band: what happens now and then anyway is no deviation.
        beyond = max(observed - high, low - observed, 0.0)
        score = abs(observed - expected) / threshold if beyond > 0 else 0.0
        direction = Direction.NORMAL
        if score > 1:
            direction = Direction.UP if observed > expected else Direction.DOWN
    quiet = signal.bad_direction is Bad.NONE
    active = score > 1 and not quiet
    onset = _onset(times, after, expected, observed, onset_row) if active else None
    return SignalState(
        key=key,
        observed=observed,
        age_seconds=0.0,
        expected=expected,
        low=low,
        high=high,
        score=0.0 if quiet else score,
        direction=Direction.NORMAL if quiet else direction,
        onset_seconds=onset,
        active=active,
        warmed_up=True,
        detectors=("change",) if active else (),
    )


def _silent_state(
    key: SeriesKey, before: FloatArray, present: FloatArray, onset: float
) -> SignalState:
    """Return the state of a series that stopped, or that has no past to compare with."""
    stopped = len(before) >= _SETTLED_ROWS and not len(present)
    return SignalState(
        key=key,
        observed=float(np.median(present)) if len(present) else None,
        age_seconds=0.0,
        expected=float(np.median(before)) if len(before) else None,
        low=None,
        high=None,
        score=2.0 if stopped else 0.0,
        direction=Direction.ABSENT if stopped else Direction.NORMAL,
        onset_seconds=float(onset) if stopped else None,
        active=stopped,
        warmed_up=False,
        detectors=("absence",) if stopped else (),
    )


def _worst(signal: Signal, present: FloatArray, expected: float) -> float:
    """Return the value that stands for the abnormal rows: near the worst, not one stray row."""
    if signal.kind is Kind.EVENT:
        return float(present.max())
    least, most = (float(each) for each in np.quantile(present, [_WORST, 1 - _WORST]))
    if signal.kind is Kind.STATE:
        return float(np.median(present))
    if signal.bad_direction is Bad.UP and signal.layer is not Layer.TRAFFIC:
        return most if most - expected >= expected - least else least
    return least if expected - least >= most - expected else most


def _threshold(signal: Signal, before: FloatArray, expected: float) -> float:
    quarter, three_quarters = np.quantile(before, [0.25, 0.75])
    mad = 1.48 * float(np.median(np.abs(before - expected)))
    sigma = max(float(three_quarters - quarter) / 1.349, mad)
    if signal.unit == "bool":
        return max(_SIGMAS * sigma, 0.5)
    least = max(_DEADBANDS * signal.deadband, _RELATIVE * abs(expected))
    if signal.high is not None and signal.unit == "ratio":
        least = max(_DEADBANDS * signal.deadband, min(least, 0.1))
    return max(_SIGMAS * sigma, least, 1e-12)


def _onset(
    times: FloatArray, after: FloatArray, expected: float, observed: float, onset_row: int
) -> float:
    """Return when a series first came half way to its worst."""
    half = 0.5 * (observed - expected)
    reached = np.flatnonzero(np.nan_to_num((after - expected) * np.sign(half)) >= abs(half))
    return float(times[onset_row + (int(reached[0]) if len(reached) else 0)])


def _anomaly(state: SignalState, now: float) -> Anomaly:
    return Anomaly(
        entity=state.key.entity,
        signal=state.key.signal,
        unit=catalogue()[state.key.signal].unit,
        time_seconds=now,
        onset_seconds=now if state.onset_seconds is None else state.onset_seconds,
        score=state.score,
        direction=state.direction,
        observed=state.observed,
        expected=state.expected,
        low=state.low,
        high=state.high,
        detectors=state.detectors,
    )
