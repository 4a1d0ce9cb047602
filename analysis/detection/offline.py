"""Off-line detection: one causal pass over a wide table, for files and for benchmarks.

A row's score depends on rows up to it only. The training rows are taken for mostly normal: they give
location, spread, seasonal shape, covariance and the threshold, and score 0 themselves, because
what was learned from later training rows must not judge earlier ones. There is one configuration for
all data.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.detection.offline_rows import score_rows
from analysis.detection.offline_series import score_series
from analysis.detection.wide_csv import TIME_COLUMN, WideCsvError, read_wide_csv, times_of

__all__ = ["WideCsvError", "detect_frame", "read_wide_csv"]

LEAST_TRAIN_ROWS = 20


def detect_frame(frame: pd.DataFrame, train_rows: int) -> pd.DataFrame:
    """Score a wide table row by row.

    Args:
        frame: a column ``timestamp`` and one column of numbers a metric; NaN where missing.
        train_rows: how many rows from the first are taken for mostly normal, at least 20.

    Returns:
        One row an input row: ``timestamp`` as given, ``score`` (above 1 is an anomaly; 0 for training
        rows and for rows without any value), ``is_anomaly`` and ``top_signal``, the metric with the
        largest share in the score, empty where the score is 0.

    Raises:
        ValueError: when a column is missing, or there are too few training rows.
    """
    if TIME_COLUMN not in frame.columns:
        raise ValueError(f"the table has no column {TIME_COLUMN!r}")
    names = [str(name) for name in frame.columns if name != TIME_COLUMN]
    if not names:
        raise ValueError(f"the table has no metric beside {TIME_COLUMN!r}")
    if not LEAST_TRAIN_ROWS <= train_rows <= len(frame):
        raise ValueError(
            f"train_rows must be from {LEAST_TRAIN_ROWS} to the {len(frame)} rows of the table, "
            f"got {train_rows}"
        )
    values = frame.drop(columns=TIME_COLUMN).to_numpy(dtype=float, na_value=np.nan)
    values = np.where(np.isfinite(values), values, np.nan)
    times = times_of(frame[TIME_COLUMN], train_rows)
    step = float(np.median(np.diff(times[:train_rows])))
    score = np.zeros(len(frame))
    if len(names) > 1:
        scores, top = score_rows(values, train_rows, step)
        score[train_rows:] = np.where(np.isfinite(values[train_rows:]).any(axis=1), scores, 0.0)
    else:
        score[train_rows:] = score_series(times, values[:, 0], train_rows)[train_rows:]
        top = np.zeros(len(frame), dtype=np.int64)
    leading = [names[column] for column in top]
    return pd.DataFrame(
        {
            TIME_COLUMN: frame[TIME_COLUMN].to_numpy(),
            "score": score,
            "is_anomaly": score > 1.0,
            "top_signal": [
                name if value > 0 else "" for name, value in zip(leading, score, strict=True)
            ],
        }
    )
