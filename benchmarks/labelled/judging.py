"""Judges the off-line detector on cases, next to controls that need no data, and prints the table."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from analysis.detection.offline import detect_frame
from benchmarks.labelled.cases import DATA, Case
from benchmarks.labelled.measures import f1, vus_pr


def judge(case: Case, seed: int) -> dict[str, dict[str, float]]:
    began = time.perf_counter()
    result = detect_frame(case.frame, case.train_rows).iloc[case.train_rows :]
    seconds = time.perf_counter() - began
    score = result["score"].to_numpy(dtype=float)
    noise = np.random.default_rng(seed).random(len(score))
    rows: dict[str, dict[str, float]] = {}
    flagged = result["is_anomaly"].to_numpy(dtype=bool)
    always = np.ones(len(score))
    for name, given, flags in (
        ("galen", score, flagged),
        ("random", noise, noise > 0.99),
        ("always", always, always > 0),
    ):
        rows[name] = {
            "vus_pr": vus_pr(case.labels, given),
            "ap": float(average_precision_score(case.labels, given)),
            "f1": f1(case.labels, flags),
        }
    rows["galen"]["us_per_row"] = 1e6 * seconds / len(case.frame)
    top = result["top_signal"].to_numpy()
    hits = [
        top[start + int(np.argmax(score[start:end]))] in names for start, end, names in case.causes
    ]
    if hits:
        rows["galen"]["cause_top1"] = float(np.mean(hits))
        random_hits = [len(names) / (case.frame.shape[1] - 1) for *_, names in case.causes]
        rows["random"]["cause_top1"] = float(np.mean(random_hits))
        rows["galen"]["segments"] = rows["random"]["segments"] = float(len(hits))
    return rows


def run(description: str | None, load: Callable[[Path, int], Iterator[Case]]) -> None:
    """Judge each case of a data set and print the means."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--limit", type=int, default=1000, help="cases at most")
    parser.add_argument("--seed", type=int, default=0, help="of the random control")
    given = parser.parse_args()
    table = []
    for case in load(given.data, given.limit):
        for detector, row in judge(case, given.seed).items():
            table.append({"case": case.name, "detector": detector, **row})
            print(table[-1], flush=True)
    print(pd.DataFrame(table).drop(columns="case").groupby("detector").mean().round(3).to_string())
