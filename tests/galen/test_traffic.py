from __future__ import annotations

import itertools
import random
from pathlib import Path
from statistics import mean, stdev

import pytest

from galen.drill.traffic import shaped_arrivals, trace_arrivals
from galen.errors import ConfigError


def test_arrivals_have_the_rate_and_the_burstiness_of_the_trace() -> None:
    drawn = list(itertools.islice(shaped_arrivals(10.0, random.Random(1)), 20_000))
    gaps = [arrival.gap_seconds for arrival in drawn]
    # The swing is symmetric in rate around (0.58 + 1.55) / 2 times the rate that was asked for.
    assert len(gaps) / sum(gaps) == pytest.approx(10.0 * 1.065, rel=0.1)
    assert 1.0 < stdev(gaps) / mean(gaps) < 1.35
    assert all(4 <= arrival.answer_tokens <= 150 for arrival in drawn)


def test_arrivals_are_the_same_for_the_same_seed() -> None:
    first, second = (
        list(itertools.islice(shaped_arrivals(5.0, random.Random(7)), 50)) for _ in range(2)
    )
    assert first == second


def test_a_trace_is_replayed_with_its_own_gaps(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9305900,396,1009\n"
    )
    first, second = trace_arrivals(trace)
    assert first.gap_seconds == 0.0
    assert second.gap_seconds == pytest.approx(4.25)
    assert (first.answer_tokens, second.answer_tokens) == (44, 150)


def test_a_broken_trace_names_file_and_line(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,GeneratedTokens\n2023-11-16 18:15:46.6805900,4\nnonsense,5\n")
    with pytest.raises(ConfigError, match=r"trace\.csv:3"):
        list(trace_arrivals(trace))
