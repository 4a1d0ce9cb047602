"""A table of samples, read as if it were a series store."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from collectors.contract import SeriesKey
from collectors.store.contract import SeriesInfo
from collectors.store.frames import rolled_up


class FrameReader:
    """Reads series of a table in memory: what was read in one request is asked for one by one.

    Args:
        frame: as :meth:`~collectors.store.contract.SeriesReader.read` returns it.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self._nothing = frame.iloc[:0]
        # The table is sorted by time, and groups keep the order of their rows.
        grouped = frame.groupby(["entity", "signal"], sort=True, observed=True)
        self._parts = {SeriesKey(*map(str, names)): part for names, part in grouped}

    def series(self) -> Sequence[SeriesInfo]:
        """List every series with its newest value."""
        return [
            SeriesInfo(
                key,
                {},
                float(part["time"].iloc[0]),
                float(part["time"].iloc[-1]),
                float(part["value"].iloc[-1]),
            )
            for key, part in self._parts.items()
        ]

    def read(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Return samples with ``start <= time < end``."""
        parts = [
            part
            for key, part in self._parts.items()
            if (entities is None or key.entity in entities)
            and (signals is None or key.signal in signals)
        ]
        if not parts:
            return self._nothing
        found = parts[0] if len(parts) == 1 else pd.concat(parts)
        inside = (found["time"] >= start_seconds) & (found["time"] < end_seconds)
        return found[inside].sort_values("time", kind="stable", ignore_index=True)

    def read_rollup(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        resolution_seconds: float = 60.0,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Count what :meth:`read` gives into buckets."""
        found = self.read(
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            entities=entities,
            signals=signals,
        )
        return rolled_up(found, int(resolution_seconds))

    def close(self) -> None:
        """Do nothing: there is no connection."""
