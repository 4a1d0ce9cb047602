"""Ranks the off-line detector on labelled public data, next to controls that need no data.

    python benchmarks/detection.py --data ../shared/data --suite smd --machines 8
    python benchmarks/detection.py --data ../shared/data --suite nab
    python benchmarks/detection.py --data ../shared/data --suite kpi --series 4
    python benchmarks/detection.py --suite speed

Printed per file: VUS-PR (Paparrizos et al., VLDB 2022, in TSB-AD's form), average precision, F1 at the
threshold frozen on training rows, and on SMD the share of segments whose top signal at the peak is a
labelled cause. `random` scores at random; `always` flags every row. One configuration for all files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from analysis.detection.forest import SameThreadExecutor
from analysis.detection.offline import detect_frame
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.history import History
from collectors.contract import Sample
from collectors.signals import catalogue

WINDOW_ROWS = 100
WINDOW_STEP = 20
LEVELS = 250


@dataclass(frozen=True)
class Case:
    name: str
    frame: pd.DataFrame
    train_rows: int
    labels: NDArray[np.bool_]
    """Of the rows after the training rows."""
    causes: tuple[tuple[int, int, frozenset[str]], ...] = ()


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


def smd(root: Path, limit: int) -> Iterator[Case]:
    for path in sorted((root / "smd").glob("*.npz"))[:limit]:
        with np.load(path) as data:
            train, test, label = data["train"], data["test"], data["label"]
        frame = pd.DataFrame(
            np.vstack((train, test)), columns=pd.Index([f"m{i}" for i in range(1, 39)])
        )
        frame.insert(0, "timestamp", 60 * np.arange(len(frame)))
        causes = []
        for line in (
            path.with_suffix("").with_suffix(".interpretation.txt").read_text().splitlines()
        ):
            span, _, metrics = line.partition(":")
            start, _, end = span.partition("-")
            names = frozenset(f"m{number}" for number in metrics.split(","))
            causes.append((int(start), int(end) + 1, names))
        yield Case(path.stem, frame, len(train), label.astype(bool), tuple(causes))


def nab(root: Path, _limit: int) -> Iterator[Case]:
    windows = json.loads((root / "nab" / "labels" / "combined_windows.json").read_text())
    for name, spans in sorted(windows.items()):
        if not spans or not name.startswith(("realAWSCloudwatch", "realKnownCause")):
            continue
        raw = pd.read_csv(root / "nab" / "data" / name)
        at = pd.to_datetime(raw["timestamp"])
        labels = np.zeros(len(raw), dtype=bool)
        for start, end in spans:
            labels |= ((at >= pd.Timestamp(start)) & (at <= pd.Timestamp(end))).to_numpy()
        train = int(0.15 * min(len(raw), 5000))  # NAB's own probationary period
        if labels[train:].any():
            yield Case(name, raw, train, labels[train:])


def kpi(root: Path, limit: int) -> Iterator[Case]:
    for path in sorted((root / "kpi").glob("*.csv.gz"))[:limit]:
        with gzip.open(path, "rt") as file:
            raw = pd.read_csv(file, names=["timestamp", "value", "label"])
        raw = raw.sort_values("timestamp").drop_duplicates("timestamp").reset_index(drop=True)
        half = len(raw) // 2
        labels = raw["label"].to_numpy(dtype=bool)[half:]
        if labels.any():
            yield Case(path.name, raw[["timestamp", "value"]], half, labels)


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


def speed(series: int, ticks: int, *, forest: bool) -> float:
    """Return milliseconds a tick of the live pipeline."""
    names = [name for name, signal in catalogue().items() if signal.kind.value in {"gauge", "rate"}]
    per_entity = 40
    keys = [
        (f"service/s{number // per_entity}", names[number % per_entity]) for number in range(series)
    ]
    settings = DetectionSettings.model_validate({"forest": {"enabled": forest}})
    history = History(capacity_ticks=60)
    pipeline = DetectionPipeline(settings, history, executor=SameThreadExecutor())
    random = np.random.default_rng(0)
    spent = []
    for tick in range(ticks):
        values = 100 + random.normal(0, 1, series)
        row = history.append(
            float(tick),
            [Sample(float(tick), *key, float(v)) for key, v in zip(keys, values, strict=True)],
        )
        began = time.perf_counter()
        pipeline.tick(float(tick), row)
        spent.append(time.perf_counter() - began)
    return 1e3 * float(np.median(spent[ticks // 2 :]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--suite", choices=["smd", "nab", "kpi", "speed"], required=True)
    parser.add_argument("--machines", type=int, default=8)
    parser.add_argument("--series", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.suite == "speed":
        for series in (150, 1_000, 10_000):
            for forest in (False, True):
                spent = speed(series, 90, forest=forest)
                print(f"{series:6} series, forest {forest!s:5}: {spent:.2f} ms a tick (median)")
        return
    limit = given.machines if given.suite == "smd" else given.series
    cases = {"smd": smd, "nab": nab, "kpi": kpi}[given.suite](given.data, limit)
    table = []
    for case in cases:
        for detector, row in judge(case, given.seed).items():
            table.append({"case": case.name, "detector": detector, **row})
            print(table[-1], flush=True)
    print(pd.DataFrame(table).drop(columns="case").groupby("detector").mean().round(3).to_string())


if __name__ == "__main__":
    main()
