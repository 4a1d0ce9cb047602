"""The result of a backtest as it is printed: one model for people, programs and the page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from analysis.detection.backtest import BacktestResult
from analysis.detection.replaying.advice import Effect, Proposal
from analysis.detection.replaying.judging import Quality
from analysis.detection.replaying.traces import Trace
from collectors.signals import unit_of


class FoundAlarm(BaseModel):
    """One alarm that would have been raised."""

    entity: str
    signal: str
    onset_seconds: float
    raised_seconds: float
    last_seconds: float
    highest_score: float
    direction: str
    detectors: list[str]
    right: bool
    """It overlaps a labelled fault that concerns its series; never so without labels."""


class FoundFault(BaseModel):
    """One labelled fault, and what noticed it first."""

    start_seconds: float
    end_seconds: float
    entities: list[str]
    signals: list[str]
    detected: bool
    delay_seconds: float | None
    noticed_by: str | None
    """Entity and signal of the first alarm."""


class FoundQuality(BaseModel):
    """How alarms compare with the labelled faults; controls are judged by the same measure."""

    name: str
    faults: int
    detected: int
    median_delay_seconds: float | None
    delay_seconds: list[float]
    false_alarms: int
    false_alarms_per_series_day: float

    @classmethod
    def of(cls, name: str, quality: Quality) -> FoundQuality:
        """Name a quality and add its median delay."""
        delays = list(quality.delay_seconds)
        return cls(
            name=name,
            faults=quality.faults,
            detected=quality.detected,
            median_delay_seconds=statistics.median(delays) if delays else None,
            delay_seconds=delays,
            false_alarms=quality.false_alarms,
            false_alarms_per_series_day=quality.false_alarms_per_series_day,
        )


class SeriesRate(BaseModel):
    """How often one series alarmed."""

    entity: str
    signal: str
    alarms: int
    alarms_per_day: float
    false_alarms_per_day: float


class TailRate(BaseModel):
    """How often normal values scored above 1, against how often they should."""

    nominal: float
    series: int
    """Series with normal values enough to say."""
    median: float | None
    highest: float | None
    highest_entity: str
    highest_signal: str
    above_nominal: int
    """Series whose rate is more than twice the nominal one."""


class FoundTrace(BaseModel):
    """A series around an alarm or around the nearest miss of a fault, lists of equal length."""

    entity: str
    signal: str
    unit: str
    raised_seconds: float | None
    missed_fault: bool
    highest_score: float
    times: list[float]
    observed: list[float | None]
    expected: list[float | None]
    low: list[float | None]
    high: list[float | None]
    score: list[float | None]

    @classmethod
    def of(cls, trace: Trace) -> FoundTrace:
        """Shape a trace; what is missing becomes None."""
        return cls(
            entity=trace.key.entity,
            signal=trace.key.signal,
            unit=unit_of(trace.key.signal),
            raised_seconds=trace.raised_seconds,
            missed_fault=trace.fault is not None,
            highest_score=trace.highest_score,
            times=trace.times,
            observed=_whole(trace.observed),
            expected=_whole(trace.expected),
            low=_whole(trace.low),
            high=_whole(trace.high),
            score=_whole(trace.score),
        )


class FoundEffect(BaseModel):
    """What a change of policy does in one half of the time."""

    false_alarms_before: int
    false_alarms_removed: int
    faults: int
    faults_lost: int
    delay_added_seconds: float | None

    @classmethod
    def of(cls, effect: Effect) -> FoundEffect:
        """Copy an effect."""
        return cls(
            false_alarms_before=effect.false_alarms_before,
            false_alarms_removed=effect.false_alarms_removed,
            faults=effect.faults,
            faults_lost=effect.faults_lost,
            delay_added_seconds=effect.delay_added_seconds,
        )


class FoundProposal(BaseModel):
    """One change of policy that would have saved something."""

    change: str
    signal: str | None
    chosen_on: FoundEffect
    confirmed_on: FoundEffect
    confirmed: bool
    toml: str

    @classmethod
    def of(cls, proposal: Proposal) -> FoundProposal:
        """Copy a proposal."""
        return cls(
            change=proposal.change.name,
            signal=proposal.signal,
            chosen_on=FoundEffect.of(proposal.chosen_on),
            confirmed_on=FoundEffect.of(proposal.confirmed_on),
            confirmed=proposal.confirmed,
            toml=proposal.toml,
        )


class FoundAdvice(BaseModel):
    """Which change of policy would have helped."""

    middle_seconds: float
    proposals: list[FoundProposal]
    """Ranked by the first half of the time alone."""
    toml: str
    """What to append to galen.toml; empty where nothing is advised."""
    together: FoundEffect | None
    """What the advised changes do together in the second half."""


class Findings(BaseModel):
    """The result of a backtest as it is printed."""

    source: str
    start_seconds: float
    end_seconds: float
    judged_from_seconds: float
    whole: bool
    """False where the replay was stopped before the end."""
    ticks: int
    series: int
    judged: bool
    """Whether there were labels; without them every alarm counts as false."""
    qualities: list[FoundQuality]
    """Detection first, then the controls."""
    faults: list[FoundFault]
    faults_outside: int
    """Labelled faults outside of the time that was judged."""
    detector_shares: dict[str, float]
    """Share of the alarms in which each detector scored above 1; they overlap."""
    tail: TailRate
    noisiest: list[SeriesRate]
    advice: FoundAdvice
    alarms: list[FoundAlarm]
    traces: list[FoundTrace]

    @classmethod
    def of(
        cls, result: BacktestResult, *, source: str, judged: bool, nominal_tail_rate: float
    ) -> Findings:
        """Shape the result of a replay for people and programs."""
        qualities = {"galen": result.quality, **result.controls}
        advice = result.advice
        return cls(
            source=source,
            start_seconds=result.start_seconds,
            end_seconds=result.end_seconds,
            judged_from_seconds=result.judged_from_seconds,
            whole=result.whole,
            ticks=result.ticks,
            series=result.series,
            judged=judged,
            qualities=[FoundQuality.of(name, quality) for name, quality in qualities.items()],
            faults=list(_faults(result)),
            faults_outside=result.faults_outside,
            detector_shares=dict(result.detector_shares()),
            tail=_tail(result, nominal_tail_rate),
            noisiest=_noisiest(result),
            advice=FoundAdvice(
                middle_seconds=advice.middle_seconds,
                proposals=[FoundProposal.of(each) for each in advice.proposals],
                toml=advice.toml,
                together=None if advice.together is None else FoundEffect.of(advice.together),
            ),
            alarms=list(_alarms(result)),
            traces=[FoundTrace.of(trace) for trace in result.traces],
        )

    @property
    def as_hoped(self) -> bool:
        """All was replayed without a false alarm and, with labels, without a missed fault."""
        own = self.qualities[0]
        return self.whole and own.false_alarms == 0 and own.detected == own.faults


def _alarms(result: BacktestResult) -> Iterator[FoundAlarm]:
    for alarm, right in zip(result.alarms, result.right, strict=True):
        yield FoundAlarm(
            entity=alarm.key.entity,
            signal=alarm.key.signal,
            onset_seconds=alarm.onset_seconds,
            raised_seconds=alarm.raised_seconds,
            last_seconds=alarm.last_seconds,
            highest_score=alarm.highest_score,
            direction=alarm.direction.value,
            detectors=list(alarm.detectors),
            right=right,
        )


def _faults(result: BacktestResult) -> Iterator[FoundFault]:
    for outcome in result.faults:
        fault, alarm = outcome.fault, outcome.alarm
        yield FoundFault(
            start_seconds=fault.start_seconds,
            end_seconds=fault.end_seconds,
            entities=sorted(fault.entities),
            signals=sorted(fault.signals),
            detected=alarm is not None,
            delay_seconds=None if alarm is None else alarm.raised_seconds - fault.start_seconds,
            noticed_by=None if alarm is None else f"{alarm.key.entity} {alarm.key.signal}",
        )


def _noisiest(result: BacktestResult) -> list[SeriesRate]:
    days = max(result.end_seconds - result.judged_from_seconds, 1.0) / 86_400.0
    all_alarms: dict[tuple[str, str], list[int]] = {}
    for alarm, right in zip(result.alarms, result.right, strict=True):
        counts = all_alarms.setdefault((alarm.key.entity, alarm.key.signal), [0, 0])
        counts[0] += 1
        counts[1] += not right
    ranked = sorted(all_alarms.items(), key=lambda item: (-item[1][1], -item[1][0], item[0]))
    return [
        SeriesRate(
            entity=entity,
            signal=signal,
            alarms=count,
            alarms_per_day=count / days,
            false_alarms_per_day=false / days,
        )
        for (entity, signal), (count, false) in ranked
    ]


def _tail(result: BacktestResult, nominal: float) -> TailRate:
    known = {key: rate for key, rate in result.realised_tail_rate.items() if math.isfinite(rate)}
    worst = max(known.items(), key=lambda item: item[1], default=None)
    return TailRate(
        nominal=nominal,
        series=len(known),
        median=statistics.median(known.values()) if known else None,
        highest=None if worst is None else worst[1],
        highest_entity="" if worst is None else worst[0].entity,
        highest_signal="" if worst is None else worst[0].signal,
        above_nominal=sum(rate > 2 * nominal for rate in known.values()),
    )


def _whole(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
