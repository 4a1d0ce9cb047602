"""Which change of policy would have helped: chosen on the first half of the time, confirmed on the rest.

A change that fits the noise of one half fails on the other, and is not advised.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.detection.profiles import SeriesProfiles
from analysis.detection.replaying.judging import AlarmTable, LabelledFault, Span, Verdict, judge
from analysis.detection.replaying.trials import UNCHANGED, PolicyChange
from analysis.detection.settings import DetectionSettings
from analysis.detection.states import UP
from collectors.contract import SeriesKey

_NOISIEST_SIGNALS = 12
"""Signals that get proposals of their own: those with the most false alarms in the first half."""
_LEAST_KNOWN = 1e-6
"""A least deviation below this is none: the signal has no unit that says what matters."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What a change does in one half of the time, against what is set now."""

    false_alarms_before: int
    false_alarms_removed: int
    faults: int
    faults_lost: int
    delay_added_seconds: float | None
    """Median over the faults that both notice; None where there is none."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One change of policy, for one signal or for all."""

    change: PolicyChange
    signal: str | None
    """None where it holds for all signals."""
    chosen_on: Effect
    confirmed_on: Effect
    confirmed: bool
    """The second half agrees: fewer false alarms there as well, and no fault lost in either."""
    toml: str


@dataclass(frozen=True, slots=True)
class Advice:
    """All proposals that saved something in the first half, the best first, and what to take of them."""

    middle_seconds: float
    """Where the first half of the time ends."""
    proposals: Sequence[Proposal]
    toml: str
    """To append to galen.toml; empty where nothing is advised."""
    together: Effect | None
    """What the advised changes do together in the second half."""


def advise(
    tables: Mapping[PolicyChange, AlarmTable],
    settings: DetectionSettings,
    faults: Sequence[LabelledFault],
    keys: Sequence[SeriesKey],
    span: Span,
) -> Advice:
    """Compare what trials of other policies would have raised.

    Args:
        tables: the alarms of each trial; :data:`UNCHANGED` is one of them.
        settings: what is set now.
        faults: labelled faults within the span; without one nothing is known of what a change loses.
        keys: the series.
        span: the time in which alarms count.
    """
    middle = 0.5 * (span[0] + span[1])
    halves = _Halves(faults, len(keys), (span[0], middle), (middle, span[1]))
    now = tables[UNCHANGED]
    before = halves.judged(now)
    false = before[0].false_alarms_by_signal
    proposals: list[Proposal] = []
    for change, table in tables.items():
        if change is UNCHANGED or change == UNCHANGED:
            continue
        if change.for_all:
            effects = halves.effects(before, halves.judged(table))
            _propose(proposals, change, None, effects, _alerts_toml(change))
            continue
        for signal, _ in false.most_common(_NOISIEST_SIGNALS):
            toml = _override_toml(change, signal, keys, settings)
            if toml is None:
                continue
            mixed = _mixed(now, table, {signal})
            _propose(proposals, change, signal, halves.effects(before, halves.judged(mixed)), toml)
    proposals.sort(key=_rank)
    chosen = _chosen(proposals)
    if not chosen:
        return Advice(middle, proposals, "", None)
    together = now
    for proposal in chosen:
        table = tables[proposal.change]
        together = table if proposal.signal is None else _mixed(together, table, {proposal.signal})
    effect = halves.effects(before, halves.judged(together))[1]
    return Advice(middle, proposals, "\n".join(each.toml for each in chosen), effect)


@dataclass(frozen=True, slots=True)
class _Judged:
    verdict: Verdict
    false_alarms_by_signal: Counter[str]
    delays: Mapping[int, float]


class _Halves:
    """Judges a table of alarms in both halves of the time."""

    def __init__(
        self, faults: Sequence[LabelledFault], series: int, first: Span, second: Span
    ) -> None:
        self._series = series
        self._spans = (first, second)
        # A fault belongs to the half in which it began.
        middle = first[1]
        self._faults = (
            [fault for fault in faults if fault.start_seconds < middle],
            [fault for fault in faults if fault.start_seconds >= middle],
        )
        self._all = list(faults)

    def judged(self, table: AlarmTable) -> tuple[_Judged, _Judged]:
        """Judge the alarms that were raised in each half."""
        first, second = (self._judged(table, half) for half in (0, 1))
        return first, second

    def effects(
        self, before: tuple[_Judged, _Judged], after: tuple[_Judged, _Judged]
    ) -> tuple[Effect, Effect]:
        """Say what changed in each half."""
        first, second = (_effect(*pair) for pair in zip(before, after, strict=True))
        return first, second

    def _judged(self, table: AlarmTable, half: int) -> _Judged:
        start, end = self._spans[half]
        inside = table.raised >= start
        inside &= (table.raised <= end) if half else (table.raised < end)
        here = table.chosen(inside)
        # An alarm may be right by a fault of the other half; found and lost are those of this one.
        right = judge(here, self._all, self._series, (start, end)).right
        verdict = judge(here, self._faults[half], self._series, (start, end))
        wrong = Counter(here.keys[int(place)].signal for place in np.flatnonzero(~right))
        delays = {
            number: float(here.raised[at] - fault.start_seconds)
            for number, (fault, at) in enumerate(
                zip(self._faults[half], verdict.first_alarm, strict=True)
            )
            if at is not None
        }
        return _Judged(verdict, wrong, delays)


