"""Scores alerts as the Numenta Anomaly Benchmark does (Lavin and Ahmad, ICMLA 2015).

A window is worth what its earliest alert is worth: 1 at its left edge, falling along a scaled sigmoid
towards 0 at its right edge; a window without an alert costs ``false_negative``. An alert outside any
window costs up to ``false_positive``, less just after a window. The first 15% of a series (of at most
5,000 rows) are not scored. A sum over series becomes 0 for a detector that never alerts and 100 for one
that finds each window at once and nothing else. NAB chooses one threshold for all series, the best one
for the profile: :func:`best_threshold`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

PROBATION_SHARE = 0.15
PROBATION_ROWS = 5_000
"""Series longer than this have the probation of a series of this length."""
_STEEPNESS = 5.0
_FAR = 3.0
"""From three widths after a window on, an alert costs the full weight."""


@dataclass(frozen=True)
class Profile:
    """What an application gains and loses; all weights are positive."""

    true_positive: float
    false_negative: float
    false_positive: float


STANDARD = Profile(true_positive=1.0, false_negative=1.0, false_positive=0.11)


@dataclass(frozen=True)
class NabSeries:
    """One labelled series of the corpus."""

    name: str
    frame: pd.DataFrame
    """``timestamp`` and ``value``."""
    windows: tuple[tuple[int, int], ...]
    """First and last row of each labelled window, in order."""

    @property
    def probation_rows(self) -> int:
        """How many of the first rows are not scored."""
        return probation_rows(len(self.frame))


def probation_rows(rows: int) -> int:
    """Return how many first rows of a series of this length are not scored."""
    return int(min(np.floor(PROBATION_SHARE * rows), PROBATION_SHARE * PROBATION_ROWS))


def load_profiles(root: Path) -> dict[str, Profile]:
    """Read NAB's own application profiles from ``config/profiles.json``."""
    profiles = json.loads((root / "config" / "profiles.json").read_text())
    weights = {name: profile["CostMatrix"] for name, profile in profiles.items()}
    return {
        name: Profile(weight["tpWeight"], weight["fnWeight"], weight["fpWeight"])
        for name, weight in weights.items()
    }


def load_series(root: Path) -> list[NabSeries]:
    """Read all series with their windows from ``labels/combined_windows.json``, by name."""
    labelled = json.loads((root / "labels" / "combined_windows.json").read_text())
    series = []
    for name, spans in sorted(labelled.items()):
        frame = pd.read_csv(root / "data" / name)
        times = pd.to_datetime(frame["timestamp"])
        # Where a time comes twice (clocks set back) its first row bounds the window, as in NAB.
        rows = {time: row for row, time in reversed(list(enumerate(times)))}
        windows = tuple((rows[pd.Timestamp(a)], rows[pd.Timestamp(b)]) for a, b in sorted(spans))
        series.append(NabSeries(name, frame[["timestamp", "value"]], windows))
    return series


def scaled_sigmoid(position: FloatArray) -> FloatArray:
    """Return the worth of an alert: near 1 at position -1, 0 at 0, near -1 after; -1 from 3 on."""
    near = 2.0 / (1.0 + np.exp(_STEEPNESS * np.minimum(position, _FAR))) - 1.0
    return np.asarray(np.where(position >= _FAR, -1.0, near))


def alert_worths(
    rows: int, windows: Sequence[tuple[int, int]], profile: Profile
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return what an alert at each row is worth ``[rows]``, and the row's window or -1 ``[rows]``."""
    worth = np.full(rows, -profile.false_positive)
    window = np.full(rows, -1, dtype=np.int64)
    whole = float(scaled_sigmoid(np.array([-1.0]))[0])
    for number, (first, last) in enumerate(windows):
        width = last - first + 1
        inside = np.arange(first, last + 1)
        worth[inside] = profile.true_positive * scaled_sigmoid((inside - last - 1) / width) / whole
        window[inside] = number
        until = windows[number + 1][0] if number + 1 < len(windows) else rows
        after = np.arange(last + 1, until)
        position = (after - last) / (width - 1) if width > 1 else np.full(len(after), _FAR)
        worth[after] = profile.false_positive * scaled_sigmoid(position)
    return worth, window


def _gains(
    series: NabSeries, scores: FloatArray, profile: Profile
) -> tuple[float, FloatArray, FloatArray]:
    """Return the raw score without alerts, and scores and gains of the scored rows, highest first."""
    if len(scores) != len(series.frame):
        raise ValueError(
            f"{series.name}: {len(scores)} scores for a series of {len(series.frame)} rows"
        )
    start = series.probation_rows
    worth, window = alert_worths(len(scores), series.windows, profile)
    order = start + np.argsort(-scores[start:], kind="stable")
    gain = worth[order]
    windows = window[order]
    missed = 0.0
    for number in np.unique(windows[windows >= 0]):
        rows = np.flatnonzero(windows == number)
        best = np.maximum.accumulate(np.concatenate(([-profile.false_negative], gain[rows])))
        gain[rows] = np.diff(best)
        missed -= profile.false_negative
    return missed, scores[order], gain


def raw_score(series: NabSeries, scores: FloatArray, threshold: float, profile: Profile) -> float:
    """Return the raw score of alerts where ``scores`` reaches the threshold."""
    missed, ranked, gain = _gains(series, scores, profile)
    return missed + float(gain[ranked >= threshold].sum())


def best_threshold(
    corpus: Sequence[NabSeries], scores: Mapping[str, FloatArray], profile: Profile
) -> float:
    """Return the threshold with the highest sum of raw scores over a corpus, as NAB chooses it."""
    parts = [_gains(series, scores[series.name], profile)[1:] for series in corpus]
    ranked = np.concatenate([part[0] for part in parts])
    gain = np.concatenate([part[1] for part in parts])
    order = np.argsort(-ranked, kind="stable")
    ranked, total = ranked[order], np.cumsum(gain[order])
    # Rows of one score are alerts together.
    last = np.append(ranked[1:] != ranked[:-1], True)
    best = int(np.argmax(total[last]))
    return float(ranked[last][best]) if total[last][best] > 0 else float(np.inf)


def nab_score(
    corpus: Sequence[NabSeries],
    scores: Mapping[str, FloatArray],
    threshold: float,
    profile: Profile,
) -> float:
    """Return NAB's normalised score: 0 for no alert at all, 100 for a perfect detector.

    Raises:
        ValueError: when the corpus has no window, because nothing can be found in it then.
    """
    raw = sum(raw_score(series, scores[series.name], threshold, profile) for series in corpus)
    windows = sum(len(series.windows) for series in corpus)
    if not windows:
        raise ValueError("the corpus has no labelled window")
    null, perfect = -profile.false_negative * windows, profile.true_positive * windows
    return 100.0 * (raw - null) / (perfect - null)
