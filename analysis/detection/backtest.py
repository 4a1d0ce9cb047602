"""Replays the live pipeline over stored history, tick by tick, exactly as it would have run.

The replay is causal by construction: it feeds the same code one tick at a time and fits forests and
seasons between the same ticks. Settings can be compared before they go live, and false alarms counted.

:func:`replay` does the work and :func:`judged` compares what it found with labels. Replays of parts of
a fleet, with no entity in two of them, are joined by :func:`joined` before they are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.detection.contract import FloatArray
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.replaying.advice import Advice, advise
from analysis.detection.replaying.alarms import Alarm, AlarmRecorder, in_order
from analysis.detection.replaying.judging import (
    AlarmTable,
    LabelledFault,
    Quality,
    Span,
    constant_control,
    judge,
    random_control,
)
from analysis.detection.replaying.seasons import ReplayedSeasons, SeasonPlan
from analysis.detection.replaying.ticks import COLUMNS, TickRows
from analysis.detection.replaying.traces import KeptTraces, Trace, TraceRecorder
from analysis.detection.replaying.trials import PolicyChange, PolicyTrial, changes_worth_trying
from analysis.detection.seasonal_fit import DAY_SECONDS
from analysis.detection.settings import DetectionSettings
from analysis.detection.states import States
from collectors.contract import SeriesKey
from collectors.store.contract import SeriesReader

__all__ = [
    "Alarm",
    "BacktestResult",
    "LabelledFault",
    "Quality",
    "Replayed",
    "SeasonPlan",
    "backtest",
    "joined",
    "judged",
    "replay",
]

HistoryChunks = Iterable[tuple[float, pd.DataFrame]]
"""History in chunks of time: up to when, exclusively, and the samples since the chunk before."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the pipeline would have said, not yet compared with labels. Plain data: it can be sent."""

    start_seconds: float
    end_seconds: float
    """The last tick."""
    judged_from_seconds: float
    """Alarms raised earlier are left out: the live pipeline would have had its baselines."""
    ticks: int
    whole: bool
    """False where it was stopped before the end of history."""
    keys: Sequence[SeriesKey]
    alarms: Sequence[Alarm]
    realised_tail_rate: Mapping[SeriesKey, float]
    traces: KeptTraces
    trials: Mapping[PolicyChange, AlarmTable]


@dataclass(frozen=True, slots=True)
class FaultOutcome:
    """One labelled fault and the alarm that noticed it, if any."""

    fault: LabelledFault
    alarm: Alarm | None


@dataclass(frozen=True, slots=True)
class BacktestResult:
    """What the pipeline would have said, and whether it was right."""

    start_seconds: float
    end_seconds: float
    """The last tick."""
    judged_from_seconds: float
    ticks: int
    whole: bool
    """False where the replay was stopped before the end of history."""
    series: int
    alarms: Sequence[Alarm]
    right: Sequence[bool]
    """For each alarm whether it overlaps a fault that concerns it."""
    faults: Sequence[FaultOutcome]
    """Labelled faults within the time that was judged."""
    faults_outside: int
    """Labelled faults that were not, and do not count."""
    realised_tail_rate: Mapping[SeriesKey, float]
    """Share of the normal values of each series that scored above 1; the nominal rate is a setting."""
    quality: Quality
    controls: Mapping[str, Quality]
    """``random``: as many alarms at random times and series; ``always``: an alarm for all the time."""
    traces: Sequence[Trace]
    """What series looked like around alarms and missed faults, as far as they were kept."""
    advice: Advice

    def alarms_per_series_day(self) -> Mapping[SeriesKey, float]:
        """Return the alarms of each series with any, per day."""
        days = max(self.end_seconds - self.judged_from_seconds, 1.0) / DAY_SECONDS
        counts: dict[SeriesKey, int] = {}
        for alarm in self.alarms:
            counts[alarm.key] = counts.get(alarm.key, 0) + 1
        return {key: count / days for key, count in sorted(counts.items())}

    def detector_shares(self) -> Mapping[str, float]:
        """Return the share of alarms in which each detector scored above 1; they overlap."""
        counts: dict[str, int] = {}
        for alarm in self.alarms:
            for name in alarm.detectors:
                counts[name] = counts.get(name, 0) + 1
        total = max(len(self.alarms), 1)
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return {name: count / total for name, count in ranked}


