"""Replays the live pipeline over stored history, tick by tick, exactly as it would have run.

The replay is causal by construction: it feeds the same code one tick at a time and fits forests
between the same ticks. Settings can be compared before they go live, and false alarms counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.detection.contract import Detections, FloatArray
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.seasonal_fit import DAY_SECONDS
from analysis.detection.settings import DetectionSettings
from analysis.history import History
from collectors.contract import Sample, SeriesKey
from collectors.store.contract import SeriesReader

_COLUMNS = ("time", "entity", "signal", "value")
_CONTROL_ALARM_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class LabelledFault:
    """A time in which something was wrong; alarms on its entities in it are right."""

    start_seconds: float
    end_seconds: float
    entities: Collection[str] = ()
    """Entities that are affected; all where empty. Entities below one of them count as well."""
    signals: Collection[str] = ()
    """Signals that are affected; all where empty."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One anomaly from its first tick to its last."""

    key: SeriesKey
    onset_seconds: float
    raised_seconds: float
    last_seconds: float
    highest_score: float
    detectors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Quality:
    """How alarms compare with labelled faults. Controls are judged by the same measure."""

    faults: int
    detected: int
    delay_seconds: tuple[float, ...]
    """From the start of each detected fault to its first alarm."""
    false_alarms: int
    false_alarms_per_series_day: float


@dataclass(frozen=True, slots=True)
class BacktestResult:
    """What the pipeline would have said."""

    start_seconds: float
    end_seconds: float
    ticks: int
    series: int
    alarms: Sequence[Alarm]
    realised_tail_rate: Mapping[SeriesKey, float]
    """Share of the normal values of each series that scored above 1; the nominal rate is a setting."""
    quality: Quality
    controls: Mapping[str, Quality]
    """``random``: as many alarms at random times and series; ``always``: an alarm for all the time."""

    def alarms_per_series_day(self) -> Mapping[SeriesKey, float]:
        """Return the alarms of each series with any, per day."""
        days = max(self.end_seconds - self.start_seconds, 1.0) / DAY_SECONDS
        counts: dict[SeriesKey, int] = {}
        for alarm in self.alarms:
            counts[alarm.key] = counts.get(alarm.key, 0) + 1
        return {key: count / days for key, count in sorted(counts.items())}


def backtest(
    source: pd.DataFrame | SeriesReader,
    settings: DetectionSettings,
    start_seconds: float,
    end_seconds: float,
    *,
    labels: Sequence[LabelledFault] | None = None,
    tick_seconds: float | None = None,
    tick_times: Sequence[float] | None = None,
    progress: Callable[[float], None] | None = None,
    warmup_seconds: float = 120.0,
    seed: int = 0,
) -> BacktestResult:
    """Replay ``start <= time < end``.

    Args:
        source: a long table with ``time``, ``entity``, ``signal``, ``value``, or a series store.
        settings: of detection.
        start_seconds: the first time that is replayed.
        end_seconds: the first time that is not.
        labels: when something was wrong; without them every alarm counts as false.
        tick_seconds: distance of the ticks; by default the usual distance of the times in the data.
        tick_times: when the live pipeline ticked, rising; a sample belongs to the first tick that is
            not before it. With them each score is the live one; ``tick_seconds`` is then not used.
        progress: told the replayed share, 0 to 1, after each tick.
        warmup_seconds: alarms raised this soon after the start are left out: the live pipeline
            would have had its baselines.
        seed: of the random control.

    Raises:
        ValueError: when columns are missing or there is nothing in the window.
    """
    frame = _load(source, start_seconds, end_seconds)
    if tick_times is None:
        step = _usual_step(frame) if tick_seconds is None else tick_seconds
        replayed = _ticks(frame, start_seconds, step)
    else:
        replayed = _ticks_at(frame, tick_times, (start_seconds, end_seconds))
    history = History(capacity_ticks=4)
    pipeline = DetectionPipeline(settings, history, executor=SameThreadExecutor())
    recorder = _Recorder()
    ticks, now = 0, start_seconds
    for now, samples in replayed:
        recorder.take(pipeline.tick(now, history.append(now, samples)))
        ticks += 1
        if progress is not None:
            progress(min(1.0, (now - start_seconds) / (end_seconds - start_seconds)))
    judged_from = start_seconds + warmup_seconds
    alarms = [alarm for alarm in recorder.alarms() if alarm.raised_seconds > judged_from]
    faults, keys, span = list(labels or ()), list(history.keys), (judged_from, now)
    return BacktestResult(
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        ticks=ticks,
        series=len(keys),
        alarms=alarms,
        realised_tail_rate=pipeline.realised_tail_rate,
        quality=_judge(alarms, faults, len(keys), span),
        controls={
            "random": _judge(_random_alarms(alarms, keys, span, seed), faults, len(keys), span),
            "always": _judge(_constant_alarms(keys, span), faults, len(keys), span),
        },
    )


