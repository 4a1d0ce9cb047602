"""Staleness markers: what tells Prometheus that a series has ended, instead of five minutes of silence.

https://prometheus.io/docs/specs/prw/remote_write_spec/#stale-markers wants them of every sender.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from collectors.contract import Sample, SeriesKey

STALE_NAN: float = struct.unpack("<d", b"\x02\x00\x00\x00\x00\x00\xf0\x7f")[0]
"""The NaN that means "no more"; every other NaN is a value."""
_NEXT_MILLISECOND_SECONDS = 0.002
"""Rounds to a later millisecond than what it is added to, also where that is half-way between two."""


@dataclass(slots=True)
class _Seen:
    sample: Sample
    longest_gap_seconds: float = 0.0


class EndedSeries:
    """Notices series that come no more.

    Args:
        after_seconds: silence after which a series has ended. One that comes more seldom is given
            three times its longest pause.
    """

    def __init__(self, after_seconds: float) -> None:
        self._after_seconds = after_seconds
        self._seen: dict[SeriesKey, _Seen] = {}

    def markers(self, now_seconds: float, samples: Iterable[Sample]) -> list[Sample]:
        """Take in what came now, and return a marker for each series that has ended by now."""
        for sample in samples:
            key = SeriesKey(sample.entity, sample.signal)
            known = self._seen.get(key)
            if known is None:
                self._seen[key] = _Seen(sample)
            else:
                gap = sample.time_seconds - known.sample.time_seconds
                known.longest_gap_seconds = max(known.longest_gap_seconds, gap)
                known.sample = sample
        ended = [
            key
            for key, seen in self._seen.items()
            if now_seconds - seen.sample.time_seconds
            > max(self._after_seconds, 3 * seen.longest_gap_seconds)
        ]
        return [self._end(key, now_seconds) for key in ended]

    def end_all(self, now_seconds: float) -> list[Sample]:
        """Return a marker for every series: nothing will come any more."""
        return [self._end(key, now_seconds) for key in list(self._seen)]

    def _end(self, key: SeriesKey, now_seconds: float) -> Sample:
        last = self._seen.pop(key).sample
        # Servers refuse a second value for one millisecond: the end comes after the last sample.
        at = max(now_seconds, last.time_seconds + _NEXT_MILLISECOND_SECONDS)
        return Sample(at, key.entity, key.signal, STALE_NAN, last.labels)
