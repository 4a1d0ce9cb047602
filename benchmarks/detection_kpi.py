"""Judges the off-line detector of one metric on the KPIs of the AIOps 2018 challenge.

    python -m benchmarks detection_kpi [--json]

The first half of each series trains. VUS-PR (Paparrizos et al., VLDB 2022, in TSB-AD's form) tells how
scores rank; events and false alarms are counted at the fixed threshold. Beside it stand scikit-learn's
isolation forest on the values and on windows of ten rows, the residual of statsmodels' seasonal
decomposition, alerts at random as many as the detector's, and an alert at every row. The series are
split into one half to choose by and one to judge by; near copies are on the same side.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.detection.offline import detect_frame
from benchmarks.labelled.cases import DATA, Case, kpi, kpi_chosen_by
from benchmarks.labelled.measures import vus_pr
from benchmarks.labelled.series_events import EventQuality, judge_events
from benchmarks.labelled.series_peers import WINDOW_ROWS, decomposition_scores, forest_scores


def judge(case: Case, seed: int) -> Iterator[dict[str, Any]]:
    """Judge the detector, its peers and the controls on one series."""
    times = case.frame["timestamp"].to_numpy(dtype=float)
    values = case.frame["value"].to_numpy(dtype=float)
    start = case.train_rows
    began = time.perf_counter()
    result = detect_frame(case.frame, start).iloc[start:]
    seconds = time.perf_counter() - began
    alerts = result["is_anomaly"].to_numpy(dtype=bool)
    random = np.random.default_rng(seed)
    noise = random.random(len(alerts))
    at_random = np.zeros(len(alerts), dtype=bool)
    at_random[random.choice(len(alerts), alerts.sum(), replace=False)] = True
    scored = {
        "galen": (result["score"].to_numpy(dtype=float), alerts),
        "forest, values": (forest_scores(values, start, 1, seed), None),
        "forest, windows": (forest_scores(values, start, WINDOW_ROWS, seed), None),
        "decomposition": (decomposition_scores(times, values, start), None),
        "random": (noise, at_random),
        "always": (np.ones(len(alerts)), np.ones(len(alerts), dtype=bool)),
    }
    for detector, (scores, flags) in scored.items():
        row: dict[str, Any] = {
            "case": case.name.removesuffix(".csv.gz"),
            "half": "chosen by" if kpi_chosen_by(case.name) else "judged by",
            "detector": detector,
            "vus_pr": vus_pr(case.labels, scores) if case.labels.any() else float("nan"),
        }
        if flags is not None:
            row |= _of_events(judge_events(times[start:], case.labels, flags))
        if detector == "galen":
            row["us_per_row"] = 1e6 * seconds / len(case.frame)
        yield row


def _of_events(quality: EventQuality) -> dict[str, Any]:
    delay = float(np.median(quality.delays_seconds)) if quality.delays_seconds else float("nan")
    return {
        "events": quality.events,
        "event_recall": quality.recall,
        "false_per_day": quality.false_per_day,
        "delay_seconds": delay,
    }


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Return the means over series by detector, over all and over each half."""
    measures = ["vus_pr", "event_recall", "false_per_day", "delay_seconds", "us_per_row"]
    parts = {"all": table, **dict(list(table.groupby("half")))}
    rows = {
        name: part.groupby("detector", sort=False)[measures].mean() for name, part in parts.items()
    }
    return pd.concat(rows, names=["half"])


def main() -> None:
    """Judge each series and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--limit", type=int, default=1000, help="series at most")
    parser.add_argument("--seed", type=int, default=0, help="of the forest and the random control")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in kpi(given.data, given.limit, unlabelled=True):
        rows += judge(case, given.seed)
        sys.stderr.write(f"{rows[-1]['case']}\n")
    table = pd.DataFrame(rows)
    mean = means(table)
    if given.json:
        document = {
            "series": json.loads(table.to_json(orient="records")),
            "means": json.loads(mean.reset_index().to_json(orient="records")),
        }
        print(json.dumps(document, indent=2))
        return
    wide = table.pivot_table("vus_pr", ["half", "case"], "detector")
    print("VUS-PR\n" + wide[list(dict.fromkeys(table["detector"]))].round(3).to_string())
    columns = ["half", "case", "events", "event_recall", "false_per_day", "delay_seconds"]
    events = table.loc[table["detector"] == "galen", columns].sort_values(["half", "case"])
    print("\nAlerts\n" + events.round(3).to_string(index=False))
    print("\nMeans over series\n" + mean.round(3).to_string())


if __name__ == "__main__":
    main()