def backtest(
    source: pd.DataFrame | SeriesReader,
    settings: DetectionSettings,
    start_seconds: float,
    end_seconds: float,
    *,
    labels: Sequence[LabelledFault] = (),
    tick_seconds: float | None = None,
    warmup_seconds: float = 120.0,
    seed: int = 0,
) -> BacktestResult:
    """Replay ``start <= time < end`` of a table or a store that fits into memory, and judge it.

    Args:
        source: a long table with ``time``, ``entity``, ``signal``, ``value``, or a series store.
        settings: of detection.
        start_seconds: the first time that is replayed.
        end_seconds: the first time that is not.
        labels: when something was wrong; without them every alarm counts as false.
        tick_seconds: distance of the ticks; by default the usual distance of the times in the data.
        warmup_seconds: alarms raised this soon after the start are left out.
        seed: of the random control.

    Raises:
        ValueError: when columns are missing or there is nothing in the window.
    """
    frame = _load(source, start_seconds, end_seconds)
    replayed = replay(
        [(np.inf, frame)],
        settings,
        start_seconds,
        labels=labels,
        tick_seconds=tick_seconds,
        warmup_seconds=warmup_seconds,
    )
    return judged(replayed, settings, labels, seed=seed)


def replay(
    chunks: HistoryChunks,
    settings: DetectionSettings,
    start_seconds: float,
    *,
    labels: Sequence[LabelledFault] = (),
    tick_seconds: float | None = None,
    watch_entity: str | None = None,
    steady: bool = False,
    seasons: SeasonPlan | None = None,
    warmup_seconds: float = 120.0,
    progress: Callable[[float], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Replayed:
    """Run the live pipeline over history that comes in chunks of time.

    Memory is bounded by one chunk and by what is kept a series, whatever the length of history.

    Args:
        chunks: history, oldest first; the last one may reach to infinity.
        settings: of detection.
        start_seconds: where the grid of ticks begins.
        labels: labelled faults; they change nothing but what is kept to be shown.
        tick_seconds: distance of the ticks; by default the usual distance of the times in the data.
        watch_entity: whose samples say when the watch loop ticked; the replay then ticks then.
        steady: tick on however long nothing comes: others of the fleet speak meanwhile.
        seasons: when the watch loop fits seasonal shapes; None fits none.
        warmup_seconds: alarms raised this soon after the first tick are left out.
        progress: told the time of each tick.
        stop: asked after each tick; what was replayed so far is returned when it says yes.

    Raises:
        ValueError: when there is no sample in history.
    """
    rows = TickRows(
        start_seconds, step_seconds=tick_seconds, watch_entity=watch_entity, steady=steady
    )
    run = _Run(settings, rows, labels, seasons)
    whole = True
    for until, frame in chunks:
        for now, row in rows.take(frame, until):
            run.tick(now, row)
            if progress is not None:
                progress(now)
            if stop():
                whole = False
                break
        if not whole or stop():
            whole = False
            break
    else:
        for now, row in rows.take(_nothing(), np.inf):
            run.tick(now, row)
    if not run.ticks:
        raise ValueError("there is nothing to replay in that time")
    return run.result(whole=whole, warmup_seconds=warmup_seconds)


def joined(parts: Sequence[Replayed]) -> Replayed:
    """Join replays of the same time with no entity in two of them."""
    changes = list(parts[0].trials)
    tables = {}
    for change in changes:
        table = parts[0].trials[change]
        for part in parts[1:]:
            table = table.plus(part.trials[change])
        tables[change] = table
    return Replayed(
        start_seconds=min(part.start_seconds for part in parts),
        end_seconds=max(part.end_seconds for part in parts),
        judged_from_seconds=min(part.judged_from_seconds for part in parts),
        ticks=max(part.ticks for part in parts),
        whole=all(part.whole for part in parts),
        keys=[key for part in parts for key in part.keys],
        alarms=in_order([alarm for part in parts for alarm in part.alarms]),
        realised_tail_rate={k: r for part in parts for k, r in part.realised_tail_rate.items()},
        traces=KeptTraces.joined([part.traces for part in parts]),
        trials=tables,
    )


def judged(
    replayed: Replayed,
    settings: DetectionSettings,
    labels: Sequence[LabelledFault] = (),
    *,
    seed: int = 0,
) -> BacktestResult:
    """Compare what a replay found with labels, and with controls; say what would have helped.

    Args:
        replayed: what the pipeline would have said.
        settings: those of the replay.
        labels: the labels that were given to the replay.
        seed: of the random control.
    """
    span: Span = (replayed.judged_from_seconds, replayed.end_seconds)
    places = [at for at, fault in enumerate(labels) if fault.within(span)]
    faults = [labels[at] for at in places]
    series = len(replayed.keys)
    verdict = judge(AlarmTable.of(replayed.alarms), faults, series, span)
    noticed = [None if at is None else replayed.alarms[at] for at in verdict.first_alarm]
    missed = [at for at, alarm in zip(places, noticed, strict=True) if alarm is None]
    return BacktestResult(
        start_seconds=replayed.start_seconds,
        end_seconds=replayed.end_seconds,
        judged_from_seconds=replayed.judged_from_seconds,
        ticks=replayed.ticks,
        whole=replayed.whole,
        series=series,
        alarms=replayed.alarms,
        right=verdict.right.tolist(),
        faults=[FaultOutcome(*pair) for pair in zip(faults, noticed, strict=True)],
        faults_outside=len(labels) - len(faults),
        realised_tail_rate=replayed.realised_tail_rate,
        quality=verdict.quality,
        controls={
            "random": random_control(len(replayed.alarms), faults, replayed.keys, span, seed),
            "always": constant_control(faults, replayed.keys, span),
        },
        traces=replayed.traces.chosen(replayed.alarms, missed),
        advice=advise(replayed.trials, settings, faults, replayed.keys, span),
    )


class _Run:
    """The pipeline and all that looks at its ticks."""

    def __init__(
        self,
        settings: DetectionSettings,
        rows: TickRows,
        labels: Sequence[LabelledFault],
        seasons: SeasonPlan | None,
    ) -> None:
        self._rows = rows
        self.keys: Sequence[SeriesKey] = ()
        """Every series that was seen."""
        self._columns: Sequence[SeriesKey] = ()
        """The series of the pipeline's columns."""
        self._pipeline = DetectionPipeline(settings, rows, executor=SameThreadExecutor())
        self._recorder = AlarmRecorder()
        self._traces = TraceRecorder(labels)
        self._trials = [
            PolicyTrial(change, settings.alerts) for change in changes_worth_trying(settings.alerts)
        ]
        self._seasons = None if seasons is None else ReplayedSeasons(seasons)
        self._first = self._last = np.nan
        self.ticks = 0

    def tick(self, now: float, row: FloatArray) -> None:
        if not self.ticks:
            self._first = now
        self._last = now
        self.ticks += 1
        names = self._pipeline.keys
        detections = self._pipeline.tick(now, row)
        # The tick is told in the columns before series were retired at its end.
        retired = self._pipeline.keys is not names
        self._note_keys(row, names if retired else self._pipeline.keys, retired=retired)
        begun, ended = self._recorder.take(detections)
        if isinstance(detections.states, States):
            self._traces.take(now, detections.states.arrays, self._columns, begun, ended)
        self._try_policies(retired=retired)
        if retired:
            self._forget_retired()
        if self._seasons is not None:
            shapes = self._seasons.take(now, row, self.keys)
            if shapes:
                self._pipeline.adopt_shapes(shapes)

    def _note_keys(self, row: FloatArray, names: Sequence[SeriesKey], *, retired: bool) -> None:
        if len(row) > len(self.keys):
            self.keys = self._rows.keys[: len(row)]
        if len(names) > len(self._columns) or retired:
            self._columns = tuple(names)

    def _try_policies(self, *, retired: bool) -> None:
        inputs = self._pipeline.channels.inputs
        if inputs is None:
            return
        still = self._pipeline.channels.statistical.deviating
        # With the columns moved, what was re-based at this one tick is not known.
        rebased = np.zeros_like(inputs.deviating) if retired else inputs.deviating & ~still
        for trial in self._trials:
            trial.take(inputs, self._share if retired else self._pipeline.share_with_least, rebased)

    def _share(self, _factor: float) -> FloatArray:
        return np.ones(len(self._columns))

    def _forget_retired(self) -> None:
        left = set(self._pipeline.keys)
        kept = np.array([key in left for key in self._columns], dtype=bool)
        for trial in self._trials:
            trial.keep(kept, self._columns)
        self._traces.keep(kept)
        self._columns = tuple(self._pipeline.keys)

    def result(self, *, whole: bool, warmup_seconds: float) -> Replayed:
        judged_from = self._first + warmup_seconds
        kept = [alarm for alarm in self._recorder.alarms() if alarm.raised_seconds > judged_from]
        return Replayed(
            start_seconds=self._first,
            end_seconds=self._last,
            judged_from_seconds=min(judged_from, self._last),
            ticks=self.ticks,
            whole=whole,
            keys=self.keys,
            alarms=kept,
            realised_tail_rate=self._pipeline.realised_tail_rate,
            traces=self._traces.kept(),
            trials={
                trial.change: trial.table(self._columns, judged_from) for trial in self._trials
            },
        )


def _load(
    source: pd.DataFrame | SeriesReader, start_seconds: float, end_seconds: float
) -> pd.DataFrame:
    if isinstance(source, pd.DataFrame):
        missing = [name for name in COLUMNS if name not in source.columns]
        if missing:
            raise ValueError(f"the table has no column {missing[0]!r}; it needs {list(COLUMNS)}")
        inside = (source["time"] >= start_seconds) & (source["time"] < end_seconds)
        frame = source[inside].sort_values("time", kind="stable")
    else:
        frame = source.read(start_seconds=start_seconds, end_seconds=end_seconds)
    if frame.empty:
        raise ValueError(f"there is nothing to replay from {start_seconds} to {end_seconds}")
    return frame


def _nothing() -> pd.DataFrame:
    return pd.DataFrame({"time": [], "entity": [], "signal": [], "value": []})
