"""Tables with faults of known rows: the fault-free part of recorded ones, with what faults do put in.

They say what recorded labels cannot: which kinds and lengths of deviation are found whatever a machine's
own labels favour.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.labelled.cases import Case, smd

KINDS = ("spike", "dip", "shift", "noise", "ramp", "frozen", "exchanged")
_GAP_ROWS = 900
_LONGEST_ROWS = 600


def injected(root: Path, limit: int, seed: int) -> Iterator[Case]:
    """Take the training rows of each SMD machine: one half trains, the other gets about 12 faults."""
    for case in smd(root, limit):
        random = np.random.default_rng([seed, *case.name.encode()])
        half = case.train_rows // 2
        frame = case.frame.iloc[: 2 * half].copy()
        columns = frame.columns.drop("timestamp")
        values = frame[columns].to_numpy(dtype=float, copy=True)
        labels = inject(values, half, random)
        frame[columns] = values
        yield Case(f"{case.name} injected", frame, half, labels[half:])


def inject(
    values: NDArray[np.float64], start: int, random: np.random.Generator
) -> NDArray[np.bool_]:
    """Put faults into the rows from ``start``, in place, and return which rows have one."""
    spread = values[:start].std(axis=0)
    moving = np.flatnonzero(spread > 0)
    labels = np.zeros(len(values), dtype=bool)
    places = np.arange(start + 200, len(values) - _GAP_ROWS, _GAP_ROWS)
    for place in np.sort(random.choice(places, size=min(12, len(places)), replace=False)):
        kind = KINDS[random.integers(len(KINDS))]
        longest, least = {"spike": (5, 1), "dip": (15, 3)}.get(kind, (_LONGEST_ROWS, 10))
        rows = int(np.exp(random.uniform(np.log(least), np.log(longest))))
        share = len(moving) // 2 if kind == "exchanged" else random.integers(1, 10)
        columns = random.choice(moving, size=np.clip(share, 1, len(moving)), replace=False)
        _put(values, slice(place, place + rows), columns, kind, spread[columns], random)
        labels[place : place + rows] = True
    return labels


def _put(
    values: NDArray[np.float64],
    rows: slice,
    columns: NDArray[np.int64],
    kind: str,
    spread: NDArray[np.float64],
    random: np.random.Generator,
) -> None:
    count = rows.stop - rows.start
    size = random.uniform(3, 10, size=len(columns)) * spread
    signed = size * random.choice([-1.0, 1.0], size=len(columns))
    if kind == "noise":
        values[rows, columns] += random.normal(size=(count, len(columns))) * 0.7 * size
    elif kind == "ramp":
        values[rows, columns] += np.linspace(0, 1, count)[:, None] * signed
    elif kind == "frozen":
        values[rows, columns] = values[rows.start, columns]
    elif kind == "exchanged":  # values of another time: each is usual, their relation is not
        other = random.integers(0, rows.start - count)
        values[rows, columns] = values[other : other + count, columns]
    else:
        values[rows, columns] += signed
