"""Off-line scoring of several columns together: a streaming, gated covariance, weighed with z^2.

The training rows give levels, spreads, covariance and the threshold; from then on a row is judged
before it is learned, and learned only while it looks normal (see :mod:`analysis.detection.mahalanobis`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.detection.calibration import conformal_threshold
from analysis.detection.contract import FloatArray
from analysis.detection.mahalanobis import shrunk_covariance
from analysis.detection.offline_events import above_threshold, leading, sustained
from analysis.detection.offline_levels import blocks, deviations
from analysis.detection.seasonal_fit import DAY_SECONDS

_MEMORY_SECONDS = 14 * DAY_SECONDS
_MEMORY_ROWS = (2_000, 20_160)
"""Bounds of the memory in rows; the upper one is two weeks of minutes."""
_ABSORB_SHARE = 0.25
"""Share of the memory after which rows that are nearly all anomalous are a new normal."""
_ABSORB_RATIO = 0.63
"""1 - 1/e: the running share of anomalous rows after one absorb time of nothing else."""
_FOLDS = 5
"""Each fifth of the training rows is judged by the covariance of the others; that calibrates."""
_DISTANCE_WEIGHT = 0.85
"""Weight of the Mahalanobis distance in the logarithm; the mean square has the rest. The distance sees
a broken relation that no single column shows, the mean square steadies it where columns are copies."""
_TAIL_RATE = 0.015
_TAIL_DEVIATIONS = 4.0
"""The threshold is the conformal quantile, or this many robust deviations of the log score above its
median where the training rows have anomalies of their own and the quantile lies among them."""
_LEAST_ABOVE_MEDIAN = 0.5
"""The threshold is at least that far above the median: in wide tables the log scores of normal rows lie
so close together that a little less shrinkage than in calibration would make all of them anomalies."""


@dataclass
class _Running:
    """Streaming mean and covariance of standardised rows."""

    mean: FloatArray
    covariance: FloatArray
    fourth: float
    rows: float

    @classmethod
    def of(cls, z: FloatArray) -> _Running:
        """Start from rows ``[rows, width]``."""
        mean = z.mean(axis=0)
        centred = z - mean
        fourth = float(((centred**2).sum(axis=1) ** 2).mean())
        return cls(mean, centred.T @ centred / len(z), fourth, float(len(z)))

    def judge(self, z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the log score ``[rows]`` and each column's share ``[rows, width]``."""
        width = z.shape[1]
        shrunk = shrunk_covariance(
            self.covariance[None],
            np.array([self.fourth]),
            np.array([self.rows]),
            np.array([width]),
        )[0]
        centred = z - self.mean
        parts = centred * np.linalg.solve(shrunk, centred.T).T
        distance = np.maximum(parts.sum(axis=1), 1e-12)
        square = np.maximum((centred**2).sum(axis=1), 1e-12)
        share = _DISTANCE_WEIGHT * parts / distance[:, None]
        share += (1.0 - _DISTANCE_WEIGHT) * centred**2 / square[:, None]
        logs = _DISTANCE_WEIGHT * np.log(distance) + (1.0 - _DISTANCE_WEIGHT) * np.log(square)
        return logs - np.log(width), share

    def learn(self, z: FloatArray, memory_rows: float) -> None:
        """Learn rows ``[rows, width]`` with a memory in rows."""
        if not len(z):
            return
        # Until the memory is full each row counts the same; more rows than were learned in truth would
        # make the shrinkage too weak.
        weight = max(1.0 - np.exp(-len(z) / memory_rows), len(z) / (self.rows + len(z)))
        centred = z - self.mean
        self.covariance = self.covariance + weight * (
            centred.T @ centred / len(z) - self.covariance
        )
        self.fourth += weight * (float(((centred**2).sum(axis=1) ** 2).mean()) - self.fourth)
        self.mean = self.mean + weight * centred.mean(axis=0)
        self.rows = min(self.rows + len(z), 2.0 * memory_rows)


def score_rows(
    views: FloatArray, train_rows: int, step_seconds: float
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Score a table row by row.

    Args:
        views: ``[rows, width]``; NaN where missing.
        train_rows: how many of the first rows are taken for mostly normal.
        step_seconds: the usual distance of two rows.

    Returns:
        The scores ``[rows - train_rows]``, above 1 is an anomaly, and the leading column ``[rows]``.
    """
    memory = float(np.clip(_MEMORY_SECONDS / max(step_seconds, 1e-9), *_MEMORY_ROWS))
    z = deviations(views, train_rows, step_seconds, memory)
    known = _judge_training(z[:train_rows])
    gate = conformal_threshold(known, _TAIL_RATE)
    logs, shares = _judge_rest(z, train_rows, memory, gate)
    threshold = _threshold(sustained(known))
    above = above_threshold(np.concatenate((known, logs)), gate, threshold)[train_rows:]
    top = np.zeros(len(z), dtype=np.int64)
    top[train_rows:] = leading(logs, shares)
    # A log score beyond 700 would be infinite; nothing sensible comes near it.
    return np.exp(np.minimum(above, 700.0)), top


def _judge_training(z: FloatArray) -> FloatArray:
    """Return log scores of the training rows, each from the covariance of rows of other folds."""
    cuts = np.linspace(0, len(z), _FOLDS + 1).round().astype(int)
    folds = [
        _Running.of(np.concatenate((z[:start], z[end:]))).judge(z[start:end])[0]
        for start, end in itertools.pairwise(cuts)
    ]
    return np.concatenate(folds)


def _judge_rest(
    z: FloatArray, train_rows: int, memory: float, gate: float
) -> tuple[FloatArray, FloatArray]:
    """Return log scores and shares of the rows after training; rows above the gate are not learned."""
    running = _Running.of(z[:train_rows])
    logs, shares = np.zeros(len(z) - train_rows), np.zeros((len(z) - train_rows, z.shape[1]))
    anomalous = 0.0
    for start, end in blocks(train_rows, len(z)):
        place = slice(start - train_rows, end - train_rows)
        logs[place], shares[place] = running.judge(z[start:end])
        normal = logs[place] <= gate
        fresh = (end - start) / (_ABSORB_SHARE * memory)
        anomalous += min(fresh, 1.0) * (float((~normal).mean()) - anomalous)
        running.learn(z[start:end][normal | (anomalous > _ABSORB_RATIO)], memory)
    return logs, shares


def _threshold(logs: FloatArray) -> float:
    quantile = conformal_threshold(logs, _TAIL_RATE)
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    return max(min(quantile, middle + _TAIL_DEVIATIONS * spread), middle + _LEAST_ABOVE_MEDIAN)
