"""What watching GPUs costs: NVML in its real child, the kernel log, and the host, once a tick.

``python -m benchmarks.gpu_collecting [--gpus 8] [--ticks 200] [--quick] [--json FILE]``

The GPUs are those of the fake library of the tests, so the driver's own time is not in it. It needs a C
compiler. CPU is counted over both processes and given as the share of one core at one tick a second.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from collectors.gpu.kernel_log import open_log
from collectors.gpu.nvml import NvmlCollector
from collectors.gpu.xid_collector import XidCollector
from collectors.gpu.xid_ledger import XidLedger
from collectors.host import HostCollector
from tests.collectors.gpu.fake_nvml import FakeNvml, compile_library

_LINKS = 18
_PAUSE_SECONDS = 0.05


def measure(folder: Path, gpus: int, ticks: int) -> dict[str, float]:
    """Collect for some ticks and return what they cost."""
    fake = FakeNvml(folder, compile_library(folder), gpus)
    for slot in range(gpus):
        gpu = fake.gpu(slot)
        gpu.nvlinks = _LINKS
        for link in gpu.links:
            link.active = 1
        gpu.processes_are((os.getpid(), 1 << 30), (1, 1 << 30))
    os.environ.update(fake.environment)
    ledger = XidLedger("box")
    nvml = NvmlCollector("box", deadline_seconds=10.0, library_present=lambda: True, xids=ledger)
    collectors = [HostCollector(folder), nvml, XidCollector("box", ledger, open_log("auto"))]
    try:
        for collector in collectors:
            collector.collect(time.time())
        child = next(
            process
            for process in psutil.Process().children()
            if process.name().startswith("python")
        )
        both = (psutil.Process(), child)
        started = [sum(process.cpu_times()[:2]) for process in both]
        samples = 0
        for _ in range(ticks):
            samples = sum(len(one.collect(time.time()).samples) for one in collectors)
            time.sleep(_PAUSE_SECONDS)
        spent = [sum(process.cpu_times()[:2]) for process in both]
        seconds = [(end - start) / ticks for start, end in zip(started, spent, strict=True)]
        return {
            "gpus": gpus,
            "samples_per_tick": samples,
            "collector_cpu_ms_per_tick": 1e3 * seconds[0],
            "child_cpu_ms_per_tick": 1e3 * seconds[1],
            "core_percent_at_1_hz": 100 * sum(seconds),
            "collector_mib": both[0].memory_info().rss / 2**20,
            "child_mib": both[1].memory_info().rss / 2**20,
        }
    finally:
        for collector in collectors:
            collector.close()


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the numbers where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--ticks", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="a tenth of the ticks")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder), options.gpus, options.ticks // 10 if options.quick else options.ticks
        )
    for name, value in found.items():
        print(f"{name:28} {value:10.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
