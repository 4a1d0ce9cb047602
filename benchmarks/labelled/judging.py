"""Judges the off-line detector of tables beside its peers and the controls that need no data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve

from analysis.detection.calibration import conformal_threshold
from analysis.detection.offline import detect_frame
from benchmarks.labelled.cases import Case
from benchmarks.labelled.measures import f1, vus_pr
from benchmarks.labelled.rows_peers import PEERS

RATE = 0.015
"""The nominal share of normal rows above a frozen threshold; the detector's own."""
MEASURES = ["vus_pr", "ap", "f1", "best_f1", "alarm_rate", "cause_first", "us_per_row"]


def judge(case: Case, seed: int) -> Iterator[dict[str, Any]]:
    """Judge the detector, its peers and the controls on one table.

    ``f1`` is at the threshold frozen on the training rows: the detector's own, or the conformal quantile
    of a peer's scores of its training rows. ``best_f1`` is at the threshold that is best for the labels,
    which nobody knows beforehand. ``alarm_rate`` is the share of normal rows above the frozen threshold.
    """
    values = case.frame.drop(columns="timestamp").to_numpy(dtype=float)
    names = [str(name) for name in case.frame.columns if name != "timestamp"]
    step = float(np.median(np.diff(case.frame["timestamp"].to_numpy(dtype=float))))
    began = time.perf_counter()
    result = detect_frame(case.frame, case.train_rows).iloc[case.train_rows :]
    seconds = time.perf_counter() - began
    scores = result["score"].to_numpy(dtype=float)
    row = _measured(case, scores, result["is_anomaly"].to_numpy(dtype=bool))
    row["cause_first"] = _causes_first(case, scores, result["top_signal"].to_numpy())
    yield {"detector": "galen", **row, "us_per_row": 1e6 * seconds / len(values)}
    for name, peer in PEERS.items():
        began = time.perf_counter()
        scored = peer(values, case.train_rows, step, seed)
        seconds = time.perf_counter() - began
        threshold = conformal_threshold(scored.train, RATE)
        row = _measured(case, scored.rest, scored.rest > threshold)
        if scored.leading is not None:
            leading = np.array(names)[scored.leading]
            row["cause_first"] = _causes_first(case, scored.rest, leading)
        yield {"detector": name, **row, "us_per_row": 1e6 * seconds / len(values)}
    noise = np.random.default_rng(seed).random(len(scores))
    row = _measured(case, noise, noise > 1.0 - RATE)
    if case.causes:
        row["cause_first"] = float(np.mean([len(told) / len(names) for *_, told in case.causes]))
    yield {"detector": "random", **row}
    always = np.ones(len(scores))
    yield {"detector": "always", **_measured(case, always, always > 0)}


def _measured(
    case: Case, scores: NDArray[np.float64], flagged: NDArray[np.bool_]
) -> dict[str, float]:
    precision, recall, _ = precision_recall_curve(case.labels, scores)
    return {
        "vus_pr": vus_pr(case.labels, scores),
        "ap": float(average_precision_score(case.labels, scores)),
        "f1": f1(case.labels, flagged),
        "best_f1": float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))),
        "alarm_rate": float(flagged[~case.labels].mean()),
    }


def _causes_first(case: Case, scores: NDArray[np.float64], top: NDArray[Any]) -> float:
    """Return the share of labelled events in which the leading column is a labelled cause."""
    hits = [
        top[start + int(np.argmax(scores[start:end]))] in names for start, end, names in case.causes
    ]
    return float(np.mean(hits)) if hits else float("nan")


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Return the means over tables by part and detector."""
    return table.groupby(["part", "detector"], sort=False)[MEASURES].mean()
