"""Scores the off-line detector of one metric on the Numenta Anomaly Benchmark, by NAB's own scorer.

    python -m benchmarks detection_nab [--json]

All 58 series; the first 15% of each trains and is not scored. `best` takes the one threshold for the
whole corpus that is best for the profile, as NAB does; `fixed` takes the detector's own, a score above
1. `random` scores at random, `clock` alerts at every 200th row, `always` at every row. Every second
series by name was looked at while the detector was made; the others were not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.detection.offline import detect_frame
from benchmarks.labelled.cases import DATA
from benchmarks.labelled.nab_scoring import (
    STANDARD,
    NabSeries,
    best_threshold,
    load_profiles,
    load_series,
    nab_score,
)

Scores = Mapping[str, NDArray[np.float64]]

FIXED = float(np.nextafter(1.0, 2.0))
CLOCK_ROWS = 200


def all_scores(corpus: Sequence[NabSeries], seed: int) -> dict[str, Scores]:
    """Return the scores of the detector and of the controls, by detector and series."""
    random = np.random.default_rng(seed)
    galen, noise, clock, always = {}, {}, {}, {}
    for series in corpus:
        rows = len(series.frame)
        scored = detect_frame(series.frame, series.probation_rows)
        galen[series.name] = scored["score"].to_numpy(dtype=float)
        noise[series.name] = random.random(rows)
        clock[series.name] = 2.0 * (np.arange(rows) % CLOCK_ROWS == 0)
        always[series.name] = np.full(rows, 2.0)
    return {"galen": galen, "random": noise, "clock": clock, "always": always}


def rows_of(corpus: Sequence[NabSeries], detector: str, scores: Scores) -> dict[str, Any]:
    """Return the standard profile's score over the corpus and its parts."""
    best = best_threshold(corpus, scores, STANDARD)
    row: dict[str, Any] = {"detector": detector, "threshold": best}
    parts = {
        "all": corpus,
        "AWS": [one for one in corpus if one.name.startswith("realAWSCloudwatch")],
        "known cause": [one for one in corpus if one.name.startswith("realKnownCause")],
        "looked at": corpus[::2],
        "not looked at": corpus[1::2],
    }
    for name, part in parts.items():
        row[f"{name}, best"] = nab_score(part, scores, best, STANDARD)
        row[f"{name}, fixed"] = nab_score(part, scores, FIXED, STANDARD)
    return row | _counts(corpus, scores, FIXED)


def _counts(corpus: Sequence[NabSeries], scores: Scores, threshold: float) -> dict[str, int]:
    found = alerts = outside = 0
    for series in corpus:
        at = np.flatnonzero(scores[series.name] >= threshold)
        at = at[at >= series.probation_rows]
        inside = [(at >= first) & (at <= last) for first, last in series.windows]
        found += sum(bool(hit.any()) for hit in inside)
        alerts += len(at)
        outside += int((~np.any(inside, axis=0)).sum()) if inside else len(at)
    return {"windows found": found, "alerts": alerts, "alerts outside": outside}


def main() -> None:
    """Score the corpus and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0, help="of the random control")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    corpus = load_series(given.data / "nab")
    began = time.perf_counter()
    scores = all_scores(corpus, given.seed)
    seconds = time.perf_counter() - began
    table = pd.DataFrame([rows_of(corpus, name, of) for name, of in scores.items()])
    profiles = {
        name: nab_score(corpus, scores["galen"], threshold, profile)
        for name, profile in load_profiles(given.data / "nab").items()
        for threshold in [best_threshold(corpus, scores["galen"], profile)]
    }
    if given.json:
        document = {
            "detectors": json.loads(table.to_json(orient="records")),
            "profiles, best": profiles,
            "us_per_row": 1e6 * seconds / sum(len(one.frame) for one in corpus),
        }
        print(json.dumps(document, indent=2))
        return
    print("Standard profile\n" + table.set_index("detector").T.round(2).to_string())
    print("\nOther profiles of galen at their best thresholds")
    print("\n".join(f"{name:20} {score:6.1f}" for name, score in profiles.items()))


if __name__ == "__main__":
    main()
