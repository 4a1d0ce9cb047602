"""The data sets as cases: a table, how many of its first rows train, and labels of the others."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DATA = Path(os.environ.get("GALEN_DATA", "../shared/data"))
"""Where the data sets lie, unless a command line says otherwise."""


@dataclass(frozen=True)
class Case:
    name: str
    frame: pd.DataFrame
    train_rows: int
    labels: NDArray[np.bool_]
    """Of the rows after the training rows."""
    causes: tuple[tuple[int, int, frozenset[str]], ...] = ()


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
