"""Holds realised rates of alarm against nominal ones, on noise whose law is known and on real series.

    python -m benchmarks detection_calibration

Noise has no anomalies, so every value that is called unusual is an error, and a rate that holds its
promise is called unusual exactly so often. Printed is realised / nominal: 1.00 is right, 2.00 errs twice
as often as promised. `series` is the share of series whose own rate is within a factor of two.

  live    p-values of the streaming tail, as `galen watch` has them
  offline p-values of the tail fitted to the first values and then left alone
  sample  the plain conformal p-value of the same first values: never below 1 / (n + 1)
  gauss   mean and standard deviation of the same first values: what "so many sigmas" promises
  tracked the limit that alarms are decided by (only its own rate; it holds on series that change)

Controls that need no noise: `random` calls values unusual at exactly the nominal rate, so its `series`
column shows what chance alone allows; `always` calls all of them unusual.

Noise: normal, heavy (Student's t with 3 degrees of freedom), skewed (log-normal), bounded (uniform),
autocorrelated (AR(1), .8), changing (normal whose spread doubles and returns every 10,000 values).
Real: minute means of servers (Server Machine Dataset, test rows without a label), as distances from an
exponentially weighted level over their spread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import norm

from analysis.detection.calibration import TailTracker
from analysis.detection.streaming_tail import StreamingTail
from analysis.detection.tails import exceeds, fit_tail
from benchmarks.labelled.cases import DATA, smd

FloatArray = NDArray[np.float64]
RATES = (0.05, 0.01, 0.005, 0.001, 0.0001)
TRACKED_RATE = 0.005
"""That of the live baseline."""
FIRST = 2000
"""Values that the off-line forms learn from; the live form is judged on the same values after them."""
_LEVEL_MEMORY, _SPREAD_MEMORY = 12.0, 60.0


def noises(series: int, values: int, seed: int) -> Iterator[tuple[str, FloatArray]]:
    """Yield scores ``[values, series]`` of each kind of noise."""
    random = np.random.default_rng(seed)
    shape = (values, series)
    normal = np.abs(random.normal(size=shape))
    wave = np.where(np.arange(values) // 10_000 % 2 == 1, 2.0, 1.0)[:, None]
    yield "normal", normal
    yield "heavy", np.abs(random.standard_t(3, size=shape))
    yield "skewed", random.lognormal(0.0, 1.0, size=shape)
    yield "bounded", random.random(shape)
    yield (
        "autocorrelated",
        np.abs(lfilter([0.6], [1.0, -0.8], random.normal(size=shape), axis=0)),
    )
    yield "changing", normal * wave


def servers(data: Path) -> tuple[str, FloatArray, NDArray[np.bool_]]:
    """Return scores of real series and which of them are normal."""
    scores, normal = [], []
    for case in smd(data, 1000):
        table = case.frame.drop(columns="timestamp").to_numpy(dtype=float)
        labels = np.concatenate((np.zeros(case.train_rows), case.labels)).astype(bool)
        moving = table.std(axis=0) > 0
        scores.append(_distances(table[:, moving]))
        # What follows an anomaly is measured by a level that knows it: an hour is left out.
        near = np.convolve(labels, np.ones(60), mode="full")[: len(labels)] > 0
        normal.append(np.repeat(~near[:, None], scores[-1].shape[1], axis=1))
    rows = min(len(one) for one in scores)
    return (
        "servers",
        np.hstack([one[:rows] for one in scores]),
        np.hstack([one[:rows] for one in normal]),
    )


def _distances(table: FloatArray) -> FloatArray:
    """Return the distance of each value from the level before it, over the spread before it."""
    level, spread = table[0].copy(), np.zeros(table.shape[1])
    result = np.zeros(table.shape)
    for row, values in enumerate(table):
        error = np.abs(values - level)
        result[row] = error / np.maximum(spread, 1e-3)
        level += (values - level) / _LEVEL_MEMORY
        spread += (error - spread) / _SPREAD_MEMORY
    return result


def judge(scores: FloatArray, normal: NDArray[np.bool_], seed: int) -> Iterator[dict[str, object]]:
    """Yield a row for each way to tell what is unusual."""
    rest, judged = scores[FIRST:], normal[FIRST:]
    ways: dict[str, Callable[[], FloatArray]] = {
        "live": lambda: _live(scores, normal)[FIRST:],
        "offline": lambda: _by_series(scores, normal, lambda a, b: fit_tail(a).p_values(b)),
        "sample": lambda: _by_series(scores, normal, _conformal),
        "gauss": lambda: _by_series(scores, normal, _gauss),
        "random": lambda: np.random.default_rng(seed).random(rest.shape),
        "always": lambda: np.zeros(rest.shape),
    }
    for name, make in ways.items():
        p_values = make()
        yield {"way": name} | {
            key: value
            for rate in RATES
            for key, value in _realised(exceeds(p_values, rate), judged, rate).items()
        }
    yield {"way": "tracked", **_realised(_tracked(scores, normal), judged, TRACKED_RATE)}


def _realised(
    unusual: NDArray[np.bool_], judged: NDArray[np.bool_], rate: float
) -> dict[str, object]:
    seen = judged.sum(axis=0)
    each = (unusual & judged).sum(axis=0) / np.maximum(seen, 1)
    whole = float((unusual & judged).sum() / seen.sum())
    row: dict[str, object] = {f"{rate:g}": round(whole / rate, 2)}
    if rate == TRACKED_RATE:
        inside = (each >= rate / 2) & (each <= 2 * rate)
        row["series"] = round(float(inside.mean()), 2)
        row["worst"] = round(float(each.max() / rate), 1)
    return row


def _live(scores: FloatArray, normal: NDArray[np.bool_]) -> FloatArray:
    tail = StreamingTail()
    tail.grow(scores.shape[1])
    p_values = np.full(scores.shape, np.nan)
    for row, values in enumerate(scores):
        p_values[row] = tail.p_values(values)
        tail.update(values, normal[row])
    return p_values


def _tracked(scores: FloatArray, normal: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Follow the limit; scores are put on the scale on which it works, where it lies at about 1.5."""
    usual = np.quantile(scores[:FIRST], 1.0 - TRACKED_RATE, axis=0)
    scaled = 1.5 * scores / np.maximum(usual, 1e-9)
    tracker = TailTracker(TRACKED_RATE)
    tracker.grow(scores.shape[1])
    unusual = np.zeros(scores.shape, dtype=bool)
    for row, values in enumerate(scaled):
        unusual[row] = values > tracker.limit
        tracker.update(values, normal[row])
    return unusual[FIRST:]


