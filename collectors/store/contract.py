"""What a series store is: written by one process, read by others while it is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from collectors.contract import Sample, SeriesKey

if TYPE_CHECKING:  # the agent names this contract and has no room for what it does not use
    import pandas as pd

MINUTE_SECONDS = 60
HOUR_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """What is known of a series without reading it."""

    key: SeriesKey
    labels: Mapping[str, str]
    first_seconds: float
    last_seconds: float
    last_value: float


class StoreError(Exception):
    """The store could not be written or read; the message names the file and what to do."""


@runtime_checkable
class SeriesReader(Protocol):
    """The reading half, enough for analysis, reports and the dashboard."""

    def series(self) -> Sequence[SeriesInfo]:
        """List every series with its newest value."""

    def read(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Read samples with ``start <= time < end``.

        Returns:
            One row a sample, sorted by time: ``time`` (float seconds since the epoch), ``entity``,
            ``signal``, ``value``. Empty, with these columns, when there is nothing.
        """

    def read_rollup(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        resolution_seconds: float = 60.0,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Read what the samples of each bucket of time were: the lowest, highest, mean and how many.

        Buckets are aligned to the epoch. Those that begin in ``start <= time < end`` are returned, the
        newest one with what it has so far. A bucket without a sample is left out.

        Args:
            start_seconds: seconds since the epoch.
            end_seconds: seconds since the epoch.
            resolution_seconds: the length of a bucket, a multiple of 60.
            entities: only these.
            signals: only these.

        Returns:
            One row a bucket, sorted by time: ``time`` (its beginning), ``entity``, ``signal``,
            ``min``, ``max``, ``mean``, ``count``.

        Raises:
            ValueError: when the resolution is no multiple of a minute.
        """

    def close(self) -> None:
        """Release the connection."""


@runtime_checkable
class SeriesStore(SeriesReader, Protocol):
    """The whole store, as its one writer sees it."""

    def write(self, samples: Sequence[Sample]) -> int:
        """Append samples in one transaction and return how many were stored.

        A sample whose value or time is not finite is left out. A second sample of the same series at
        the same millisecond replaces the first, in whatever order times come.
        """

    def prune(self, *, before_seconds: float) -> int:
        """Delete samples older than a time and return how many went. Roll-ups stay."""

    def prune_rollups(self, *, minutes_before_seconds: float, hours_before_seconds: float) -> int:
        """Delete roll-ups of hours that ended before a time; return how many rows were touched."""

    def compact(self, *, now_seconds: float, budget_seconds: float) -> bool:
        """Bring older samples into their lasting form, for about as long as the budget.

        Nothing that a read returns changes by it.

        Returns:
            Whether nothing is left to do for now.
        """

    def give_back(self) -> int:
        """Return space that holds nothing to the disk, some of it a call, and say how many bytes."""


def check_resolution(resolution_seconds: float) -> int:
    """Return a resolution as a whole number of seconds.

    Raises:
        ValueError: when it is no multiple of a minute.
    """
    if resolution_seconds < MINUTE_SECONDS or resolution_seconds % MINUTE_SECONDS:
        raise ValueError(f"the resolution is a multiple of 60 s, not {resolution_seconds:g} s")
    return int(resolution_seconds)


def resolution_for(span_seconds: float, *, points: int = 2000) -> float | None:
    """Return the finest resolution that gives at most some points a series; None is every sample.

    Samples are taken to be a second apart or more.
    """
    if span_seconds <= points:
        return None
    for resolution in (60, 300, 900, HOUR_SECONDS, 6 * HOUR_SECONDS):
        if span_seconds / resolution <= points:
            return float(resolution)
    return float(24 * HOUR_SECONDS)
