"""Measures of scores against labels. Point-adjusted ones are left out: random scores win by them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WINDOW_ROWS = 100
WINDOW_STEP = 20
LEVELS = 250


def segments(labels: NDArray[np.generic]) -> list[tuple[int, int]]:
    edges = np.diff(np.concatenate(([0], (labels > 0).astype(int), [0])))
    return list(zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True))


def vus_pr(labels: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Average the range-aware area under the precision-recall curve over label margins."""
    order = np.argsort(-score, kind="stable")
    cuts = np.unique(np.linspace(0, len(score) - 1, LEVELS).astype(int))
    # Rows that tie with the row at a cut are flagged with it.
    ranked = score[order]
    sizes = np.searchsorted(-ranked, -ranked[cuts], side="right")
    areas = []
    for window in range(0, WINDOW_ROWS + 1, WINDOW_STEP):
        soft = labels.astype(float)
        for start, end in segments(labels):
            after = np.arange(end, min(end + window // 2, len(soft)))
            soft[after] += np.sqrt(1 - (after - end + 1) / max(window, 1))
            before = np.arange(max(start - window // 2, 0), start)
            soft[before] += np.sqrt(1 - (start - before) / max(window, 1))
        soft = np.minimum(soft, 1.0)
        ranges = segments(soft)
        positives = (labels.sum() + soft.sum()) / 2
        true = np.cumsum(soft[order])[sizes - 1]
        rank = np.empty(len(order), dtype=int)
        rank[order] = np.arange(len(order))
        first = np.sort([rank[start:end].min() for start, end in ranges])
        existence = np.searchsorted(first, sizes, side="left") / len(ranges)
        recall = np.minimum(true / positives, 1.0) * existence
        precision = true / sizes
        areas.append(np.dot(np.diff(np.concatenate(([0.0], recall))), precision))
    return float(np.mean(areas))


def f1(labels: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> float:
    hits = float((labels & flagged).sum())
    return 2 * hits / max(float(labels.sum() + flagged.sum()), 1.0)
