"""Follows the scores of a shard tick by tick, and keeps of each series what fits into a line."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray
from analysis.detection.fleet.results import SeriesSummary
from analysis.detection.states import TickArrays
from collectors.contract import SeriesKey

_BLOCK_TICKS = 256
_DIGEST_BYTES = 12


class ScoreBook:
    """Sums up scores ``[series]`` of successive ticks. Series may come and go.

    Args:
        from_seconds: earlier ticks are in the digests and count for nothing else.
    """

    def __init__(self, from_seconds: float = -np.inf) -> None:
        self.ticks = 0
        self._from_seconds = from_seconds
        self._lines: dict[SeriesKey, int] = {}
        self._columns = Columns(anomalous=0, highest=0.0, highest_at=np.nan)
        self._values = Columns(count=0)
        self._names: Sequence[SeriesKey] = ()
        self._place: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._block: list[FloatArray] = []
        self._digests: list[Any] = []

    def take(
        self, now_seconds: float, row: FloatArray, arrays: TickArrays, names: Sequence[SeriesKey]
    ) -> None:
        """Note one tick.

        Args:
            now_seconds: its time.
            row: ``[series]`` what came; the pipeline keeps its series in another order.
            arrays: what the pipeline said.
            names: the series of these arrays; another object where columns mean others than before.
        """
        self._follow(names)
        self._block.append(arrays.score)
        if len(self._block) >= _BLOCK_TICKS:
            self._digest()
        if now_seconds < self._from_seconds:
            return
        self.ticks += 1
        self._values.grow(len(row) - len(self._values))
        self._values["count"][: len(row)] += np.isfinite(row)
        columns, place = self._columns, self._place
        columns["anomalous"][place] += arrays.active
        higher = arrays.score > columns["highest"][place]
        columns["highest"][place[higher]] = arrays.score[higher]
        columns["highest_at"][place[higher]] = now_seconds

    def summaries(
        self, keys: Sequence[SeriesKey], rates: Mapping[SeriesKey, float]
    ) -> tuple[SeriesSummary, ...]:
        """Return a line for each series of the rows, by name.

        Args:
            keys: the series of the rows, in their order.
            rates: the realised tail rate of each.
        """
        self._digest()
        self._values.grow(len(keys) - len(self._values))
        columns, lines = self._columns, []
        for key, count in zip(keys, self._values["count"], strict=True):
            place = self._lines[key]
            at = float(columns["highest_at"][place])
            lines.append(
                SeriesSummary(
                    key=key,
                    values=int(count),
                    anomalous_ticks=int(columns["anomalous"][place]),
                    highest_score=float(columns["highest"][place]),
                    highest_at_seconds=None if np.isnan(at) else at,
                    realised_tail_rate=rates.get(key, float("nan")),
                    digest=self._digests[place].hexdigest(),
                )
            )
        return tuple(sorted(lines, key=lambda line: line.key))

    def _follow(self, names: Sequence[SeriesKey]) -> None:
        """Find the line of each column where these have changed."""
        if names is self._names and len(names) == len(self._place):
            return
        if names is not self._names:
            self._digest()
        for key in names:
            if key not in self._lines:
                self._lines[key] = len(self._lines)
                self._digests.append(hashlib.blake2b(digest_size=_DIGEST_BYTES))
        self._columns.grow(len(self._lines) - len(self._columns))
        self._names = names
        self._place = np.array([self._lines[key] for key in names], dtype=np.int64)

    def _digest(self) -> None:
        """Add the kept ticks to the digest of each series, from its own first tick on."""
        for _, rows in itertools.groupby(self._block, key=len):
            by_series = np.ascontiguousarray(np.vstack(list(rows)).T)
            for place, scores in zip(self._place, by_series, strict=False):
                self._digests[place].update(scores.tobytes())
        self._block = []
