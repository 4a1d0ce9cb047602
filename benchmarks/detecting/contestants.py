"""Peers on one series of a week by the minute: libraries that Galen has, and three that it has not."""

from __future__ import annotations

import json
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from statsmodels.tsa.seasonal import STL, seasonal_decompose

from benchmarks.serving.environments import InstallError, environment

_PROGRAMS = Path(__file__).with_name("programs.py")
_SECONDS = 120.0
_ROW_CALLS = 300


@dataclass(frozen=True)
class Contestant:
    """A peer that lives in an environment of its own."""

    name: str
    program: str
    requirements: tuple[str, ...]


INSTALLED = (
    Contestant("river HalfSpaceTrees 10x8", "river", ("river==0.26.1",)),
    Contestant("pyod ECOD", "pyod", ("pyod==3.6.7",)),
    Contestant("adtk SeasonalAD", "adtk", ("adtk==0.6.2", "setuptools<81")),
)


def series(points: int, period: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Return a series with a day, noise and a few outliers."""
    random = np.random.default_rng(seed)
    day = np.sin(2 * np.pi * np.arange(points) / period)
    values = 100 + 30 * day + random.normal(0, 3, points)
    values[random.choice(points, points // 1000, replace=False)] += 80
    return values


def libraries(values: NDArray[np.float64], period: int) -> dict[str, float]:
    """Return points a second of what Galen's own dependencies offer, one thread each."""
    rows = values[:, None]
    fitted = IsolationForest(random_state=0, n_jobs=1).fit(rows)
    jump = period // 10
    jumps = dict.fromkeys(("seasonal_jump", "trend_jump", "low_pass_jump"), jump)

    def in_calls_of(size: int, calls: int) -> float:
        chosen = [rows[start : start + size] for start in range(0, size * calls, size)]
        spent = _once(lambda: [fitted.score_samples(each) for each in chosen])
        return size * calls / spent

    def whole(run: Callable[[], object]) -> float:
        return len(values) / _once(run)

    return {
        "statsmodels STL": whole(lambda: STL(values, period=period).fit()),
        "statsmodels STL, jump of a tenth": whole(
            lambda: STL(values, period=period, **jumps).fit()
        ),
        "statsmodels seasonal_decompose": whole(lambda: seasonal_decompose(values, period=period)),
        "IsolationForest, fit and score at once": whole(
            lambda: IsolationForest(random_state=0, n_jobs=1).fit(rows).score_samples(rows)
        ),
        "IsolationForest, 64 rows a call": in_calls_of(64, len(values) // 64),
        "IsolationForest, a row a call": in_calls_of(1, _ROW_CALLS),
    }


def installed(
    contestant: Contestant, values: NDArray[np.float64], period: int, cache: Path, folder: Path
) -> float | str:
    """Return points a second of a peer, or why it could not be measured."""
    try:
        name = contestant.requirements[0].partition("==")[0]
        python = environment(name, contestant.requirements, cache)
    except (InstallError, OSError, subprocess.TimeoutExpired) as error:
        return f"not installed: {_last_line(error)}"
    path = folder / "series.npy"
    np.save(path, values)
    command = [str(python), str(_PROGRAMS), contestant.program, str(path), str(period)]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        return float(json.loads(done.stdout)["points_per_second"])
    except subprocess.CalledProcessError as error:
        return f"failed: {(error.stderr or 'no message').strip().splitlines()[-1][:160]}"
    except subprocess.TimeoutExpired:
        return f"failed: took longer than {_SECONDS:.0f} s"


def _once(run: Callable[[], object]) -> float:
    """Return the CPU seconds of a call: the median of three, or the first where it takes long."""
    spent: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while len(spent) < 3 and sum(spent) < 3.0:
            began = time.process_time()
            run()
            spent.append(time.process_time() - began)
    return sorted(spent)[len(spent) // 2]


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:160] if lines else type(error).__name__
