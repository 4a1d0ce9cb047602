"""What reading one target costs: its text parsed, mapped to the catalogue and turned into samples.

``python -m benchmarks.target_reading [--expositions FOLDER] [--gpus 22] [--rounds 60] [--json FILE]``

Beside it stands the parser of ``prometheus_client`` on the same text, which only parses. The best of all
rounds counts, since what disturbs a round only makes it longer. CPU-bound, one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from collectors.reading import TargetReader

_EXPOSITIONS = Path(__file__).parents[2] / "shared" / "expositions"
_DCGM, _VLLM = "dcgm_exporter_L4_kops.txt", "vllm_v1_qwen2.5-0.5b_kops.txt"
_NODE = "node_exporter_e2e_output.txt"
_STEP_SECONDS = 15.0


def many_gpus(text: str, gpus: int) -> str:
    """Return the scrape of a host with one GPU as that of a host with many."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("DCGM"):
            lines += [
                line.replace('gpu="0"', f'gpu="{gpu}"').replace("GPU-", f"GPU-{gpu:04d}")
                for gpu in range(gpus)
            ]
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def measure(text: str, rounds: int) -> dict[str, float]:
    """Read one text again and again; times in seconds."""
    lines = sum(1 for line in text.splitlines() if line.strip() and line[0] != "#")
    reader = TargetReader({"instance": "target:9400"})
    times: list[float] = []
    samples = 0
    for number in range(rounds):
        at = number * _STEP_SECONDS
        started = time.perf_counter()
        samples = len(reader.take(text, 1e9 + at, at).samples)
        times.append(time.perf_counter() - started)
    parser = best(lambda: list(text_string_to_metric_families(text)), max(3, rounds // 10))
    return {
        "lines": lines,
        "samples": samples,
        "first_seconds": times[0],
        "again_seconds": min(times[1:]),
        "microseconds_per_line": min(times[1:]) / lines * 1e6,
        "prometheus_client_seconds": parser,
        "times_faster": parser / min(times[1:]),
    }


def best(work: Callable[[], object], rounds: int) -> float:
    """Return the shortest of some runs in seconds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expositions", type=Path, default=_EXPOSITIONS)
    parser.add_argument("--gpus", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    dcgm = many_gpus((options.expositions / _DCGM).read_text("utf-8"), options.gpus)
    texts = {f"dcgm-exporter, {options.gpus} GPUs": dcgm}
    texts |= {
        title: (options.expositions / file).read_text("utf-8")
        for title, file in (("vLLM", _VLLM), ("node_exporter", _NODE))
    }
    found = {title: measure(text, max(2, options.rounds)) for title, text in texts.items()}
    for title, one in found.items():
        print(
            f"{title}: {one['lines']:.0f} lines, {one['samples']:.0f} samples, "
            f"first {one['first_seconds'] * 1e3:.1f} ms, again {one['again_seconds'] * 1e3:.2f} ms "
            f"({one['microseconds_per_line']:.2f} us a line); prometheus_client parses it in "
            f"{one['prometheus_client_seconds'] * 1e3:.1f} ms: {one['times_faster']:.0f} times that"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
