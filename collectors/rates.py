"""Counters to rates, and histograms to quantiles, the way Prometheus does it.

Everything here works on cumulative values as a target exposes them and copes with a target that
restarts, which puts its counters back to zero.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)


def counter_increase(before: float, after: float) -> float:
    """Return how much a counter grew; one that fell has restarted and grew by its new value."""
    return after if after < before else after - before


def histogram_quantile(quantile: float, buckets: Mapping[float, float]) -> float | None:
    """Estimate a quantile from cumulative buckets.

    Linear interpolation inside the bucket in which the rank falls, as ``histogram_quantile`` of
    Prometheus (promql/quantile.go, ``BucketQuantile``): the lowest bucket starts at 0 when its upper
    bound is positive; a rank in the ``+Inf`` bucket gives the highest finite bound; a bucket that
    holds less than one below it (a scrape torn by an update) is raised to it.

    Args:
        quantile: between 0 and 1.
        buckets: observations ``<= upper bound``, by upper bound.

    Returns:
        The estimate in the unit of the bounds, or None when there is no observation, no ``+Inf``
        bucket or no finite bound.

    Raises:
        ValueError: when the quantile is not between 0 and 1.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"a quantile lies between 0 and 1, got {quantile}")
    bounds = sorted(buckets)
    if len(bounds) < 2 or bounds[-1] != math.inf:
        return None
    counts: list[float] = []
    for bound in bounds:
        counts.append(max(buckets[bound], counts[-1] if counts else 0.0))
    if counts[-1] <= 0:
        return None
    rank = quantile * counts[-1]
    place = next(index for index, count in enumerate(counts) if count >= rank)
    if place == len(bounds) - 1:
        return bounds[-2]
    if place == 0 and bounds[0] <= 0:
        return bounds[0]
    low, below = (bounds[place - 1], counts[place - 1]) if place else (0.0, 0.0)
    inside = counts[place] - below
    # An empty bucket holds the rank only when the rank is 0.
    share = (rank - below) / inside if inside > 0 else 0.0
    return low + (bounds[place] - low) * share


class _Scrape(NamedTuple, Generic[K]):
    time_seconds: float
    totals: dict[K, float]


class CounterWindow(Generic[K]):
    """Increases of many counters over the recent scrapes of one target.

    A series that a scrape shows for the first time, while the scrape before showed others, started at
    zero: the first error of a kind is not lost, as it is to ``rate()`` over one scraped value.

    Args:
        keep_seconds: how far back increases can be asked for.
    """

    def __init__(self, *, keep_seconds: float) -> None:
        if keep_seconds <= 0:
            raise ValueError(f"keep_seconds must be positive, got {keep_seconds}")
        self._keep_seconds = keep_seconds
        self._raw: dict[K, float] | None = None
        # Totals of increases since the first scrape: they never fall, so a difference of any two is
        # the increase between them, restarts included.
        self._scrapes: deque[_Scrape[K]] = deque()

    def add(self, time_seconds: float, counters: Mapping[K, float]) -> None:
        """Take one scrape.

        Raises:
            ValueError: when time does not go forward.
        """
        if self._scrapes and time_seconds <= self._scrapes[-1].time_seconds:
            raise ValueError(
                f"scrape at {time_seconds} is not after the one at {self._scrapes[-1].time_seconds}"
            )
        totals = dict(self._scrapes[-1].totals) if self._scrapes else {}
        if self._raw is not None:
            for key, value in counters.items():
                totals[key] = totals.get(key, 0.0) + counter_increase(
                    self._raw.get(key, 0.0), value
                )
        # One that a scrape lacks keeps its last value: it goes on from there when it comes back.
        self._raw = {**self._raw, **counters} if self._raw is not None else dict(counters)
        self._scrapes.append(_Scrape(time_seconds, totals))
        # One scrape older than the window stays: it is the left edge of the increase.
        while (
            len(self._scrapes) > 2
            and self._scrapes[1].time_seconds <= time_seconds - self._keep_seconds
        ):
            self._scrapes.popleft()

    def span_seconds(self, window_seconds: float | None = None) -> float:
        """Return the time that an increase over this window covers; 0 before the second scrape.

        Args:
            window_seconds: how far back to look; None looks back to the scrape before.
        """
        if len(self._scrapes) < 2:
            return 0.0
        return self._scrapes[-1].time_seconds - self._edge(window_seconds).time_seconds

    def increases(
        self, window_seconds: float | None = None, *, where: Callable[[K], bool] | None = None
    ) -> dict[K, float]:
        """Return the increase of every counter (``where`` holds) over the window.

        Args:
            window_seconds: how far back to look; None looks back to the scrape before.
            where: which counters; None takes all.
        """
        if len(self._scrapes) < 2:
            return {}
        edge = self._edge(window_seconds).totals
        newest = self._scrapes[-1].totals
        return {
            key: total - edge.get(key, 0.0)
            for key, total in newest.items()
            if where is None or where(key)
        }

    def _edge(self, window_seconds: float | None) -> _Scrape[K]:
        if window_seconds is None:
            return self._scrapes[-2]
        start = self._scrapes[-1].time_seconds - window_seconds
        edge = self._scrapes[-2]
        for scrape in reversed(self._scrapes):
            # A hair of tolerance: ticks a second apart are never exactly so.
            if scrape.time_seconds < start - 0.5:
                break
            if scrape is not self._scrapes[-1]:
                edge = scrape
        return edge