class _Recorder:
    """Joins the anomalies of successive ticks into alarms."""

    def __init__(self) -> None:
        self._open: dict[SeriesKey, Alarm] = {}
        self._closed: list[Alarm] = []

    def take(self, detections: Detections) -> None:
        active = {SeriesKey(found.entity, found.signal): found for found in detections.anomalies}
        ended = [key for key in self._open if key not in active]
        self._closed.extend(self._open.pop(key) for key in ended)
        for key, anomaly in active.items():
            known = self._open.get(key)
            self._open[key] = Alarm(
                key=key,
                onset_seconds=anomaly.onset_seconds if known is None else known.onset_seconds,
                raised_seconds=detections.time_seconds if known is None else known.raised_seconds,
                last_seconds=detections.time_seconds,
                highest_score=max(anomaly.score, known.highest_score if known else 0.0),
                detectors=anomaly.detectors,
            )

    def alarms(self) -> list[Alarm]:
        return sorted(
            (*self._closed, *self._open.values()),
            key=lambda alarm: (alarm.raised_seconds, alarm.key),
        )


def _ticks(
    frame: pd.DataFrame, start_seconds: float, step: float
) -> Iterator[tuple[float, list[Sample]]]:
    """Yield the samples of each tick; ticks without any are yielded too, as they would have run."""
    slots = np.floor((frame["time"].to_numpy() - start_seconds) / step).astype(np.int64)
    numbers = np.arange(slots[0], slots[-1] + 1)
    bounds = np.searchsorted(slots, np.append(numbers, numbers[-1] + 1))
    # The time of a tick is its end: a live tick has seen all that came in it.
    yield from _cut(frame, start_seconds + (numbers + 1) * step, bounds)


def _ticks_at(
    frame: pd.DataFrame, tick_times: Sequence[float], span: tuple[float, float]
) -> Iterator[tuple[float, list[Sample]]]:
    """Yield the samples of each tick of the live loop; those after the last tick were never seen."""
    ticks = np.asarray(tick_times, dtype=float)
    ticks = ticks[(ticks >= span[0]) & (ticks < span[1])]
    ends = np.searchsorted(frame["time"].to_numpy(), ticks, side="right")
    yield from _cut(frame, ticks, np.concatenate(([0], ends)))


def _cut(
    frame: pd.DataFrame, ticks: FloatArray, bounds: NDArray[np.intp]
) -> Iterator[tuple[float, list[Sample]]]:
    columns = [frame[name].to_numpy() for name in _COLUMNS]
    for now, (first, last) in zip(ticks, itertools.pairwise(bounds), strict=True):
        rows = zip(*(column[first:last] for column in columns), strict=True)
        yield float(now), [Sample(float(t), str(e), str(s), float(v)) for t, e, s, v in rows]


def _load(
    source: pd.DataFrame | SeriesReader, start_seconds: float, end_seconds: float
) -> pd.DataFrame:
    if isinstance(source, pd.DataFrame):
        missing = [name for name in _COLUMNS if name not in source.columns]
        if missing:
            raise ValueError(f"the table has no column {missing[0]!r}; it needs {list(_COLUMNS)}")
        inside = (source["time"] >= start_seconds) & (source["time"] < end_seconds)
        frame = source[inside].sort_values("time", kind="stable")
    else:
        frame = source.read(start_seconds=start_seconds, end_seconds=end_seconds)
    if frame.empty:
        raise ValueError(f"there is nothing to replay from {start_seconds} to {end_seconds}")
    return frame


def _usual_step(frame: pd.DataFrame) -> float:
    times = np.unique(frame["time"].to_numpy(dtype=float))
    return float(np.median(np.diff(times))) if len(times) > 1 else 1.0


def _judge(
    alarms: Sequence[Alarm],
    faults: Sequence[LabelledFault],
    series: int,
    span: tuple[float, float],
) -> Quality:
    delays: list[float] = []
    right: set[int] = set()
    for fault in faults:
        hits = [
            index
            for index, alarm in enumerate(alarms)
            if _concerns(fault, alarm.key)
            and alarm.last_seconds >= fault.start_seconds
            and alarm.raised_seconds <= fault.end_seconds
        ]
        right.update(hits)
        # An alarm that was on before the fault has not noticed it.
        fresh = [
            alarms[index].raised_seconds - fault.start_seconds
            for index in hits
            if alarms[index].raised_seconds >= fault.start_seconds
        ]
        if fresh:
            delays.append(min(fresh))
    false = len(alarms) - len(right)
    series_days = series * max(span[1] - span[0], 1.0) / DAY_SECONDS
    return Quality(len(faults), len(delays), tuple(delays), false, false / max(series_days, 1e-12))


def _concerns(fault: LabelledFault, key: SeriesKey) -> bool:
    if fault.signals and key.signal not in fault.signals:
        return False
    return not fault.entities or any(
        key.entity == name or key.entity.startswith(f"{name}/") for name in fault.entities
    )


def _random_alarms(
    alarms: Sequence[Alarm], keys: Sequence[SeriesKey], span: tuple[float, float], seed: int
) -> list[Alarm]:
    random = np.random.default_rng(seed)
    times = np.sort(random.uniform(*span, len(alarms)))
    chosen = random.integers(0, len(keys), len(alarms))
    return [
        Alarm(keys[at], float(t), float(t), float(t) + _CONTROL_ALARM_SECONDS, 1.0, ("random",))
        for at, t in zip(chosen, times, strict=True)
    ]


def _constant_alarms(keys: Sequence[SeriesKey], span: tuple[float, float]) -> list[Alarm]:
    """Return what raises every series anew each minute: it notices all faults and is always wrong."""
    starts = np.arange(span[0], span[1], _CONTROL_ALARM_SECONDS)
    return [
        Alarm(key, float(at), float(at), float(at) + _CONTROL_ALARM_SECONDS, 1.0, ("always",))
        for at in starts
        for key in keys
    ]
