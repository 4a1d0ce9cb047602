from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from analysis.detection.forest import ForestVote, SameThreadExecutor
from analysis.detection.packed_forest import (
    fit_forest,
    isolation_of,
    isolation_trees,
    mean_path_length,
)
from analysis.detection.settings import ForestSettings
from collectors.contract import SeriesKey

KEYS = [SeriesKey("host/a", f"s{n}") for n in range(5)]


@pytest.mark.parametrize("count", [40, 128, 200])
def test_packed_trees_score_as_the_paper_says(count: int) -> None:
    random = np.random.default_rng(1)
    rows = random.normal(size=(count, 5))
    # Values that are thresholds themselves have to take the same branch.
    rows[:, 1] = np.round(rows[:, 1])
    own = fit_forest(rows, trees=20, seed=3)
    strange = random.normal(0, 3, size=(50, 5))
    depths = []
    for tree in isolation_trees(rows, trees=20, seed=3):
        passed = np.asarray(tree.decision_path(strange.astype(np.float32)).sum(axis=1)).ravel()
        leaf = tree.tree_.n_node_samples[tree.apply(strange.astype(np.float32))]
        depths.append(passed - 1.0 + np.array([mean_path_length(float(n)) for n in leaf]))
    expected = 2.0 ** (-np.mean(depths, axis=0) / mean_path_length(min(128, count)))
    np.testing.assert_allclose(isolation_of(own, strange), expected, rtol=1e-6)


@pytest.mark.parametrize("count", [60, 256])
def test_the_forest_is_the_one_of_scikit_learn_up_to_chance(count: int) -> None:
    random = np.random.default_rng(2)
    rows = random.normal(size=(count, 6)) * np.array([1, 2, 5, 1, 1, 0.1])
    strange = random.normal(0, 2, size=(200, 6))
    settings = {"n_estimators": 400, "max_samples": min(128, count)}
    theirs = [
        -IsolationForest(**settings, random_state=seed).fit(rows).score_samples(strange)
        for seed in (0, 1)
    ]
    ours = isolation_of(fit_forest(rows, trees=400, seed=5), strange)
    between_theirs = np.abs(theirs[0] - theirs[1]).mean()
    assert np.abs(ours - theirs[0]).mean() < 1.5 * between_theirs
    assert np.corrcoef(ours, theirs[0])[0, 1] > np.corrcoef(*theirs)[0, 1] - 0.01


def test_the_mean_path_length_is_that_of_the_paper() -> None:
    assert mean_path_length(1) == 0
    assert mean_path_length(2) == 1
    assert mean_path_length(256) == pytest.approx(10.244, abs=1e-3)


def test_it_scores_an_unusual_row_and_names_the_series_that_stands_out() -> None:
    settings = ForestSettings(first_rows=64, row_seconds=1, rows=128)
    vote = ForestVote(settings, SameThreadExecutor())
    vote.grow(KEYS)
    random = np.random.default_rng(0)
    learn = np.ones(5, dtype=bool)
    usual = []
    for tick in range(260):
        scores = vote.score(float(tick), 100 + random.normal(size=5), learn)
        usual.append(scores.score)
    assert np.nanmean(np.nanmax(np.array(usual[120:]), axis=1) > 1) < 0.05
    strange = vote.score(260.0, np.array([160, 100, 900, 160, 160.0]), learn).score
    assert strange[2] > 1
    assert np.argmax(strange) == 2
    assert strange[1] < 0.1


def test_two_entities_are_scored_apart() -> None:
    settings = ForestSettings(first_rows=64, row_seconds=1, rows=128)
    vote = ForestVote(settings, SameThreadExecutor())
    vote.grow([SeriesKey(f"host/{name}", f"s{n}") for name in "ab" for n in range(3)])
    random = np.random.default_rng(0)
    learn = np.ones(6, dtype=bool)
    for tick in range(200):
        vote.score(float(tick), 100 + random.normal(size=6), learn)
    scores = vote.score(200.0, np.array([100, 100, 100, 900, 900, 900.0]), learn).score
    assert np.nanmin(scores[3:]) > 2 * np.nanmax(scores[:3])


@pytest.mark.parametrize(("step_seconds", "fits"), [(1.0, 3), (60.0, 3)])
def test_a_forest_is_fitted_again_when_enough_rows_are_new(step_seconds: float, fits: int) -> None:
    settings = ForestSettings(first_rows=60, row_seconds=1, refit_seconds=60)
    executor = CountingExecutor()
    vote = ForestVote(settings, executor)
    vote.grow(KEYS)
    random = np.random.default_rng(0)
    for tick in range(200):
        vote.score(step_seconds * tick, random.normal(size=5), np.ones(5, dtype=bool))
    assert executor.calls == fits


class CountingExecutor(SameThreadExecutor):
    def __init__(self) -> None:
        self.calls = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().submit(fn, *args, **kwargs)


def test_no_forest_is_fitted_where_nothing_moves() -> None:
    vote = ForestVote(ForestSettings(first_rows=20, row_seconds=1), SameThreadExecutor())
    vote.grow(KEYS)
    for tick in range(100):
        scores = vote.score(float(tick), np.full(5, 3.0), np.ones(5, dtype=bool))
    assert np.isnan(scores.score).all()


def test_a_fit_is_used_from_its_hand_over_tick_on() -> None:
    settings = ForestSettings(first_rows=20, row_seconds=1, handover_ticks=7)
    vote = ForestVote(settings, SameThreadExecutor())
    vote.grow(KEYS)
    random = np.random.default_rng(0)
    known = [
        bool(np.isfinite(vote.score(float(t), random.normal(size=5), np.ones(5, bool)).score).any())
        for t in range(60)
    ]
    # The twentieth row is kept at tick 19, where the fit is submitted.
    assert known.index(True) == 19 + 7
