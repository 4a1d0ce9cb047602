from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from analysis.detection.mahalanobis import MahalanobisVote, combined_square, shrunk_covariance
from analysis.detection.settings import CovarianceSettings
from collectors.contract import SeriesKey

RIDGE = 0.01


def test_shrinkage_agrees_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(60, 8)) @ np.diag(np.linspace(0.5, 3, 8))
    rows -= rows.mean(axis=0)
    covariance = rows.T @ rows / len(rows)
    fourth = ((rows**2).sum(axis=1) ** 2).mean()
    own = shrunk_covariance(covariance[None], np.array([fourth]), np.array([60.0]), np.array([8]))[
        0
    ]
    theirs, weight = ledoit_wolf(rows, assume_centered=True)
    assert 0 < weight < 1
    np.testing.assert_allclose(own, theirs + RIDGE * np.eye(8), rtol=1e-6)


def test_padding_does_not_change_an_entity() -> None:
    random = np.random.default_rng(1)
    rows = random.normal(size=(100, 3))
    covariance = rows.T @ rows / 100
    fourth = ((rows**2).sum(axis=1) ** 2).mean()
    small = shrunk_covariance(covariance[None], np.array([fourth]), np.array([1e2]), np.array([3]))
    padded = np.zeros((1, 6, 6))
    padded[0, :3, :3] = covariance
    large = shrunk_covariance(padded, np.array([fourth]), np.array([1e2]), np.array([3]))
    np.testing.assert_allclose(large[0, :3, :3], small[0])
    z = np.zeros((1, 6))
    z[0, :3] = 2.0
    own, _ = combined_square(z[:, :3], np.linalg.inv(small), np.array([3]))
    wide, share = combined_square(z, np.linalg.inv(large), np.array([3]))
    assert wide[0] == pytest.approx(own[0])
    assert not share[0, 3:].any()


def test_a_broken_relation_scores_where_each_value_alone_is_usual() -> None:
    vote = MahalanobisVote(CovarianceSettings())
    vote.grow([SeriesKey("service/a", "x"), SeriesKey("service/a", "y")])
    random = np.random.default_rng(2)
    learn = np.ones(2, dtype=bool)
    usual = []
    for tick in range(600):
        load = 100 + 40 * np.sin(tick / 20)
        values = np.array([load, 3 * load]) + random.normal(0, 1, 2)
        usual.append(vote.score(float(tick), values, learn).score)
    kept = vote.score(600.0, np.array([140.0, 420.0]), learn).score
    broken = vote.score(601.0, np.array([140.0, 180.0]), learn).score
    assert np.nanmax(broken) > 2 * np.nanmax(kept)
    assert np.nanmax(broken) > np.nanquantile(np.nanmax(np.array(usual[100:]), axis=1), 0.99)


def test_nothing_is_learned_while_an_entity_is_anomalous() -> None:
    vote = MahalanobisVote(CovarianceSettings())
    vote.grow([SeriesKey("service/a", "x"), SeriesKey("service/a", "y")])
    random = np.random.default_rng(3)
    for tick in range(200):
        vote.score(float(tick), random.normal(100, 1, 2), np.ones(2, dtype=bool))
    before = vote.state()
    vote.score(200.0, np.array([500.0, 100.0]), np.array([False, True]))
    after = vote.state()
    assert after["weights"][200 % len(after["weights"])] == 0
    for name in ("covariance_2", "rows"):
        np.testing.assert_array_equal(after[name], before[name])
