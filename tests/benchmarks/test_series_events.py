from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.labelled.cases import DATA, KPI_GROUPS, kpi_chosen_by
from benchmarks.labelled.series_events import GRACE_ROWS, judge_events
from benchmarks.labelled.series_peers import decomposition_scores, forest_scores

ROWS = 1440
TIMES = 60.0 * np.arange(ROWS + 1)


def rows(*at: int) -> np.ndarray:
    flags = np.zeros(ROWS + 1, dtype=bool)
    flags[list(at)] = True
    return flags


def test_an_event_is_found_from_its_first_row_on() -> None:
    labels = rows(*range(100, 120), *range(500, 503), 900)
    quality = judge_events(TIMES, labels, rows(99, 105, 110, 503 + 2, 901 + GRACE_ROWS))
    assert quality.events == 3
    assert quality.found == 2
    assert quality.delays_seconds == (300.0, 300.0)
    # One row too early, and one beyond the grace of a short event.
    assert quality.false_alarms == 2
    assert quality.false_per_day == pytest.approx(2.0)
    assert quality.recall == pytest.approx(2 / 3)


def test_always_finds_everything_and_is_wrong_nearly_always() -> None:
    labels = rows(*range(100, 120))
    quality = judge_events(TIMES, labels, np.ones(ROWS + 1, dtype=bool))
    assert quality.recall == 1.0
    assert quality.delays_seconds == (0.0,)
    assert quality.false_alarms == ROWS + 1 - 20


def test_without_events_there_is_no_recall() -> None:
    quality = judge_events(TIMES, rows(), rows(3))
    assert np.isnan(quality.recall)
    assert quality.false_alarms == 1


def test_near_copies_are_on_the_same_side() -> None:
    names = [name for group in KPI_GROUPS for name in group]
    assert len(set(names)) == len(names)
    for group in KPI_GROUPS:
        assert len({kpi_chosen_by(name) for name in group}) == 1
    assert 8 <= sum(map(kpi_chosen_by, names)) <= 16
    with pytest.raises(ValueError, match="no group of near copies"):
        kpi_chosen_by("0123456789")


@pytest.mark.skipif(not (DATA / "kpi").is_dir(), reason=f"the KPIs are not in {DATA}")
def test_every_kpi_is_on_a_side() -> None:
    names = [path.name for path in sorted(Path(DATA / "kpi").glob("*.csv.gz"))]
    assert len(names) == 24
    for name in names:
        kpi_chosen_by(name)


def test_the_peers_see_a_plain_spike() -> None:
    random = np.random.default_rng(0)
    at = 600.0 * np.arange(144 * 8)
    values = 50 + 20 * np.sin(2 * np.pi * at / 86_400) + random.normal(0, 1, len(at))
    train = 144 * 4
    spike = train + 300
    values[spike] += 80
    for scores in (
        forest_scores(values, train, 1, 0),
        forest_scores(values, train, 10, 0),
        decomposition_scores(at, values, train),
    ):
        assert len(scores) == len(values) - train
        assert np.isfinite(scores).all()
        at_spike = scores[spike - train : spike - train + 10].max()
        assert (scores > at_spike).mean() < 0.02
