"""How good alarms are: against labelled faults, and beside controls that need no detector."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray
from analysis.detection.replaying.alarms import Alarm
from collectors.contract import SeriesKey

_DAY_SECONDS = 86_400.0
_CONTROL_ALARM_SECONDS = 60.0

Span = tuple[float, float]
"""Start and end in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class LabelledFault:
    """A time in which something was wrong; alarms on its entities in it are right."""

    start_seconds: float
    end_seconds: float
    entities: Collection[str] = ()
    """Entities that are affected; all where empty. Entities below one of them count as well."""
    signals: Collection[str] = ()
    """Signals that are affected; all where empty."""

    def concerns(self, key: SeriesKey) -> bool:
        """Say whether an alarm of a series in its time is right."""
        if self.signals and key.signal not in self.signals:
            return False
        return not self.entities or any(
            key.entity == name or key.entity.startswith(f"{name}/") for name in self.entities
        )

    def within(self, span: Span) -> bool:
        """Say whether it can be judged by alarms that were raised in a time."""
        return self.start_seconds <= span[1] and self.end_seconds > span[0]


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
class Verdict:
    """A quality, and what it was counted from."""

    quality: Quality
    first_alarm: tuple[int | None, ...]
    """For each fault the alarm that noticed it, by place; None where it was missed."""
    right: NDArray[np.bool_]
    """``[alarms]``: those that overlap a fault of theirs."""


class AlarmTable:
    """Alarms as arrays, so that many ways to judge them are cheap.

    Args:
        keys: the series ``[alarms]``.
        raised: when each was raised ``[alarms]``.
        last: the last tick of each ``[alarms]``.
    """

    def __init__(self, keys: Sequence[SeriesKey], raised: FloatArray, last: FloatArray) -> None:
        self.keys, self.raised, self.last = keys, raised, last
        numbers: dict[SeriesKey, int] = {}
        places = [numbers.setdefault(key, len(numbers)) for key in keys]
        self._distinct = tuple(numbers)
        self._place = np.array(places, dtype=np.int64)

    @classmethod
    def of(cls, alarms: Sequence[Alarm]) -> AlarmTable:
        """Lay alarms into a table, in their order."""
        return cls(
            [alarm.key for alarm in alarms],
            np.array([alarm.raised_seconds for alarm in alarms], dtype=float),
            np.array([alarm.last_seconds for alarm in alarms], dtype=float),
        )

    def __len__(self) -> int:
        return len(self.raised)

    def concerned(self, fault: LabelledFault) -> NDArray[np.bool_]:
        """``[alarms]``: whether each is of a series that the fault concerns."""
        return self.where(fault.concerns)

    def where(self, wanted: Callable[[SeriesKey], bool]) -> NDArray[np.bool_]:
        """``[alarms]``: whether the series of each is wanted."""
        asked = np.array([wanted(key) for key in self._distinct], dtype=bool)
        return asked[self._place] if len(self) else np.empty(0, dtype=bool)

    def chosen(self, which: NDArray[np.bool_]) -> AlarmTable:
        """Return some of them."""
        keys = [self.keys[int(place)] for place in np.flatnonzero(which)]
        return AlarmTable(keys, self.raised[which], self.last[which])

    def plus(self, other: AlarmTable) -> AlarmTable:
        """Return both."""
        return AlarmTable(
            [*self.keys, *other.keys],
            np.concatenate((self.raised, other.raised)),
            np.concatenate((self.last, other.last)),
        )


def judge(alarms: AlarmTable, faults: Sequence[LabelledFault], series: int, span: Span) -> Verdict:
    """Compare alarms with faults.

    Args:
        alarms: what was raised.
        faults: when something was wrong; without one every alarm is false.
        series: how many series were watched.
        span: the time in which alarms count.
    """
    right = np.zeros(len(alarms), dtype=bool)
    first: list[int | None] = []
    delays: list[float] = []
    for fault in faults:
        overlaps = (alarms.last >= fault.start_seconds) & (alarms.raised <= fault.end_seconds)
        hits = overlaps & alarms.concerned(fault)
        right |= hits
        # An alarm that was on before the fault has not noticed it.
        fresh = np.flatnonzero(hits & (alarms.raised >= fault.start_seconds))
        if not len(fresh):
            first.append(None)
            continue
        first.append(int(fresh[np.argmin(alarms.raised[fresh])]))
        delays.append(float(alarms.raised[fresh].min() - fault.start_seconds))
    false = int((~right).sum())
    quality = Quality(
        len(faults), len(delays), tuple(delays), false, false / series_days(series, span)
    )
    return Verdict(quality, tuple(first), right)


def series_days(series: int, span: Span) -> float:
    """Return how many series were watched for how long, in days."""
    return max(series * max(span[1] - span[0], 1.0) / _DAY_SECONDS, 1e-12)


def random_control(
    count: int,
    faults: Sequence[LabelledFault],
    keys: Sequence[SeriesKey],
    span: Span,
    seed: int,
) -> Quality:
    """Judge as many alarms at random times and series."""
    random = np.random.default_rng(seed)
    times = np.sort(random.uniform(*span, count))
    chosen = random.integers(0, max(len(keys), 1), count)
    table = AlarmTable([keys[at] for at in chosen], times, times + _CONTROL_ALARM_SECONDS)
    return judge(table, faults, len(keys), span).quality


def constant_control(
    faults: Sequence[LabelledFault], keys: Sequence[SeriesKey], span: Span
) -> Quality:
    """Judge what raises every series anew each minute: it notices all faults and is always wrong.

    Its alarms are counted and never made: a thousand series make ten million of them a week.
    """
    starts = np.arange(span[0], span[1], _CONTROL_ALARM_SECONDS)
    false = 0
    by_faults: dict[tuple[int, ...], int] = {}
    for key in keys:
        concerned = tuple(at for at, fault in enumerate(faults) if fault.concerns(key))
        by_faults[concerned] = by_faults.get(concerned, 0) + 1
    for concerned, count in by_faults.items():
        right = np.zeros(len(starts), dtype=bool)
        for at in concerned:
            fault = faults[at]
            right |= (starts + _CONTROL_ALARM_SECONDS >= fault.start_seconds) & (
                starts <= fault.end_seconds
            )
        false += count * int((~right).sum())
    delays = []
    for at, fault in enumerate(faults):
        if not any(at in concerned for concerned in by_faults):
            continue
        # A fault between two of its minutes is noticed by its end: an alarm is always on.
        fresh = starts[(starts >= fault.start_seconds) & (starts <= fault.end_seconds)]
        noticed = float(fresh[0]) if len(fresh) else fault.end_seconds
        delays.append(noticed - fault.start_seconds)
    return Quality(
        len(faults), len(delays), tuple(delays), false, false / series_days(len(keys), span)
    )
