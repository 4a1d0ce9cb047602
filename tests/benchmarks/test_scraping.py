from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.fleet.targets import EXPOSITIONS, Page, listed
from benchmarks.scraping import missed
from collectors.reading import TargetReader
from collectors.scraping.discovery import parse_targets


@pytest.mark.skipif(not EXPOSITIONS.is_dir(), reason=f"no real scrapes at {EXPOSITIONS}")
@pytest.mark.parametrize(
    ("kind", "signal"), [("vllm", "llm_queue_depth"), ("dcgm", "gpu_temperature_celsius")]
)
def test_the_fleets_pages_are_as_long_as_asked_for_and_mean_something(
    kind: str, signal: str
) -> None:
    page = Page(kind, 500)
    first, later, other = page.render(1, 0.0), page.render(1, 60.0), page.render(2, 0.0)
    for text in (first, later):
        assert sum(1 for line in text.splitlines() if not line.startswith("#")) == 500
    assert len({first, later, other}) == 3
    reader = TargetReader({"instance": "node1:9400"})
    reader.take(first, 0.0, 0.0)
    found = reader.take(later, 60.0, 60.0)
    assert signal in {sample.signal for sample in found.samples}


def test_the_list_of_targets_is_what_galen_reads() -> None:

    targets = parse_targets(json.dumps(listed(1234, 3)), "fleet")
    assert [target.url for target in targets] == [
        f"http://127.0.0.1:1234/t/{number}/metrics" for number in range(3)
    ]
    assert len({target.name for target in targets}) == 3


def _found(**galen: float) -> dict[str, Any]:
    fine = {
        "us_per_sample": 10.0,
        "failing": 0,
        "late": 0,
        "missed": 0,
        "dropped_samples": 0,
        "scrapes_per_second": 66.7,
        "seconds": 60.0,
    }
    return {"galen": {**fine, **galen}, "load": {"targets": 1000, "interval_seconds": 15.0}}


@pytest.mark.parametrize(
    ("galen", "words"),
    [
        ({}, None),
        ({"us_per_sample": 31.0}, "1.03 cores"),
        ({"failing": 1}, "1 targets fail"),
        ({"late": 40}, None),
        ({"late": 41}, "41 scrapes were late"),
        ({"missed": 1}, "1 turns"),
        ({"dropped_samples": 1}, "1 samples"),
        ({"scrapes_per_second": 60.0}, "60.0 scrapes/s of 66.7"),
    ],
)
def test_a_goal_that_is_missed_is_named(galen: dict[str, float], words: str | None) -> None:
    found = missed(_found(**galen))
    assert len(found) == (words is not None)
    assert words is None or words in found[0]
