"""Brings detection from its last saved state to the present, by what the series store has since.

State is saved once a minute. After a sudden end the ticks since then lie in the series store, with the
times at which they ran: replaying them gives what detection knew when it ended, to the last bit, and
the recent past that diagnosis compares with.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import structlog

from analysis.detection.contract import Detections, FloatArray
from analysis.history import History
from collectors.contract import Sample, SeriesKey
from collectors.store.contract import SeriesReader

_log = structlog.get_logger(__name__)

_MOST_SECONDS = 300.0
"""No more than this is replayed: detection takes a longer time for a pause, which is nobody's fault."""
_RESOLUTION_SECONDS = 0.001
"""Of times in the store."""


class Resumable(Protocol):
    """A pipeline that knows how far it has come."""

    @property
    def last_seconds(self) -> float | None:
        """The time of the newest tick with a value; None before the first."""

    def tick(self, now_seconds: float, row: FloatArray) -> Detections:
        """Score the newest row of the history."""


def catch_up(
    pipeline: Resumable,
    history: History,
    reader: SeriesReader,
    *,
    tick_entity: str,
    now_seconds: float,
) -> int:
    """Replay the ticks that a pipeline has not seen, and return their number.

    Args:
        pipeline: with its state restored, or without any.
        history: appended to.
        reader: of the series store.
        tick_entity: an entity of which there is a sample at the time of each tick.
        now_seconds: the present; nothing is replayed from then on.
    """
    last = pipeline.last_seconds
    start = now_seconds - _MOST_SECONDS
    if last is not None:
        start = max(start, last + _RESOLUTION_SECONDS)
    frame = reader.read(start_seconds=start, end_seconds=now_seconds)
    times = frame["time"].to_numpy(dtype=float)
    ticks = np.unique(times[(frame["entity"] == tick_entity).to_numpy()])
    if not ticks.size:
        return 0
    labels = {info.key: info.labels for info in reader.series()}
    columns = [frame[name].tolist() for name in ("time", "entity", "signal", "value")]
    first = 0
    for now, end in zip(ticks, np.searchsorted(times, ticks, side="right"), strict=True):
        rows = zip(*(column[first:end] for column in columns), strict=True)
        samples = [
            Sample(time, entity, signal, value, labels.get(SeriesKey(entity, signal), {}))
            for time, entity, signal, value in rows
        ]
        pipeline.tick(float(now), history.append(float(now), samples))
        first = int(end)
    _log.info(
        "detection_caught_up", ticks=len(ticks), seconds=round(float(ticks[-1] - ticks[0]), 1)
    )
    return len(ticks)
