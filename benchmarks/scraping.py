"""What scraping a fleet costs: 1,000 targets of 500 samples every 15 s, through to the store.

``python -m benchmarks.scraping [--targets 1000] [--samples 500] [--interval 15] [--quick] [--json F]``

Real HTTP, real exporters' text with values that change, the collectors and the store as the watch loop
runs them. Beside it, in the same run: the same targets scraped by the real Prometheus, and the same
texts parsed by prometheus_client. Goal: less than one core, nothing late, nothing lost. ``--quick``
scrapes 100 targets every 5 s for a shorter time. Exit status 1 when the goal is missed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.fleet.processes import Tree, Used, running
from benchmarks.fleet.targets import Page
from collectors.reading import TargetReader
from collectors.settings import ReadingSettings

GOAL_CORES = 1.0
GOAL_SAMPLES_PER_SECOND = 1000 * 500 / 15
_WARM_UP_INTERVALS = 2.2
"""The first scrape of a target learns its series; rates come with the second."""
_PARSED_TIMES = 30
_LATE_SHARE = 0.01
"""Scrapes that may begin more than a tenth of their interval late: the machine does other things too."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is scraped, and for how long."""

    targets: int
    samples: int
    interval_seconds: float
    measured_intervals: int

    @property
    def samples_per_second(self) -> float:
        """Raw samples, as the targets give them."""
        return self.targets * self.samples / self.interval_seconds


def scrape_with_galen(load: Load, listed: Path, folder: Path) -> dict[str, float]:
    """Measure Galen's process."""
    settings = folder / "settings.json"
    job = {
        "name": "fleet",
        "files": [str(listed)],
        "interval_seconds": load.interval_seconds,
        "deadline_seconds": min(10.0, load.interval_seconds),
    }
    settings.write_text(
        json.dumps({"host_enabled": False, "gpu_mode": "none", "scrape": [job]}), "utf-8"
    )
    command = [sys.executable, "-m", "benchmarks.fleet.scraper", str(settings), str(folder)]
    with running(command, folder / "galen.log") as process:
        newest = _follow(process)
        time.sleep(_WARM_UP_INTERVALS * load.interval_seconds)
        tree, before = Tree(process.pid), dict(newest[0])
        used = tree.over(load.measured_intervals * load.interval_seconds)
        after = dict(newest[0])
        if process.poll() is not None:
            raise RuntimeError(f"the scraper ended: {(folder / 'galen.log').read_text()[-2000:]}")
    grown = {name: after[name] - before.get(name, 0.0) for name in ("written", "scrapes")}
    return {
        **_used(used, load),
        "scrapes_per_second": grown["scrapes"] / used.seconds,
        "written_samples_per_second": grown["written"] / used.seconds,
        "failing": after["scrape_targets_failing"],
        "seconds": used.seconds,
        "late": after["scrape_late_total"] - before["scrape_late_total"],
        "missed": after["scrape_missed_total"] - before["scrape_missed_total"],
        "dropped_samples": after["scrape_dropped_samples_total"],
        "store_mib": sum(each.stat().st_size for each in folder.glob("series.sqlite*")) / 2**20,
    }


def scrape_with_prometheus(load: Load, listed: Path, folder: Path) -> dict[str, float] | None:
    """Measure the real Prometheus on the same targets; None where it is not installed."""
    binary = shutil.which("prometheus")
    if binary is None:
        return None
    config = folder / "prometheus.yml"
    every = f"{load.interval_seconds * 1000:.0f}ms"
    config.write_text(
        f"global: {{scrape_interval: {every}, scrape_timeout: {every}}}\n"
        "scrape_configs:\n"
        "  - job_name: fleet\n"
        f"    file_sd_configs: [{{files: ['{listed}']}}]\n",
        "utf-8",
    )
    command = [
        binary, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
        "--web.listen-address=127.0.0.1:0", "--log.level=error",
    ]  # fmt: skip
    with running(command, folder / "prometheus.log") as process:
        time.sleep(_WARM_UP_INTERVALS * load.interval_seconds)
        used = Tree(process.pid).over(load.measured_intervals * load.interval_seconds)
        if process.poll() is not None:
            raise RuntimeError(f"Prometheus ended: {(folder / 'prometheus.log').read_text()}")
    return _used(used, load)


