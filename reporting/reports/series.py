"""Series as arrays, and the small arithmetic that figures are made of. All of it honours gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from tsdownsample import MinMaxLTTBDownsampler

from collectors.store.contract import SeriesInfo, SeriesReader, StoreError

log = structlog.get_logger(__name__)

FloatArray = NDArray[np.float64]

# A gap is a distance of more than this many usual distances.
_GAP_FACTOR = 5.0
_DEFAULT_CADENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Series:
    """Times ``[n]`` in seconds, ascending, and values ``[n]``, finite."""

    times: FloatArray = field(default_factory=lambda: np.empty(0))
    values: FloatArray = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        return len(self.times)

    @property
    def cadence_seconds(self) -> float:
        """The usual distance between samples."""
        if len(self.times) < 2:
            return _DEFAULT_CADENCE_SECONDS
        return float(np.median(np.diff(self.times)))

    @property
    def gap_seconds(self) -> float:
        """A longer distance than this is a gap: nothing is known inside it."""
        return _GAP_FACTOR * max(self.cadence_seconds, 1.0)

    def between(self, start_seconds: float, end_seconds: float) -> Series:
        """Return the part with ``start <= time < end``."""
        first, last = np.searchsorted(self.times, [start_seconds, end_seconds])
        return Series(self.times[first:last], self.values[first:last])

    def mean(self) -> float | None:
        """Return the mean over samples."""
        return float(self.values.mean()) if len(self) else None

    def highest(self) -> float | None:
        """Return the largest value."""
        return float(self.values.max()) if len(self) else None

    def quantile(self, share: float) -> float | None:
        """Return the value that ``share`` of the samples do not exceed, interpolated linearly."""
        return float(np.quantile(self.values, share)) if len(self) else None

    def share(self, at_least: float) -> float | None:
        """Return the share of samples that reach a value."""
        return float((self.values >= at_least).mean()) if len(self) else None

    def increase(self) -> float | None:
        """Return by how much a counter grew; one that falls has started again from zero."""
        if not len(self):
            return None
        steps = np.diff(self.values)
        return float(np.where(steps < 0, self.values[1:], steps).sum())

    def spans(self) -> FloatArray:
        """Return for each sample the seconds ``[n]`` that it stands for; none beyond a gap."""
        if not len(self):
            return np.empty(0)
        usual = self.cadence_seconds if len(self) > 1 else 0.0
        distances = np.diff(self.times, prepend=self.times[0] - usual)
        return np.where(distances > self.gap_seconds, usual, distances)

    def integral(self) -> float | None:
        """Return the sum of value times seconds over what was seen."""
        return float((self.values * self.spans()).sum()) if len(self) else None

    def at(self, times: FloatArray, *, default: float) -> FloatArray:
        """Return the newest value at each of ``times``; ``default`` before the first, and in gaps."""
        if not len(self):
            return np.full(len(times), default)
        places = np.searchsorted(self.times, times, side="right") - 1
        found = self.values[np.maximum(places, 0)]
        fresh = (places >= 0) & (times - self.times[np.maximum(places, 0)] <= self.gap_seconds)
        return np.where(fresh, found, default)

    def thinned(self, points: int) -> Series:
        """Return at most about ``points`` of the samples, among them every extreme.

        MinMaxLTTB (Van Der Donckt et al. 2023, arXiv:2305.00332) keeps one-sample spikes.
        """
        if len(self) <= points:
            return self
        sampler: Any = MinMaxLTTBDownsampler
        chosen = sampler().downsample(self.times, self.values, n_out=points)
        return Series(self.times[chosen], self.values[chosen])


class SeriesSource:
    """Reads one series at a time, so that a long window of many series does not fill the memory.

    A store that cannot be read gives empty series, and one note that says why.
    """

    def __init__(self, reader: SeriesReader) -> None:
        self._reader = reader
        self.notes: tuple[str, ...] = ()

    def list(self) -> Sequence[SeriesInfo]:
        """Return every series that the store knows."""
        try:
            return self._reader.series()
        except StoreError as error:
            self._note(error)
            return ()

    def read(self, entity: str, signal: str, start_seconds: float, end_seconds: float) -> Series:
        """Return one series with ``start <= time < end``."""
        try:
            frame = self._reader.read(
                start_seconds=start_seconds,
                end_seconds=end_seconds,
                entities=[entity],
                signals=[signal],
            )
        except StoreError as error:
            self._note(error)
            return Series()
        times = frame["time"].to_numpy(dtype=np.float64)
        values = frame["value"].to_numpy(dtype=np.float64)
        finite = np.isfinite(values)
        return Series(times[finite], values[finite])

    def _note(self, error: StoreError) -> None:
        note = f"The series store could not be read, so its figures are missing: {error}"
        if note not in self.notes:
            self.notes = (*self.notes, note)
            log.warning("report_store_unreadable", error=str(error))
