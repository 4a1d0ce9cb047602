"""What every real scrape gives, to the last number; see ``golden/README.md``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from collectors.exposition import parse_exposition
from collectors.reading import TargetReader
from collectors.signals import catalogue
from collectors.sources import collect_source

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))
NOW = 1_800_000_000.0


def _reading(file: Path) -> dict[str, Any]:
    reading = collect_source(str(file), host="box", wall=lambda: NOW)
    samples = [
        [one.entity, one.signal, float(f"{one.value:.12g}"), one.unit, dict(sorted(one.labels.items()))]
        for one in sorted(reading.samples)
    ]  # fmt: skip
    return {
        "kinds": list(reading.kinds),
        "lines": reading.lines,
        "samples": samples,
        "notes": sorted(reading.notes),
        "unrecognised": sorted(reading.unrecognised),
    }


def _written(found: dict[str, Any]) -> str:
    """One sample a line, so that a difference can be read."""
    parts = [f' "kinds": {json.dumps(found["kinds"])},\n "lines": {found["lines"]}']
    for key in ("samples", "notes", "unrecognised"):
        rows = ",\n".join(f"  {json.dumps(row)}" for row in found[key])
        parts.append(f' "{key}": [\n{rows}\n ]' if rows else f' "{key}": []')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def test_there_is_a_golden_file_for_every_real_scrape(expositions: Path) -> None:
    files = sorted(expositions.glob("*.txt"))
    if os.environ.get("GALEN_REWRITE_GOLDEN") == "1":
        for file in files:
            (GOLDEN / f"{file.stem}.json").write_text(_written(_reading(file)), "utf-8")
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == [file.stem for file in files]


@pytest.mark.parametrize("name", NAMES)
def test_a_real_scrape_gives_what_it_gave(expositions: Path, name: str) -> None:
    expected = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    assert _reading(expositions / f"{name}.txt") == expected
    assert expected["kinds"]


@pytest.mark.parametrize("name", NAMES)
def test_no_line_of_a_real_scrape_is_lost(expositions: Path, name: str) -> None:
    text = (expositions / f"{name}.txt").read_text("utf-8")
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    exposition = parse_exposition(text)
    assert exposition.lines == len(lines)
    read = sum(1 for _ in exposition.samples())
    assert read + sum(exposition.left_out.values()) + exposition.repeated == len(lines)
    assert exposition.repeated == 0
    assert not exposition.offenders


@pytest.mark.parametrize("name", NAMES)
def test_types_and_help_are_not_needed(expositions: Path, tmp_path: Path, name: str) -> None:
    expected = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    text = (expositions / f"{name}.txt").read_text("utf-8")
    bare = tmp_path / "bare.txt"
    bare.write_text("".join(f"{line}\n" for line in text.split("\n") if not line.startswith("#")))
    assert _reading(bare)["samples"] == expected["samples"]


@pytest.mark.parametrize("name", NAMES)
def test_a_target_that_is_read_twice_gives_the_gauges_of_one_reading(
    expositions: Path, name: str
) -> None:
    expected = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    text = (expositions / f"{name}.txt").read_text("utf-8")
    reader = TargetReader({"host": "box"})
    for at in (10.0, 25.0):
        samples = reader.take(text, NOW, at).samples
    given = {(one.signal, float(f"{one.value:.12g}")) for one in samples}
    gauges = {
        (signal, value)
        for _, signal, value, _, labels in expected["samples"]
        if not {"cumulative", "window"} & set(labels)
    }
    assert gauges <= given
    # The counters did not move, so that every rate is zero.
    assert all(value == 0 for _, value in given - gauges)
    assert list(reader.kinds) == expected["kinds"]


@pytest.mark.parametrize("name", NAMES)
def test_golden_values_are_possible_and_no_series_comes_twice(name: str) -> None:
    expected = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    for _, signal, value, unit, labels in expected["samples"]:
        known = catalogue()[signal]
        assert unit == known.unit or "cumulative" in labels
        assert known.low is None or value >= known.low, signal
        assert known.high is None or value <= known.high or "cumulative" in labels, signal
    series = [(entity, signal) for entity, signal, *_ in expected["samples"]]
    assert len(set(series)) == len(series)


def test_every_metric_of_a_vllm_of_today_is_known_or_known_to_be_left_out(
    expositions: Path,
) -> None:
    offered = json.loads((expositions / "vllm_0.33.0_metric_catalog.json").read_text("utf-8"))
    text = " ".join(
        name for signal in catalogue().values() for name in signal.names.get("vllm", ())
    )
    unknown = {name for name in offered["metrics"] if name not in text and " " not in name}
    assert unknown == {
        "vllm:estimated_read_bytes_per_gpu_total",
        "vllm:estimated_write_bytes_per_gpu_total",
        "vllm:kv_block_idle_before_evict_seconds",
        "vllm:kv_block_lifetime_seconds",
        "vllm:kv_block_reuse_gap_seconds",
        "vllm:lora_requests_info",
        "vllm:prompt_tokens_by_source_total",
        "vllm:prompt_tokens_cached_by_source_total",
        "vllm:prompt_tokens_cached_total",
        "vllm:request_max_num_generation_tokens",
        "vllm:request_num_preemptions",
        "vllm:request_params_max_tokens",
        "vllm:request_params_n",
        "vllm:request_prefill_kv_computed_tokens",
        "vllm:spec_decode_num_accepted_tokens_per_pos_total",
    }
