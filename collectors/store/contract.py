"""What a series store is: written by one process, read by others while it is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from collectors.contract import Sample, SeriesKey

if TYPE_CHECKING:  # the agent names this contract and has no room for what it does not use
    import pandas as pd


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

    def close(self) -> None:
        """Release the connection."""


@runtime_checkable
class SeriesStore(SeriesReader, Protocol):
    """The whole store, as its one writer sees it."""

    def write(self, samples: Sequence[Sample]) -> int:
        """Append samples in one transaction and return how many were stored.

        A sample whose value is not finite is left out. A second sample of the same series at the same
        time replaces the first.
        """

    def prune(self, *, before_seconds: float) -> int:
        """Delete samples older than a time and return how many went."""
