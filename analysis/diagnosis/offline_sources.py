"""Where in a graph of calls a symptom comes from, for metrics that no catalogue knows.

Conservation: what a node adds to the symptom is its deviation times its share of the requests, and the
contributions of what it calls are part of its own. The share of the symptom's *variation* that a node's
contribution explains is a regression slope, and slopes add up as contributions do; so a node's own part
is its slope less those of its callees. A shift that does not move with the symptom explains nothing,
which a difference of two medians cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.diagnosis.offline_change import (
    Change,
    Family,
    FloatArray,
    bad_sign,
    change_of,
    family_of,
    statistic_order,
)
from analysis.diagnosis.offline_frame import Edges, split_column
from analysis.diagnosis.settings import OfflineSettings
from collectors.contract import SeriesKey

_SYMPTOMS = (Family.LATENCY, Family.ERROR, Family.AVAILABILITY)
_NEUTRAL_CHANGE = 1 / 3
_NEUTRAL_CORRELATION = 0.4
_NEUTRAL_SHARE = 0.25
_CHANGE_NATS, _CORRELATION_NATS, _SHARE_NATS = 2.0, 4.0, 4.0
"""Weight of each reason at its best, in nats, around the point at which it says nothing."""


@dataclass(frozen=True, slots=True)
class Symptom:
    """The metric whose trouble is explained."""

    column: str
    key: SeriesKey
    family: Family
    change: Change


@dataclass(frozen=True, slots=True)
class Source:
    """One entity as the place that a symptom comes from."""

    entity: str
    column: str
    change: Change
    correlation: float
    """Of its contribution with the symptom, over the rows around the onset."""
    explained: float
    """Share of the symptom's variation that it explains with all that it calls."""
    own: float
    """The same without what it calls."""

    @property
    def change_nats(self) -> float:
        """What its change says for it."""
        grown = min(math.log1p(self.change.z), 3.0) / 3.0
        return _CHANGE_NATS * (grown - _NEUTRAL_CHANGE)

    @property
    def correlation_nats(self) -> float:
        """What moving with the symptom says for it."""
        return _CORRELATION_NATS * (max(0.0, self.correlation) - _NEUTRAL_CORRELATION)

    @property
    def share_nats(self) -> float:
        """What its own part in the symptom says for it."""
        return _SHARE_NATS * (min(1.0, max(0.0, self.own)) - _NEUTRAL_SHARE)

    @property
    def log_odds(self) -> float:
        """All three together."""
        return self.change_nats + self.correlation_nats + self.share_nats


def measure(
    frame: pd.DataFrame, column: str, onset_row: int, settings: OfflineSettings
) -> Change | None:
    """Measure the change of one column of a frame."""
    signal = split_column(column).signal
    return change_of(
        frame[column].to_numpy(dtype=float),
        onset_row,
        sign=bad_sign(signal),
        share=family_of(signal) in {Family.ERROR, Family.AVAILABILITY},
        settings=settings,
    )


def find_symptom(
    frame: pd.DataFrame, onset_row: int, edges: Edges, settings: OfflineSettings
) -> Symptom | None:
    """Choose the symptom where none was given: the least likely change that users would feel.

    Front ends, which nothing calls, are preferred; where there are none, every latency, error and
    availability counts, and where there are none of those either, every metric does.
    """
    called = {target for source, target in edges if source != target}
    keys = {column: split_column(column) for column in frame.columns}
    felt = [column for column, key in keys.items() if family_of(key.signal) in _SYMPTOMS]
    fronts = [column for column in felt if called and keys[column].entity not in called]
    best: Symptom | None = None
    for column in fronts or felt or list(frame.columns):
        change = measure(frame, column, onset_row, settings)
        if change is None:
            continue
        if best is None or (change.p_value, -change.z) < (best.change.p_value, -best.change.z):
            best = Symptom(column, keys[column], family_of(keys[column].signal), change)
    return best


def rank_sources(
    frame: pd.DataFrame,
    onset_row: int,
    symptom: Symptom,
    edges: Edges,
    settings: OfflineSettings,
) -> list[Source]:
    """Rank the entities of a frame as sources of a symptom, the most probable first."""
    after = len(frame) - onset_row
    first = max(0, onset_row - max(settings.min_normal_rows, settings.local_factor * after))
    columns = _columns_of(frame, symptom)
    rates = _rates(frame, columns, symptom, first)
    local = symptom.change.sign * frame[symptom.column].to_numpy(dtype=float)[first:]
    changes: dict[str, Change] = {}
    slopes: dict[str, float] = {}
    correlations: dict[str, float] = {}
    for entity, column in columns.items():
        change = measure(frame, column, onset_row, settings)
        if change is None:
            continue
        changes[entity] = change
        values = frame[column].to_numpy(dtype=float)[first:]
        same = family_of(split_column(column).signal) is symptom.family
        sign = symptom.change.sign if same else change.sign
        deviation = np.where(rates[entity] > 0, sign * (values - change.baseline), 0.0)
        slope, correlation = _slope(deviation * rates[entity], local)
        correlations[entity] = correlation
        # Another quantity, such as a CPU, has no part in the symptom's own unit.
        slopes[entity] = slope if same else 0.0
    own = _own_parts(slopes, rates, edges, symptom.key.entity)
    sources = [
        Source(entity, columns[entity], change, correlations[entity], slopes[entity], own[entity])
        for entity, change in changes.items()
    ]
    return sorted(sources, key=lambda each: (-each.log_odds, each.entity))


