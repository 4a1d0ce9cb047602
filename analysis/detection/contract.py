"""What a detector is, and what the detection pipeline gives to the stages after it.

Detectors are batched over series: one call scores the newest value of every series, state lives in
arrays, and column ``i`` means the same series until series are retired. A score above 1 is an
anomaly. The score at time t depends on values up to t only, and the same input gives the same output.
Series come (:meth:`Detector.grow`) and go (:meth:`Detector.keep`), so that the state of a fleet whose
pods are replaced does not grow for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from analysis.findings import Anomaly, Direction, Exhaustion, LevelShift
from collectors.contract import SeriesKey

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """What one detector says of the newest tick. Each array is ``[series]``; NaN is "no opinion"."""

    score: FloatArray
    expected: FloatArray
    low: FloatArray
    high: FloatArray


@runtime_checkable
class Detector(Protocol):
    """Scores the newest value of every series."""

    @property
    def name(self) -> str:
        """A short unique name, shown to people beside each anomaly."""

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for series that are new; they take the next columns in this order."""

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` ``[series]`` is false; the others close up in their order.

        What is known of entities that lose no series stays as it is.
        """

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:
        """Score one tick, then learn from it where ``learn`` is true.

        Args:
            time_seconds: the time of the tick, later than that of the call before.
            values: ``[series]``, NaN where nothing arrived.
            learn: ``[series]``, false where a value must not move the baseline, such as during an
                anomaly that is known already.
        """

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return everything that has to be kept over a restart."""

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state that :meth:`state` returned, after :meth:`grow` with the same keys.

        Raises:
            ValueError: when the state does not fit; the detector is unchanged then.
        """


@dataclass(frozen=True, slots=True)
class SignalState:
    """What detection knows of one series at one tick, anomalous or not."""

    key: SeriesKey
    observed: float | None
    """The newest value; None where nothing has arrived for longer than the series' own cadence."""
    age_seconds: float
    """How old the newest value is."""
    expected: float | None
    low: float | None
    high: float | None
    score: float
    """The fused score of all detectors; 0 while nothing can be said."""
    direction: Direction
    onset_seconds: float | None
    """When the present deviation began; None while normal."""
    active: bool
    """Whether the alert policy has raised it as an anomaly."""
    warmed_up: bool
    """Whether a baseline of its own exists; without one only limits and absence speak."""
    detectors: tuple[str, ...] = ()
    p_value: float | None = None
    """How likely a normal value of this series deviates from the baseline at least as far towards the
    bad side; None until enough values are known (see :mod:`analysis.detection.streaming_tail`)."""
    share: float = 0.0
    """Its part of all that is unusual of its entity, 0 to 1; 0 while the entity has no anomaly."""
    exhaustion: Exhaustion | None = None
    shift: LevelShift | None = None


@dataclass(frozen=True, slots=True)
class Realised:
    """How often a detector called normal values unusual, against how often it should."""

    detector: str
    nominal_rate: float
    above: float
    """Normal values that were called unusual, of all series since they were first seen."""
    seen: float
    """All normal values."""
    worst: tuple[str, str] | None
    """Entity and signal with the highest rate of late; the signal is empty where the detector judges
    entities, and all of it None while no series has been seen for long enough."""
    worst_rate: float


@dataclass(frozen=True, slots=True)
class Detections:
    """One tick's result."""

    time_seconds: float
    anomalies: Sequence[Anomaly]
    """Those that the alert policy holds active now."""
    states: Mapping[SeriesKey, SignalState]
    """Every series that has been seen."""
    realised: Sequence[Realised] = ()
    """Calibration of each detector that has a nominal rate."""
    shifts: Sequence[LevelShift] = ()
    """New levels that are taken for normal from this tick on. Each shift is told once."""
    state_bytes: int = 0
    """What the arrays of all detectors take in memory; measured once a minute."""
