"""Off-line scoring of several columns together: a streaming, gated covariance, log-averaged with z^2.

The training rows give location, spread, covariance and the threshold; from then on a row is judged
before it is learned, and learned only while it looks normal (see :mod:`analysis.detection.mahalanobis`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.detection.calibration import conformal_threshold
from analysis.detection.contract import FloatArray
from analysis.detection.mahalanobis import shrunk_covariance
from analysis.detection.seasonal_fit import DAY_SECONDS

_MEMORY_SECONDS = 14 * DAY_SECONDS
_MEMORY_ROWS = (2_000, 20_160)
"""Bounds of the memory in rows; the upper one is two weeks of minutes."""
_ABSORB_SHARE = 0.25
"""Share of the memory after which rows that are nearly all anomalous are a new normal."""
_ABSORB_RATIO = 0.63
"""1 - 1/e: the running share of anomalous rows after one absorb time of nothing else."""
_BLOCK_ROWS = 50
_FIRST_SHARE = 0.3
"""Share of the training rows that the first covariance comes from; the rest calibrates."""
_TAIL_RATE = 0.01
_TAIL_DEVIATIONS = 7.0
"""The threshold is the conformal quantile, or this many robust deviations of the log score above its
median where the training rows have anomalies of their own and the quantile lies among them."""
_FARTHEST = 30.0
_LEAST_SPREAD = 0.01
_FADE = 0.5
"""A score falls by at most half of its logarithm's distance a row, so that a gap of one row does not
cut an event in two; it rises at once."""


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
        share = parts / distance[:, None] + centred**2 / square[:, None]
        return 0.5 * (np.log(distance / width) + np.log(square / width)), share

    def learn(self, z: FloatArray, memory_rows: float) -> None:
        """Learn rows ``[rows, width]`` with a memory in rows."""
        if not len(z):
            return
        weight = 1.0 - np.exp(-len(z) / memory_rows)
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
    logs, top = _pass(_standardise(views, train_rows), train_rows, memory)
    return np.exp(_fade(logs[train_rows:])), top


def _pass(z: FloatArray, train_rows: int, memory: float) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return log scores minus the log threshold ``[rows]``, and the leading column of each row."""
    rows, width = z.shape
    logs, top = np.zeros(rows), np.zeros(rows, dtype=np.int64)
    first = min(max(int(_FIRST_SHARE * train_rows), 2 * width + 10), max(train_rows - 10, 10))
    running = _Running.of(z[:first])
    for start, end in _blocks(first, train_rows):
        logs[start:end], _ = running.judge(z[start:end])
        known = logs[first:start]
        usual = np.quantile(known, 1.0 - _TAIL_RATE) if len(known) > 200 else np.inf
        running.learn(z[start:end][logs[start:end] <= usual], memory)
    threshold = _threshold(logs[first:train_rows])
    anomalous = 0.0
    for start, end in _blocks(train_rows, rows):
        logs[start:end], share = running.judge(z[start:end])
        top[start:end] = share.argmax(axis=1)
        normal = logs[start:end] <= threshold
        fresh = (end - start) / (_ABSORB_SHARE * memory)
        anomalous += min(fresh, 1.0) * (float((~normal).mean()) - anomalous)
        running.learn(z[start:end][normal | (anomalous > _ABSORB_RATIO)], memory)
    return logs - threshold, top


def _blocks(start: int, end: int) -> list[tuple[int, int]]:
    return [(at, min(at + _BLOCK_ROWS, end)) for at in range(start, end, _BLOCK_ROWS)]


def _threshold(logs: FloatArray) -> float:
    quantile = conformal_threshold(logs, _TAIL_RATE)
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    return min(quantile, middle + _TAIL_DEVIATIONS * max(spread, 0.1))


def _fade(logs: FloatArray) -> FloatArray:
    faded = np.array(logs)
    for row in range(1, len(faded)):
        faded[row] = max(logs[row], _FADE * logs[row] + (1.0 - _FADE) * faded[row - 1])
    return faded


def _standardise(views: FloatArray, train_rows: int) -> FloatArray:
    """Return robust z-scores ``[rows, width]``; what is missing or never moved in training is 0."""
    train = views[:train_rows]
    width = views.shape[1]
    centre, spread = np.zeros(width), np.ones(width)
    for column in range(width):
        present = train[np.isfinite(train[:, column]), column]
        if not present.size:
            spread[column] = np.inf
            continue
        centre[column] = np.median(present)
        deviation = 1.4826 * float(np.median(np.abs(present - centre[column])))
        spread[column] = max(deviation, 0.5 * float(present.std()))
    # A column that never moved in training has no spread of its own: a hundredth of its size, or of
    # the usual size where it stood at 0, has to do.
    moving = np.abs(centre[np.isfinite(spread) & (spread > 0)])
    size = np.maximum(np.abs(centre), np.median(moving) if moving.size else 0.0)
    floor = _LEAST_SPREAD * np.where(size > 0, size, 1.0)
    z = (views - centre) / np.maximum(spread, floor)
    return np.asarray(np.clip(np.nan_to_num(z), -_FARTHEST, _FARTHEST))
