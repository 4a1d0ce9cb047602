"""What the libraries' own detectors score on one table, fitted once on its training part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from statsmodels.tsa.seasonal import seasonal_decompose

FloatArray = NDArray[np.float64]

_DAY_SECONDS = 86_400.0
_LEAST_SHARE = 0.01
"""Of a column's range in training, or of the usual range where it stood still: the least spread that
its standardisation uses. Peers that divide by a next to zero spread rank far worse."""


@dataclass(frozen=True)
class PeerScores:
    """Scores of training and other rows, and the leading column of the others where there is one."""

    train: FloatArray
    rest: FloatArray
    leading: NDArray[np.int64] | None = None

    @classmethod
    def of_parts(cls, parts: FloatArray, train_rows: int) -> PeerScores:
        """Add up the parts ``[rows, columns]`` of a score."""
        scores = parts.mean(axis=1)
        rest = parts[train_rows:]
        return cls(scores[:train_rows], scores[train_rows:], rest.argmax(axis=1))


Peer = Callable[[FloatArray, int, float, int], PeerScores]
"""Takes the table, its training rows, the step in seconds and a seed."""


def standardised(values: FloatArray, train_rows: int) -> FloatArray:
    train = values[:train_rows]
    span = np.ptp(train, axis=0)
    usual = float(np.median(span[span > 0])) if (span > 0).any() else 1.0
    floor = _LEAST_SHARE * np.where(span > 0, span, usual)
    return np.asarray((values - train.mean(axis=0)) / np.maximum(train.std(axis=0), floor))


def mean_square(values: FloatArray, train_rows: int, _step: float, _seed: int) -> PeerScores:
    """Score by the mean of z^2."""
    return PeerScores.of_parts(standardised(values, train_rows) ** 2, train_rows)


def reconstruction(values: FloatArray, train_rows: int, _step: float, _seed: int) -> PeerScores:
    """Score by what principal components of 90% of the variance leave."""
    z = standardised(values, train_rows)
    model = PCA(0.9).fit(z[:train_rows])
    rest = z - model.inverse_transform(model.transform(z))
    return PeerScores.of_parts(rest**2, train_rows)


def forest(values: FloatArray, train_rows: int, _step: float, seed: int) -> PeerScores:
    """Score by scikit-learn's isolation forest with its defaults."""
    model = IsolationForest(random_state=seed).fit(values[:train_rows])
    scores = -model.score_samples(values)
    return PeerScores(scores[:train_rows], scores[train_rows:])


def decomposition(values: FloatArray, train_rows: int, step: float, _seed: int) -> PeerScores:
    """Score by statsmodels' residuals of the day, each trend taken from past rows only."""
    phases = round(_DAY_SECONDS / step)
    # The trend at a row is the mean of the day up to it; the first day has none.
    sums = np.cumsum(np.vstack((np.zeros(values.shape[1]), values)), axis=0)
    trend = np.vstack((values[:phases], (sums[phases:] - sums[:-phases])[1:] / phases))
    seasonal = np.column_stack(
        [
            seasonal_decompose(column, period=phases, two_sided=False).seasonal[:phases]
            for column in values[:train_rows].T
        ]
    )
    rest = values - trend - seasonal[np.arange(len(values)) % phases]
    rest[:phases] = rest[phases:train_rows].mean(axis=0)
    return PeerScores.of_parts(standardised(rest, train_rows) ** 2, train_rows)


PEERS: dict[str, Peer] = {
    "mean z^2": mean_square,
    "PCA reconstruction": reconstruction,
    "isolation forest": forest,
    "decomposition": decomposition,
}
