"""How rare a detection score is: conformal p-values in the bulk, a generalised Pareto tail above it.

Most of the distribution is best told by the sample itself: of n exchangeable normal scores the share
that reaches the present one is a valid p-value whatever the distribution (conformal prediction; Vovk,
Gammerman and Shafer, 2005). Rates that matter for alarms lie beyond the sample, so the largest scores
get the limit law of excesses over a high threshold (Pickands, 1975), as SPOT does (Siffer et al.,
"Anomaly Detection in Streams with Extreme Value Theory", KDD 2017).

The tail is fitted by the estimator of Zhang and Stephens ("A New and Efficient Estimation Method for
the Generalized Pareto Distribution", Technometrics 2009), which exists for every shape, needs no
iteration, and so runs over many series in one step; moments do not exist for heavy tails, and
Grimshaw's likelihood is searched for series by series. How many of the scores are the tail follows
Vehtari et al. ("Pareto Smoothed Importance Sampling", JMLR 2024), as does the weak prior on the shape.
Without the prior, thresholds for rates at the edge of the sample are exceeded too often.

Off line use :func:`fit_tail`; live, :class:`analysis.detection.streaming_tail.StreamingTail`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.detection.contract import FloatArray

LEAST_EXCESSES = 10
"""Fewer than these show no shape; the tail is then exponential with their mean."""
SMALLEST_P = 1e-15
"""No p-value is smaller: what a sample says of rarer scores is no more than that they are rare."""
_PRIOR_SHAPE = 0.5
_PRIOR_EXCESSES = 10.0
"""Shape of the prior, and how many excesses it counts as; both from Vehtari et al. A short tail that
happens to look light would give p-values that are too small, so the error is on the careful side."""
_SHAPES = (-0.5, 1.5)
"""Lighter tails end where the sample does, and a score beyond would be called impossible."""
_GRID = 30


@dataclass(frozen=True, slots=True)
class ParetoTail:
    """Generalised Pareto distributions of excesses; each array has the shape of ``[series]``.

    A NaN scale stands for a tail in which nothing was seen: every excess is then as likely as the
    threshold itself.
    """

    shape: FloatArray
    scale: FloatArray

    def survival(self, excess: FloatArray) -> FloatArray:
        """Return the probability of an excess at least as large, ``[series]``."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            reach = np.maximum(excess, 0.0) / self.scale
            curved = np.maximum(1.0 + self.shape * reach, 0.0) ** (-1.0 / self.shape)
        straight = np.exp(-reach)
        chosen = np.where(np.abs(self.shape) < 1e-6, straight, curved)
        return np.where(np.isnan(self.scale), 1.0, chosen)

    def quantile(self, survival: FloatArray) -> FloatArray:
        """Return the excess that is exceeded with a probability, ``[series]``."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            straight = -np.log(survival)
            curved = (survival**-self.shape - 1.0) / self.shape
        return self.scale * np.where(np.abs(self.shape) < 1e-6, straight, curved)


def fit_pareto(excesses: FloatArray) -> ParetoTail:
    """Fit a generalised Pareto distribution to the excesses of each series.

    Args:
        excesses: ``[most, series]``; only finite values above 0 count, so that series may have
            different numbers of them.

    Returns:
        Shape and scale ``[series]``: a mean of the profile likelihood over a grid of candidates.
    """
    given = np.isfinite(excesses) & (excesses > 0)
    count = given.sum(axis=0)
    ordered = np.sort(np.where(given, excesses, np.inf), axis=0)
    columns = np.arange(excesses.shape[1])
    largest = ordered[np.maximum(count - 1, 0), columns]
    quarter = ordered[np.maximum((count / 4 + 0.5).astype(int) - 1, 0), columns]
    known = count >= LEAST_EXCESSES
    largest, quarter = np.where(known, largest, 1.0), np.where(known, quarter, 1.0)
    size = _GRID + int(np.sqrt(len(excesses)))
    step = 1.0 - np.sqrt(size / (np.arange(1, size + 1) - 0.5))
    theta = step[:, None] / (3.0 * quarter) + 1.0 / largest
    theta = np.where(np.abs(theta) < 1e-12, 1e-12, theta)
    sample = np.where(given & known, excesses, 0.0)
    total = np.maximum(count, 1)

    def shape_of(candidate: FloatArray) -> FloatArray:
        return np.asarray(np.log1p(-candidate[..., None, :] * sample).sum(axis=-2) / total)

    shapes = shape_of(theta)
    with np.errstate(divide="ignore", invalid="ignore"):  # series with too few are set below
        likelihood = total * (np.log(-theta / shapes) - shapes - 1.0)
    weight = np.exp(likelihood - likelihood.max(axis=0))
    best = (theta * weight).sum(axis=0) / weight.sum(axis=0)
    shape = shape_of(best)
    scale = -shape / best
    shape = (count * shape + _PRIOR_EXCESSES * _PRIOR_SHAPE) / (count + _PRIOR_EXCESSES)
    mean = np.where(given, excesses, 0.0).sum(axis=0) / total
    light = shape < _SHAPES[0]
    shape = np.clip(shape, *_SHAPES)
    # The mean of a generalised Pareto distribution is scale / (1 - shape).
    scale = np.where(light, mean * (1.0 - shape), scale)
    few = np.where(count > 0, mean, np.nan)
    return ParetoTail(np.where(known, shape, 0.0), np.where(known, scale, few))


def tail_length(count: int) -> int:
    """Return how many of ``count`` scores are the tail (Vehtari et al.)."""
    return int(np.ceil(min(0.2 * count, 3.0 * np.sqrt(count))))


@dataclass(frozen=True, slots=True)
class Tail:
    """What a sample of normal scores says of how rare a score is."""

    scores: FloatArray
    """``[n]``, rising."""
    start: float
    """Scores above this one are the tail."""
    share: float
    """Share of the normal scores in it."""
    excess: ParetoTail
    """Its law, of one series."""

    def p_values(self, scores: FloatArray) -> FloatArray:
        """Return how likely a normal score at least as large is, for each score; NaN stays NaN.

        Never 0 and never above 1; it falls as the score rises.
        """
        given = np.asarray(scores, dtype=float)
        count = len(self.scores)
        at_least = count - np.searchsorted(self.scores, given, side="left")
        bulk = np.maximum((at_least + 1.0) / (count + 1.0), self.share)
        beyond = self.share * self.excess.survival(given - self.start)
        result = np.where(given > self.start, beyond, bulk)
        return np.where(np.isnan(given), np.nan, np.clip(result, SMALLEST_P, 1.0))

    def threshold(self, rate: float) -> float:
        """Return the score that a share ``rate`` of normal scores exceeds, also beyond the sample.

        Raises:
            ValueError: when the rate is not between 0 and 1.
        """
        if not 0.0 < rate < 1.0:
            raise ValueError(f"a rate lies between 0 and 1, not at {rate}")
        if rate < self.share and np.isfinite(self.excess.scale[0]):
            return self.start + float(self.excess.quantile(np.array([rate / self.share]))[0])
        rank = int(np.ceil((len(self.scores) + 1) * (1.0 - rate)))
        return float(self.scores[min(rank, len(self.scores)) - 1])


def fit_tail(scores: FloatArray, *, exclude_above: float = np.inf) -> Tail:
    """Learn from normal scores how rare a score is.

    Use scores of values that the detector has not been fitted on: those it knows look too normal.
    Dependence in time (scores that come in clusters) leaves p-values right on average and makes
    their error that of a shorter sample.

    Args:
        scores: ``[n]``, in any order; what is not finite is left out.
        exclude_above: scores beyond it are taken for anomalies in the training data and left out.

    Raises:
        ValueError: when no score is left.
    """
    finite = np.sort(scores[np.isfinite(scores) & (scores <= exclude_above)]).astype(float)
    if not finite.size:
        raise ValueError("a tail needs at least one finite score")
    count = len(finite)
    length = min(tail_length(count), count - 1)
    start = float(finite[count - 1 - length])
    return Tail(
        scores=finite,
        start=start,
        # Of the scores that equal the start none is beyond it.
        share=(int((finite > start).sum()) + 1.0) / (count + 1.0),
        excess=fit_pareto((finite - start)[:, None]),
    )


def exceeds(p_values: FloatArray, rate: float) -> NDArray[np.bool_]:
    """Return which p-values are at most the rate; NaN is none."""
    return np.asarray(np.nan_to_num(p_values, nan=1.0) <= rate)
