"""Speed and memory of live detection on one core, beside its peers.

``python -m benchmarks detection_speed [-- --quick] [-- --json FILE] [-- --cache FOLDER]``

- Ticks: the whole pipeline (baseline with seasonal shapes, tail, votes of covariance and forest, peers,
  policy) over a made-up fleet of hosts, GPUs and services, every forest fitted. Fits of forests, which
  run beside the ticks, are counted apart. Goals: 10 ms a tick for 10,000 series; 15% of a core for
  100,000 series every 15 s, fits included.
- Memory: arrays, and what the process grew by. Goal: 18 KB a series. The ring of recent values that
  detection shares with diagnosis is beside it.
- Restart: a state of 10,000 series is read. Goal: 5 s.
- Seasons: a store of 1,000 series, seven days by the minute, is read and fitted. Goal: 60 s.
- Peers: points a second on one core of statsmodels, scikit-learn, river, pyod and adtk on a week by the
  minute, and Galen's over theirs. The last three are installed once, in environments of their own.

Each part runs in a process of its own, pinned to one core, one after the other; times are of the
processor, so that neighbours disturb little. Exit status 1 when a goal is missed, except with --quick.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.detecting.contestants import INSTALLED, installed, series
from benchmarks.serving.tables import circumstances, command, count, markdown

_POINTS, _PERIOD = 10_080, 1440
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_SECONDS = 900.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    fast_series: int
    slow_series: int
    ticks: int
    slow_ticks: int
    fitted_series: int


FULL = Size(10_000, 100_000, 150, 12, 1000)
QUICK = Size(1000, 3000, 40, 5, 40)


@dataclass(frozen=True)
class Goal:
    """One number that has to be kept."""

    name: str
    value: float
    most: float
    unit: str

    @property
    def met(self) -> bool:
        return self.value <= self.most

    def row(self) -> list[str]:
        verdict = "met" if self.met else "MISSED"
        return [self.name, f"{self.value:.3g} {self.unit}", f"{self.most:g} {self.unit}", verdict]


def pin() -> int:
    """Keep this process and its children on one core; return which."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    return core


def measured(what: str, **options: float) -> dict[str, float]:
    """Return what one measurement in a process of its own found."""
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    sys.stderr.write(f"measuring {what} {' '.join(arguments)}\n")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.detecting.measure", what, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_SECONDS,
    )
    # Logs of the libraries may come first.
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def goals(fast: dict[str, float], slow: dict[str, float], fit: dict[str, float]) -> list[Goal]:
    series_of = {name: f"{int(found['series']):,}" for name, found in
                 (("fast", fast), ("slow", slow), ("fit", fit))}  # fmt: skip
    weight = max(fast["array_bytes_a_series"], fast["resident_bytes_a_series"])
    return [
        Goal(f"a tick of {series_of['fast']} series", fast["tick_cpu_ms"], 10.0, "ms"),
        Goal(
            f"{series_of['slow']} series every 15 s", 100 * slow["core_share"], 15.0, "% of a core"
        ),
        Goal("memory a series", weight / 1024, 18.0, "KB"),
        Goal(f"restart of {series_of['fast']} series", fast["load_seconds"], 5.0, "s"),
        Goal(f"seasons of {series_of['fit']} series, 7 days", fit["fit_cpu_seconds"], 60.0, "s"),
    ]


def peers(cache: Path, folder: Path) -> dict[str, float | str]:
    """Return points a second by peer, or why there is no figure."""
    values = series(_POINTS, _PERIOD)
    found: dict[str, float | str] = dict(
        measured("libraries", points=_POINTS, period=_PERIOD).items()
    )
    for contestant in INSTALLED:
        sys.stderr.write(f"measuring {contestant.name}\n")
        found[contestant.name] = installed(contestant, values, _PERIOD, cache, folder)
    return found


def tick_table(runs: Sequence[dict[str, float]]) -> str:
    head = ["series", "cadence", "tick, CPU", "tick, wall", "99%", "fits a tick", "of a core",
            "arrays a series", "resident a series"]  # fmt: skip
    rows = [
        [
            f"{int(run['series']):,}",
            f"{run['cadence']:g} s",
            f"{run['tick_cpu_ms']:.2f} ms",
            f"{run['tick_ms']:.2f} ms",
            f"{run['tick_p99_ms']:.1f} ms",
            f"{run['fit_cpu_ms_a_tick']:.0f} ms",
            f"{100 * run['core_share']:.1f}%",
            f"{run['array_bytes_a_series'] / 1024:.1f} KB",
            f"{run['resident_bytes_a_series'] / 1024:.1f} KB",
        ]
        for run in runs
    ]
    return markdown(head, rows)


def peer_table(own: float, found: dict[str, float | str]) -> str:
    rows = [["Galen, the whole pipeline, causal", count(own), "1"]]
    for name, rate in found.items():
        told = isinstance(rate, (int, float))
        rows.append(
            [name, count(float(rate)), _ratio(own / float(rate))]
            if told
            else [name, "-", f"skipped: {rate}"]
        )
    return markdown(["detector", "points/s on a core", "Galen's over its"], rows)


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, no verdict")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "galen-benchmarks",
        help="where the environments of peers are kept",
    )  # fmt: skip
    options = parser.parse_args()
    about = circumstances()
    core = pin()
    size = QUICK if options.quick else FULL
    fast = measured("tick", series=size.fast_series, cadence=1.0, ticks=size.ticks)
    slow = measured("tick", series=size.slow_series, cadence=15.0, ticks=size.slow_ticks)
    fit = measured("fit", series=size.fitted_series)
    with tempfile.TemporaryDirectory() as folder:
        found = peers(options.cache, Path(folder))
    own = fast["series"] / (fast["tick_cpu_ms"] / 1e3)
    judged = goals(fast, slow, fit)
    print(f"{command('detection_speed')}\n{about}; core {core}\n")
    print(tick_table([fast, slow]))
    print(
        f"The ring of recent values, which diagnosis reads too, takes "
        f"{fast['history_bytes_a_series'] / 1024:.1f} KB a series at half an hour by the second.\n"
        f"State of {int(fast['series']):,} series: {fast['state_file_bytes'] / 2**20:.0f} MB, saved "
        f"in {fast['save_seconds']:.2f} s, taken up in {fast['load_seconds']:.2f} s.\n"
        f"Seasons of {int(fit['series']):,} series: {fit['fit_cpu_seconds']:.1f} s, of which "
        f"{fit['reading_cpu_seconds']:.1f} s reading; {int(fit['shapes'])} have a shape.\n"
    )
    print(peer_table(own, found))
    print(markdown(["goal", "measured", "at most", ""], [goal.row() for goal in judged]))
    if options.json is not None:
        document: dict[str, Any] = {
            "circumstances": about,
            "ticks": [fast, slow],
            "fit": fit,
            "peers": found,
            "own_points_per_second": own,
            "goals": [{**vars(goal), "met": goal.met} for goal in judged],
        }
        options.json.write_text(json.dumps(document, indent=1), "utf-8")
    return 0 if options.quick or all(goal.met for goal in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
