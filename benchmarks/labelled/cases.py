"""The data sets as cases: a table, how many of its first rows train, and labels of the others."""

from __future__ import annotations

import gzip
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


KPI_GROUPS = (
    ("02e99bd4",),
    ("09513ae3",),
    ("18fbb1d5", "1c35dbf5", "da403e4e"),
    ("40e25005",),
    ("54e8a140",),
    ("71595dd7", "cff6d3c0"),
    ("769894ba", "76f4550c", "8a20c229"),
    ("7c189dd3", "a40b1df8"),
    ("88cf3a77",),
    ("8bef9af9", "affb01ca"),
    ("8c892e55", "e0770391"),
    ("9bd90500",),
    ("9ee58794",),
    ("a5bf5d65",),
    ("b3b2e6d1",),
    ("c58bfcba",),
)
"""KPIs by the beginning of their names; in one group are near copies: values at the same times that
correlate by more than 0.97, or their steps by more than 0.5, or more than 0.4 of the labels coincide."""


def kpi_chosen_by(name: str) -> bool:
    """Tell whether settings may be chosen by a KPI: those of every second group of near copies.

    Raises:
        ValueError: when no group has it, because a near copy could then be on the other side.
    """
    for number, group in enumerate(KPI_GROUPS):
        if name.startswith(group):
            return number % 2 == 0
    raise ValueError(f"the KPI {name!r} is in no group of near copies")


def kpi(root: Path, limit: int, *, unlabelled: bool = False) -> Iterator[Case]:
    """Read the KPIs; those whose second half has no label only where they are asked for."""
    for path in sorted((root / "kpi").glob("*.csv.gz"))[:limit]:
        with gzip.open(path, "rt") as file:
            raw = pd.read_csv(file, names=["timestamp", "value", "label"])
        raw = raw.sort_values("timestamp").drop_duplicates("timestamp").reset_index(drop=True)
        half = len(raw) // 2
        labels = raw["label"].to_numpy(dtype=bool)[half:]
        if unlabelled or labels.any():
            yield Case(path.name, raw[["timestamp", "value"]], half, labels)