def _effect(before: _Judged, after: _Judged) -> Effect:
    both = before.delays.keys() & after.delays.keys()
    added = [after.delays[number] - before.delays[number] for number in sorted(both)]
    false = before.false_alarms_by_signal.total()
    return Effect(
        false_alarms_before=false,
        false_alarms_removed=false - after.false_alarms_by_signal.total(),
        faults=before.verdict.quality.faults,
        faults_lost=len(before.delays) - len(both),
        delay_added_seconds=statistics.median(added) if added else None,
    )


def _propose(
    proposals: list[Proposal],
    change: PolicyChange,
    signal: str | None,
    effects: tuple[Effect, Effect],
    toml: str,
) -> None:
    first, second = effects
    if first.false_alarms_removed <= 0:
        return
    confirmed = second.false_alarms_removed > 0 and not first.faults_lost + second.faults_lost
    proposals.append(Proposal(change, signal, first, second, confirmed, toml))


def _rank(proposal: Proposal) -> tuple[int, int, float]:
    """Order by the first half alone: faults lost, false alarms removed, delay added."""
    effect = proposal.chosen_on
    return effect.faults_lost, -effect.false_alarms_removed, effect.delay_added_seconds or 0.0


def _chosen(ranked: Sequence[Proposal]) -> list[Proposal]:
    """Take the best confirmed proposal of each signal, or one for all where that saves more."""
    own: dict[str, Proposal] = {}
    for_all: Proposal | None = None
    for proposal in ranked:
        if not proposal.confirmed:
            continue
        if proposal.signal is not None:
            own.setdefault(proposal.signal, proposal)
        elif for_all is None:
            for_all = proposal
    saved = sum(each.chosen_on.false_alarms_removed for each in own.values())
    if for_all is not None and for_all.chosen_on.false_alarms_removed > saved:
        return [for_all]
    return list(own.values())


def _mixed(now: AlarmTable, trial: AlarmTable, signals: set[str]) -> AlarmTable:
    """Return today's alarms with those of some signals from a trial."""
    kept = now.chosen(now.where(lambda key: key.signal not in signals))
    return kept.plus(trial.chosen(trial.where(lambda key: key.signal in signals)))


def _alerts_toml(change: PolicyChange) -> str:
    lines = [f"{name} = {value:g}" for name, value in change.alerts]
    return "\n".join(["[analysis.detection.alerts]", *lines, ""])


def _override_toml(
    change: PolicyChange, signal: str, keys: Sequence[SeriesKey], settings: DetectionSettings
) -> str | None:
    """Return the override that makes a change for one signal; None where it cannot be said so."""
    profiles = SeriesProfiles(settings.overrides)
    profiles.grow([key for key in keys if key.signal == signal])
    lines = []
    if change.duration_factor != 1.0:
        values = int(profiles["minimum_values"].max() * change.duration_factor)
        seconds = float(profiles["minimum_seconds"].max() * change.duration_factor)
        lines += [f"minimum_values = {min(values, 1000)}", f"minimum_seconds = {seconds:g}"]
    if change.least_factor != 1.0:
        least = float(profiles["least"].max())
        if least < _LEAST_KNOWN:
            return None
        lines.append(f"least = {least * change.least_factor:g}")
    if change.only is not None:
        if not (profiles["bad_up"] & profiles["bad_down"]).all():
            return None
        lines.append(f'bad_direction = "{"up" if change.only == UP else "down"}"')
    return "\n".join(
        ["[[analysis.detection.overrides]]", f"signals = [{_pattern(signal)}]", *lines, ""]
    )


def _pattern(signal: str) -> str:
    """Write a signal as a TOML string that matches nothing but itself."""
    literal = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in signal)
    return json.dumps(literal).replace("\x7f", "\\u007f")
