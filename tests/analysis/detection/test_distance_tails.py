from __future__ import annotations

import numpy as np
import pytest

from analysis.detection.distance_tails import DistanceTail, fit_all, surprises


def fitted(past: np.ndarray, size: float = 1.0) -> DistanceTail:
    tail = DistanceTail.fit(past, size)
    assert tail is not None
    return tail


def test_a_pareto_tail_is_extrapolated() -> None:
    past = np.random.default_rng(0).pareto(3.0, 20_000) + 1.0
    # P(distance > d) = d ** -3
    for distance in (3.0, 10.0, 100.0):
        surprise = fitted(past).surprise(np.array([distance]))[0]
        assert surprise == pytest.approx(3.0 * np.log(distance), rel=0.1)


def test_the_tail_that_was_seen_is_empirical() -> None:
    past = np.abs(np.random.default_rng(1).normal(size=50_000))
    for rate in (0.1, 0.03, 0.01, 0.003):
        distance = np.quantile(past, 1.0 - rate)
        assert fitted(past).surprise(np.array([distance]))[0] == pytest.approx(-np.log(rate), 0.01)


def test_a_surprise_rises_with_the_distance_and_does_not_depend_on_the_unit() -> None:
    past = np.abs(np.random.default_rng(2).normal(size=3_000))
    distances = np.linspace(0.0, 30.0, 400)
    found = fitted(past).surprise(distances)
    assert (np.diff(found) > 0).all()
    assert found[0] == 0.0
    np.testing.assert_allclose(fitted(1e6 * past, 1e6).surprise(1e6 * distances), found)


def test_a_few_anomalies_in_the_past_hardly_move_it() -> None:
    past = np.abs(np.random.default_rng(3).normal(size=20_000))
    clean = fitted(past).surprise(np.array([6.0]))[0]
    past[:20] = 500.0
    assert fitted(past).surprise(np.array([6.0]))[0] == pytest.approx(clean, rel=0.05)


def test_what_never_moved_surprises_by_its_first_move() -> None:
    still = np.zeros(1_000)
    tail = fitted(still, size=7.0)
    quiet, small, large = tail.surprise(np.array([0.0, 0.02, 2.0]))
    assert quiet == 0.0
    assert small < 5.0 < large


def test_rare_moves_are_as_surprising_as_they_are_rare() -> None:
    past = np.zeros(2_000)
    past[::40] = 3.0
    tail = fitted(past)
    usual, more = tail.surprise(np.array([3.0, 30.0]))
    assert usual == pytest.approx(-np.log(1 / 40), rel=0.05)
    assert more > usual + 2.0


def test_few_rows_say_nothing_and_missing_ones_stay_missing() -> None:
    past = np.column_stack((np.arange(60.0), np.where(np.arange(60) < 49, 1.0, np.nan)))
    tails = fit_all(past, 1.0)
    assert tails[0] is not None
    assert tails[1] is None
    found = surprises(tails, np.array([[5.0, 5.0], [np.nan, 5.0]]))
    assert np.isfinite(found[0, 0])
    assert np.isnan(found[[1, 0, 1], [0, 1, 1]]).all()
