"""The p-value of each series' present deviation, beside its score.

A score says how far a value is from what alarms; it moves with the least deviation that matters and
with the tracked limit, which holds its rate for any noise, also one that changes
(:class:`analysis.detection.calibration.TailTracker`). A p-value says how rare the deviation is among
the series' own normal ones, down to rates that no tracker could have seen yet. Alarms are decided by
scores; p-values are for people and for ranking, and their own realised rate shows what they are worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.detection.calibration import RealisedRate
from analysis.detection.contract import FloatArray, Realised
from analysis.detection.streaming_tail import StreamingTail
from analysis.detection.tails import exceeds

NOMINAL_RATE = 0.001
"""Rate at which p-values are checked: beyond what one block of normal values shows by itself."""


class Rarity:
    """Follows the tail of every series' raw baseline scores."""

    name = "p_value"

    def __init__(self) -> None:
        self._tail = StreamingTail()
        self._realised = RealisedRate(NOMINAL_RATE)

    def grow(self, count: int) -> None:
        """Add series."""
        self._tail.grow(count)
        self._realised.grow(count)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the series where ``kept`` is false."""
        self._tail.keep(kept)
        self._realised.move(np.flatnonzero(kept))

    def judge(self, raw: FloatArray, learn: NDArray[np.bool_]) -> FloatArray:
        """Return the p-value of each raw score ``[series]``, then learn where ``learn`` is true."""
        p_values = self._tail.p_values(raw)
        self._realised.note(learn & exceeds(p_values, NOMINAL_RATE), learn & np.isfinite(p_values))
        self._tail.update(raw, learn)
        return p_values

    def realised(self, names: Sequence[tuple[str, str]]) -> Realised:
        """Return how often p-values of normal values were below the nominal rate."""
        return self._realised.summary(self.name, names)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart."""
        realised = {f"realised_{name}": array for name, array in self._realised.state().items()}
        return {**self._tail.state(), **realised}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state; raises ValueError and changes nothing where it does not fit."""
        realised = {
            name.removeprefix("realised_"): array
            for name, array in state.items()
            if name.startswith("realised_")
        }
        self._realised.check(realised)
        self._tail.restore(state)
        self._realised.restore(realised)