def _columns_of(frame: pd.DataFrame, symptom: Symptom) -> dict[str, str]:
    """Choose one column of each entity: of the symptom's own family where it has one."""
    keys = {column: split_column(column) for column in frame.columns}
    wanted = statistic_order(symptom.key.signal)

    def order(column: str) -> tuple[bool, bool, int, str]:
        signal = keys[column].signal
        return (
            family_of(signal) is not symptom.family,
            family_of(signal) is Family.RATE,
            abs(statistic_order(signal) - wanted),
            column,
        )

    chosen: dict[str, str] = {}
    for column in sorted(frame.columns, key=order):
        chosen.setdefault(keys[column].entity, column)
    chosen[symptom.key.entity] = symptom.column
    return chosen


def _rates(
    frame: pd.DataFrame, columns: Mapping[str, str], symptom: Symptom, first: int
) -> dict[str, FloatArray]:
    """Return each entity's requests over those of the symptom's entity, ``[rows]``; 1 where unknown.

    Where neither a count of requests nor anything else arrived from an entity, it had no requests.
    """
    rows = len(frame) - first
    rate_columns: dict[str, str] = {}
    for column in sorted(frame.columns):
        key = split_column(column)
        if family_of(key.signal) is Family.RATE:
            rate_columns.setdefault(key.entity, column)
    one = np.ones(rows)
    base_column = rate_columns.get(symptom.key.entity)
    if base_column is None:
        return dict.fromkeys(columns, one)
    base = _filled(frame[base_column].to_numpy(dtype=float)[first:])
    base = np.maximum(base, 1.0 if base.max() >= 1.0 else 1e-9)
    rates: dict[str, FloatArray] = {}
    for entity in columns:
        rate_column = rate_columns.get(entity)
        if rate_column is None:
            rates[entity] = one
            continue
        own = frame[rate_column].to_numpy(dtype=float)[first:]
        silent = np.isnan(own) & frame[columns[entity]].isna().to_numpy()[first:]
        rates[entity] = np.where(silent, 0.0, _filled(own)) / base
    return rates


def _filled(values: FloatArray) -> FloatArray:
    present = values[np.isfinite(values)]
    middle = float(np.median(present)) if len(present) else 0.0
    return np.where(np.isfinite(values), values, middle)


def _slope(contribution: FloatArray, symptom: FloatArray) -> tuple[float, float]:
    """Return the regression slope of a contribution on the symptom, and their correlation."""
    known = np.isfinite(contribution) & np.isfinite(symptom)
    if np.count_nonzero(known) < 3:
        return 0.0, 0.0
    left = contribution[known] - contribution[known].mean()
    right = symptom[known] - symptom[known].mean()
    spread, own = float(np.mean(right**2)), float(np.mean(left**2))
    if spread <= 0 or own <= 0:
        return 0.0, 0.0
    together = float(np.mean(left * right))
    return together / spread, together / math.sqrt(spread * own)


def _between_measured(edges: Edges, measured: Collection[str]) -> list[tuple[str, str]]:
    """Return the edges among measured entities, going through those of which nothing is measured."""
    callees: dict[str, set[str]] = {}
    for source, target in edges:
        if source != target:
            callees.setdefault(source, set()).add(target)
    found = []
    for source in sorted(callees):
        if source not in measured:
            continue
        seen, todo = {source}, list(callees[source])
        while todo:
            target = todo.pop()
            if target in seen:
                continue
            seen.add(target)
            if target in measured:
                found.append((source, target))
            else:
                todo += callees.get(target, ())
    return sorted(found)


def _own_parts(
    slopes: Mapping[str, float],
    rates: Mapping[str, FloatArray],
    edges: Edges,
    symptom_entity: str,
) -> dict[str, float]:
    """Take from each entity what comes from its callees; one that several call is split by rate."""
    known = _between_measured(edges, slopes)
    if not known:
        # Without a graph the symptom's entity is taken to stand in front of all others.
        others = [max(0.0, slope) for entity, slope in slopes.items() if entity != symptom_entity]
        parts = dict(slopes)
        parts[symptom_entity] = slopes.get(symptom_entity, 1.0) - max(others, default=0.0)
        return parts
    weight = {entity: float(np.mean(rates[entity])) for entity in slopes}
    callers: dict[str, list[str]] = {}
    for source, target in known:
        callers.setdefault(target, []).append(source)
    parts = dict(slopes)
    for source, target in known:
        total = sum(weight[each] for each in callers[target]) or 1.0
        parts[source] -= max(0.0, slopes[target]) * weight[source] / total
    return parts