def parse(load: Load) -> dict[str, float]:
    """Time what becomes of the text: canonical samples here, parsed families there; CPU only."""
    texts = {
        kind: [Page(kind, load.samples).render(1, 15.0 * n) for n in range(_PARSED_TIMES)]
        for kind in ("vllm", "dcgm")
    }
    spent = {"galen": 0.0, "prometheus_client": 0.0}
    for page in texts.values():
        reader = TargetReader({"instance": "node1:8000"}, ReadingSettings())
        reader.take(page[0], 0.0, 0.0)  # the first scrape learns the series
        began = time.process_time()
        for number, text in enumerate(page, start=1):
            reader.take(text, 15.0 * number, 15.0 * number)
        spent["galen"] += time.process_time() - began
        began = time.process_time()
        for text in page:
            for family in text_string_to_metric_families(text):
                len(family.samples)
        spent["prometheus_client"] += time.process_time() - began
    samples = len(texts) * _PARSED_TIMES * load.samples
    return {
        **{f"{name}_us_per_sample": 1e6 * each / samples for name, each in spent.items()},
        "times_faster": spent["prometheus_client"] / spent["galen"],
    }


def _used(used: Used, load: Load) -> dict[str, float]:
    return {
        "cores": used.core_share,
        "us_per_sample": 1e6 * used.core_share / load.samples_per_second,
        "resident_mib": used.resident_mib,
    }


def _follow(process: subprocess.Popen[str]) -> deque[dict[str, Any]]:
    """Keep the newest line of a process; it must not wait for anybody to read."""
    newest: deque[dict[str, Any]] = deque([{}], maxlen=1)

    def read() -> None:
        for line in process.stdout or ():
            newest.append(json.loads(line))

    threading.Thread(target=read, daemon=True).start()
    return newest


def measure(load: Load, folder: Path) -> dict[str, Any]:
    """Run everything and return the numbers."""
    listed = folder / "targets.json"
    command = [
        sys.executable, "-m", "benchmarks.fleet.targets", "--count", str(load.targets),
        "--samples", str(load.samples), "--file", str(listed),
    ]  # fmt: skip
    with running(command, folder / "targets.log") as server:
        if server.stdout is None or not server.stdout.readline():
            raise RuntimeError(f"no targets: {(folder / 'targets.log').read_text()}")
        galen = scrape_with_galen(load, listed, folder)
        prometheus = scrape_with_prometheus(load, listed, folder)
    return {
        "load": {**asdict(load), "samples_per_second": load.samples_per_second},
        "galen": galen,
        "prometheus": prometheus,
        "parsing": parse(load),
    }


def missed(found: dict[str, Any]) -> list[str]:
    """Return which goals are missed, in words."""
    galen, load = found["galen"], found["load"]
    # A smaller load than the goal's is judged by what the same cost a sample would make of the goal's.
    cores = galen["us_per_sample"] * GOAL_SAMPLES_PER_SECOND / 1e6
    due = load["targets"] / load["interval_seconds"]
    checks = {
        f"{cores:.2f} cores at {GOAL_SAMPLES_PER_SECOND:.0f} samples/s, goal {GOAL_CORES:g}": cores
        >= GOAL_CORES,
        f"{galen['failing']:.0f} targets fail": galen["failing"] > 0,
        f"{galen['late']:.0f} scrapes were late": galen["late"]
        > _LATE_SHARE * due * galen["seconds"],
        f"{galen['missed']:.0f} turns were missed": galen["missed"] > 0,
        f"{galen['dropped_samples']:.0f} samples were dropped": galen["dropped_samples"] > 0,
        f"{galen['scrapes_per_second']:.1f} scrapes/s of {due:.1f}": galen["scrapes_per_second"]
        < 0.95 * due,
    }
    return [words for words, is_missed in checks.items() if is_missed]


def _print(found: dict[str, Any]) -> None:
    load, rows = found["load"], [("galen", found["galen"]), ("prometheus", found["prometheus"])]
    print(
        f"{load['targets']} targets x {load['samples']} samples / {load['interval_seconds']:g} s = "
        f"{load['samples_per_second']:.0f} samples/s"
    )
    print(f"{'':12}{'cores':>8}{'us/sample':>11}{'MiB':>8}")
    for name, row in rows:
        if row is not None:
            print(
                f"{name:12}{row['cores']:8.3f}{row['us_per_sample']:11.2f}{row['resident_mib']:8.0f}"
            )
    if found["prometheus"] is not None:
        ratio = found["galen"]["cores"] / found["prometheus"]["cores"]
        print(f"ratio galen/prometheus {ratio:.2f}")
    else:
        print("prometheus is not installed: no comparison")
    for name, value in found["galen"].items():
        print(f"  {name:28}{value:12.2f}")
    for name, value in found["parsing"].items():
        print(f"  parsing: {name:28}{value:8.2f}")


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the numbers where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--interval", type=float, default=15.0)
    parser.add_argument("--intervals", type=int, default=4, help="how many are measured")
    parser.add_argument("--quick", action="store_true", help="100 targets, every 5 s, for 10 s")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args(arguments)
    load = Load(options.targets, options.samples, options.interval, options.intervals)
    if options.quick:
        load = Load(100, options.samples, 5.0, 2)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(load, Path(folder))
    found["missed"] = missed(found)
    _print(found)
    for words in found["missed"]:
        print(f"MISSED: {words}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return 1 if found["missed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
