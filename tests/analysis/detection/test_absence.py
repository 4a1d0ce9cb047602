from __future__ import annotations

import numpy as np
import pytest

from analysis.detection.absence import Absence, DropToZero
from analysis.detection.contract import Detector, FloatArray
from analysis.detection.settings import AbsenceSettings, DropSettings
from collectors.contract import SeriesKey


def play(detector: Detector, values: list[float], start: float = 0.0) -> FloatArray:
    learn = np.array([True])
    rows = [
        detector.score(start + tick, np.array([value]), learn).score[0]
        for tick, value in enumerate(values)
    ]
    return np.nan_to_num(np.array(rows))


def absence() -> Absence:
    detector = Absence(AbsenceSettings())
    detector.grow([SeriesKey("a/b", "x")])
    return detector


@pytest.mark.parametrize(("cadence", "after"), [(1, 6), (5, 21), (15, 61)])
def test_absence_is_measured_at_the_series_own_cadence(cadence: int, after: int) -> None:
    values = [1.0 if tick % cadence == 0 else np.nan for tick in range(cadence * 60 + 1)]
    scores = play(absence(), values + [np.nan] * 100)
    last = cadence * 60
    assert scores[: last + 1].max() <= 1
    assert int(np.flatnonzero(scores > 1)[0]) - last == after


def test_a_series_that_comes_irregularly_is_given_its_longest_gap() -> None:
    random = np.random.default_rng(0)
    values = [1.0 if random.random() < 0.2 else np.nan for _ in range(3000)]
    assert (play(absence(), values)[300:] > 1).mean() < 0.002


def test_a_few_values_show_no_cadence() -> None:
    assert play(absence(), [1.0] * 5 + [np.nan] * 500).max() == 0


def rate() -> DropToZero:
    detector = DropToZero(DropSettings())
    detector.grow([SeriesKey("service/llm", "llm_tokens_per_second")])
    return detector


def test_a_steady_rate_that_stops_is_found_at_once() -> None:
    random = np.random.default_rng(0)
    values = list(random.poisson(500, 100).astype(float))
    scores = play(rate(), values + [0.0] * 10)
    assert scores[:100].max() == 0
    assert np.flatnonzero(scores > 1)[0] == 102


def test_a_rate_that_rests_now_and_then_is_given_its_longest_rest() -> None:
    values = ([300.0] * 120 + [0.0] * 3) * 10
    scores = play(rate(), [*values, *[300.0] * 60, *[0.0] * 15])
    assert (scores[200 : len(values)] > 1).sum() == 0
    assert scores[-1] > 1


def test_a_rate_that_is_often_zero_is_not_judged() -> None:
    values = [300.0, 0.0, 0.0, 300.0] * 100 + [0.0] * 60
    assert play(rate(), values)[50:].max() <= 1


def test_falling_slowly_to_a_low_rate_is_no_drop() -> None:
    values = list(np.linspace(500, 40, 300))
    assert play(rate(), values).max() == 0