def _by_series(
    scores: FloatArray,
    normal: NDArray[np.bool_],
    p_values: Callable[[FloatArray, FloatArray], FloatArray],
) -> FloatArray:
    columns = [
        p_values(values[:FIRST][known[:FIRST]], values[FIRST:])
        for values, known in zip(scores.T, normal.T, strict=True)
    ]
    return np.stack(columns, axis=1)


def _conformal(known: FloatArray, asked: FloatArray) -> FloatArray:
    above = len(known) - np.searchsorted(np.sort(known), asked, side="left")
    return np.asarray((above + 1.0) / (len(known) + 1.0))


def _gauss(known: FloatArray, asked: FloatArray) -> FloatArray:
    return np.asarray(norm.sf(asked, known.mean(), max(float(known.std()), 1e-9)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--series", type=int, default=100, help="series of each kind of noise")
    parser.add_argument("--values", type=int, default=30_000, help="values of each series")
    parser.add_argument("--only", nargs="*", help="names of the kinds of noise, or servers")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    cases = [
        (name, scores, np.ones(scores.shape, dtype=bool))
        for name, scores in noises(given.series, given.values, given.seed)
    ]
    if given.data.is_dir():
        cases.append(servers(given.data))
    else:
        print(f"no real series at {given.data}: noise only")
    for name, scores, normal in cases:
        if given.only and name not in given.only:
            continue
        table = pd.DataFrame(judge(scores, normal, given.seed)).set_index("way")
        print(f"\n{name}: {scores.shape[1]} series, {len(scores) - FIRST:,} values judged each")
        print(table.to_string(na_rep=""), flush=True)


if __name__ == "__main__":
    main()
