"""The tail of every series' normal scores, followed live: bounded memory, one vector step a tick.

Scores come in blocks. Of a block only the largest are kept, in a buffer that is thinned when it is
full; at its end they give the threshold, its share and a generalised Pareto fit
(:mod:`analysis.detection.tails`), which hold until the next block ends and count for seven more. A
block has 128 scores at first and doubles up to 1,024, so that a p-value of its own exists within minutes
and the law follows slow changes. SPOT (Siffer et al., KDD 2017) keeps all excesses over a threshold that
it sets once; a block forgets, needs no threshold to be right, and costs a fit only now and then.

Direction: up, of scores that are larger the less normal a value is. Warm-up: 20 scores; below 128 the
p-value is conformal alone and at least one in their number, and until a block of 512 has ended at least
one in a block. It fails on scores whose law changes faster than a block lasts, and by how much the
realised rate of its p-values shows (:class:`~.calibration.RealisedRate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray
from analysis.detection.tails import SMALLEST_P, ParetoTail, fit_pareto, tail_length

_FIRST_BLOCK = 128.0
_LONGEST_BLOCK = 1024.0
_BOLD_BLOCK = 512.0
"""A shorter block says of no score that it is rarer than one in its length: neighbours are alike, so a
few minutes show less than their number, and what lies beyond them would look too rare."""
_BUFFER = 128
"""Room for the largest scores of a block: a third more than the tail of the longest block has."""
_OLDER = 7
"""Laws of earlier blocks that count as well: eight blocks of 1,024 are two hours at one second."""
_LAW = ("start", "share", "shape", "scale")
_MOST_CLIPPED = 3
_BULK = 32
"""Scores that stand for all below the tail, one in so many of the block before."""
_LEAST_SCORES = 20
_FARTHEST_P = 1e-4
"""A score rarer than this is learned as if it were this rare: one fault must not make the tail heavy,
and a tail that has become heavy is still learned, block by block."""
_HIGHEST = 1e30
"""Scores are kept in single precision."""
_FITS_A_TICK = (8, 512)
"""At least so many series are fitted at one tick where they are due, and one in so many."""


class StreamingTail:
    """How rare the present score of each series is among its own normal scores."""

    def __init__(self) -> None:
        self._columns = Columns(
            seen=0.0,
            target=_FIRST_BLOCK,
            kept=0,
            floor=-np.inf,
            bulk_next=0,
            start=np.inf,
            share=np.nan,
            shape=0.0,
            scale=np.nan,
            rarest=SMALLEST_P,
            clipped=0,
        )
        self._older = np.full((_OLDER, len(_LAW), 0), np.nan, dtype=np.float32)
        self._largest = np.full((_BUFFER, 0), np.nan, dtype=np.float32)
        self._bulk = np.full((_BULK, 0), np.nan, dtype=np.float32)
        # Beyond it scores are learned as if they were on it; changes with the tail only.
        self._farthest = np.empty(0)

    def grow(self, count: int) -> None:
        """Add series."""
        self._columns.grow(count)
        self._largest, self._bulk = (
            np.hstack((array, np.full((len(array), count), np.nan, dtype=np.float32)))
            for array in (self._largest, self._bulk)
        )
        new = np.full((*self._older.shape[:2], count), np.nan, dtype=np.float32)
        self._older = np.concatenate((self._older, new), axis=2)
        self._farthest = self.threshold(_FARTHEST_P)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the series where ``kept`` is false."""
        self._columns.keep(kept)
        self._largest, self._bulk = self._largest[:, kept], self._bulk[:, kept]
        self._older = self._older[:, :, kept]
        self._farthest = self._farthest[kept]

    def p_values(self, scores: FloatArray) -> FloatArray:
        """Return how likely a normal score at least as large is, ``[series]``.

        NaN where no score was given or too few are known yet.
        """
        columns = self._columns
        exact = np.minimum(scores, _HIGHEST).astype(np.float32)
        known = np.minimum(columns["bulk_next"], _BULK)
        at_least = _count(self._bulk >= exact)
        bulk = (at_least + 1.0) / (known + 1.0)
        share = columns["share"]
        bulk = np.fmax(bulk, share)
        # In the first block the buffer has all scores, until it is thinned: more than the bulk has.
        first = np.flatnonzero(np.isnan(share) & (columns["kept"] == columns["seen"]))
        rows = int(columns["kept"][first].max(initial=0))
        beside = _count(self._largest[:rows] >= exact)[first]
        bulk[first] = (beside + 1.0) / (columns["seen"][first] + 1.0)
        # As it is kept: a score that equals the start must not lie above it by rounding. Few are in the
        # tail, and only for them there is a power to compute.
        above = exact.astype(float) - columns["start"]
        far = np.flatnonzero(above > 0)
        bulk[far] = np.minimum(self._beyond(exact[far], far), np.maximum(bulk[far], share[far]))
        result = np.clip(bulk, columns["rarest"], 1.0)
        ready = np.isfinite(scores) & (columns["bulk_next"] >= _LEAST_SCORES)
        return np.where(ready, result, np.nan)

    def _beyond(self, scores: NDArray[np.float32], chosen: NDArray[np.intp]) -> FloatArray:
        """Return the p-values of scores in the tail of the newest law.

        Series rest for hours and then move. A law of the newest block alone would call all of the
        movement rare; the mean over all laws kept says how rare blocks like this are. Where the spread
        has grown for good the newest law is right, and the older ones too light: the larger counts.
        """
        newest = np.stack([self._columns[name][chosen] for name in _LAW])
        laws = np.concatenate((newest[None], self._older[:, :, chosen]))
        start, share, shape, scale = laws.swapaxes(0, 1)
        above = scores.astype(float) - start
        # Below the start of an older law its p-value is at least its share.
        each = share * np.where(above > 0, ParetoTail(shape, scale).survival(above), 1.0)
        known = np.isfinite(start)
        mean = np.where(known, each, 0.0).sum(axis=0) / known.sum(axis=0)
        return np.asarray(np.maximum(each[0], mean))

    def threshold(self, rate: float) -> FloatArray:
        """Return the score that a share ``rate`` of normal scores exceeds, ``[series]``.

        NaN where the first block has not ended, or the rate is not in the tail.
        """
        return self._threshold_of(np.arange(len(self._columns)), rate)

    def _threshold_of(self, chosen: NDArray[np.intp], rate: float) -> FloatArray:
        columns = self._columns
        share = columns["share"][chosen]
        with np.errstate(invalid="ignore"):
            inside = rate < share
        relative = np.where(inside, rate / share, np.nan)
        tail = ParetoTail(columns["shape"][chosen], columns["scale"][chosen])
        return np.asarray(columns["start"][chosen] + tail.quantile(relative))

    def update(self, scores: FloatArray, learn: NDArray[np.bool_]) -> None:
        """Learn from scores ``[series]`` of values that are taken for normal."""
        columns = self._columns
        taken = learn & np.isfinite(scores)
        highest = self._farthest
        # More than a few in a block are no fault: the law has changed.
        far = taken & (scores > highest) & (columns["clipped"] < _MOST_CLIPPED)
        columns["clipped"][far] += 1
        exact = np.minimum(np.where(far, highest, scores), _HIGHEST)
        exact = exact.astype(np.float32)
        self._keep_bulk(exact, taken)
        columns["seen"][taken] += 1.0
        self._keep_largest(exact, np.flatnonzero(taken & (exact > columns["floor"])))
        self._end_blocks()

    def _keep_bulk(self, scores: NDArray[np.float32], taken: NDArray[np.bool_]) -> None:
        columns = self._columns
        # The first scores all count; later ones are spread over a block.
        # Blocks are powers of two, and so is the stride: what is left over are its lower bits.
        stride = np.where(
            columns["bulk_next"] < _BULK, 1, columns["target"].astype(np.int64) // _BULK
        )
        beyond = columns["seen"].astype(np.int64) & (stride - 1)
        chosen = np.flatnonzero(taken & (beyond == 0))
        self._bulk[columns["bulk_next"][chosen] % _BULK, chosen] = scores[chosen]
        columns["bulk_next"][chosen] += 1

    def _keep_largest(self, scores: NDArray[np.float32], chosen: NDArray[np.intp]) -> None:
        columns = self._columns
        self._largest[columns["kept"][chosen], chosen] = scores[chosen]
        columns["kept"][chosen] += 1
        full = chosen[columns["kept"][chosen] == _BUFFER]
        if full.size:
            keep = tail_length(int(_LONGEST_BLOCK)) + 1
            ordered = np.sort(self._largest[:, full], axis=0)
            self._largest[:keep, full] = ordered[-keep:]
            self._largest[keep:, full] = np.nan
            columns["kept"][full] = keep
            columns["floor"][full] = ordered[-keep]

    def _end_blocks(self) -> None:
        """Fit the series whose block is full; where many are, the others' blocks go on for a while."""
        columns = self._columns
        over = columns["seen"] - columns["target"]
        due = np.flatnonzero(over >= 0)
        if not due.size:
            return
        most = max(_FITS_A_TICK[0], len(columns) // _FITS_A_TICK[1])
        if due.size > most:
            due = np.sort(due[np.argsort(-over[due], kind="stable")[:most]])
        self._fit(due)

    def _fit(self, due: NDArray[np.intp]) -> None:
        columns = self._columns
        ordered = -np.sort(-self._largest[:, due].astype(float), axis=0)  # NaN stays last
        seen, kept = columns["seen"][due], columns["kept"][due]
        wanted = np.ceil(np.minimum(0.2 * seen, 3.0 * np.sqrt(seen))).astype(int)
        length = np.clip(wanted, 0, np.maximum(kept - 1, 0))
        # Where fewer were kept than the tail has, the floor below which none was kept is its start.
        start = np.where(kept > 0, ordered[length, np.arange(due.size)], columns["floor"][due])
        excess = ordered - start
        # The law of a short block is not worth keeping.
        kept_on = due[columns["rarest"][due] == SMALLEST_P]
        self._older[1:, :, kept_on] = self._older[:-1, :, kept_on]
        self._older[0, :, kept_on] = np.stack([columns[name][kept_on] for name in _LAW], axis=1)
        columns["start"][due] = start
        columns["rarest"][due] = np.where(seen < _BOLD_BLOCK, 1.0 / (seen + 1.0), SMALLEST_P)
        columns["share"][due] = ((excess > 0).sum(axis=0) + 1.0) / (seen + 1.0)
        fitted = fit_pareto(excess)
        columns["shape"][due], columns["scale"][due] = fitted.shape, fitted.scale
        self._farthest[due] = self._threshold_of(due, _FARTHEST_P)
        self._begin(due, ordered, wanted)

    def _begin(self, due: NDArray[np.intp], ordered: FloatArray, wanted: NDArray[np.int_]) -> None:
        """Start the next block, which need not keep what this one shows to lie far below the tail."""
        columns = self._columns
        kept = columns["kept"][due]
        target = np.minimum(2.0 * columns["target"][due], _LONGEST_BLOCK)
        # As a share of its block the next tail is no longer than this one; a third is left to chance.
        rank = np.clip((wanted * 4) // 3, 0, np.maximum(kept - 1, 0))
        lowest = ordered[rank, np.arange(due.size)]
        # Where the law has moved down too few were kept: the next block begins without a floor.
        columns["floor"][due] = np.where(4 * kept >= 3 * wanted, lowest, -np.inf)
        columns["target"][due] = target
        columns["seen"][due] = 0.0
        columns["kept"][due] = 0
        columns["clipped"][due] = 0
        self._largest[:, due] = np.nan

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what has to be kept over a restart."""
        own = {
            "largest": self._largest.copy(),
            "bulk": self._bulk.copy(),
            "older": self._older.copy(),
        }
        return {**self._columns.state(), **own}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up a state; raises ValueError and changes nothing where it does not fit."""
        self._columns.check(state)
        own = {"largest": self._largest, "bulk": self._bulk, "older": self._older}
        for name, array in own.items():
            if name not in state or state[name].shape != array.shape:
                raise ValueError(f"the array {name!r} of the state is missing or has another shape")
        self._columns.restore(state)
        self._largest = np.array(state["largest"], dtype=np.float32)
        self._bulk = np.array(state["bulk"], dtype=np.float32)
        self._older = np.array(state["older"], dtype=np.float32)
        self._farthest = self.threshold(_FARTHEST_P)


def _count(told: NDArray[np.bool_]) -> FloatArray:
    """Return how many of each column are true, of 255 rows at most.

    Counted in single bytes, which is ten times as fast.
    """
    return np.asarray(np.add.reduce(told, axis=0, dtype=np.uint8), dtype=float)
