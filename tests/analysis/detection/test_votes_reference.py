"""The multivariate votes, which work on all entities at once, against plain code for one entity."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import ExtraTreeRegressor

from analysis.detection.forest import ForestVote, SameThreadExecutor
from analysis.detection.mahalanobis import MahalanobisVote
from analysis.detection.packed_forest import isolation_trees, mean_path_length
from analysis.detection.profiles import sensitivity_of
from analysis.detection.settings import CovarianceSettings, ForestSettings
from collectors.contract import SeriesKey

SIZES = {"host/a": 3, "service/b": 11, "host/c": 1, "service/d": 27}
KEYS = [SeriesKey(entity, f"s{n}") for n in range(27) for entity, size in SIZES.items() if n < size]
MEMORY_SECONDS, WARM, REFIT, TAIL_STEP = 300.0, 60, 30, 0.15
RELATIVE = sensitivity_of("s0").relative


def rows_of(ticks: int) -> NDArray[np.float64]:
    random = np.random.default_rng(5)
    load = 1 + 0.3 * np.sin(np.arange(ticks) / 25)[:, None]
    values = 100 * load * random.uniform(1, 3, len(KEYS)) + random.normal(0, 1, (ticks, len(KEYS)))
    values[ticks * 3 // 4 : ticks * 3 // 4 + 5, ::3] *= 1.3
    values[random.random(values.shape) < 0.03] = np.nan
    return values


class Standardised:
    """Exponentially weighted location and spread of one series in floats."""

    def __init__(self) -> None:
        self.mean = self.last = float("nan")
        self.variance, self.count, self.gap = 0.0, 0, 0.0

    def distance(self, value: float) -> float:
        if np.isnan(value) or np.isnan(self.mean):
            return 0.0
        # A signal in no catalogue: `unknown` in profiles.toml, compared as it is.
        floor = max(1e-9, RELATIVE * abs(self.mean)) / 4.5
        sigma = max(np.sqrt(self.variance), floor, 1e-12)
        return float(np.clip((value - self.mean) / sigma, -12, 12))

    def learn(self, now: float, value: float) -> float:
        if np.isnan(value):
            return 0.0
        if self.count == 0:
            self.mean = value
        elapsed = 0.0 if np.isnan(self.last) else now - self.last
        self.gap += 0.1 * (elapsed - self.gap)
        memory = max(MEMORY_SECONDS, 120 * self.gap)
        rate = max(min(1 - np.exp(-elapsed / memory), 0.2), 1 / (self.count + 1))
        error = value - self.mean
        self.mean += rate * error
        self.variance += rate * ((1 - rate) * error**2 - self.variance)
        self.count += 1
        self.last = now
        return float(rate)


def reference(values: NDArray[np.float64], turn: int) -> NDArray[np.float64]:
    """Return the leading score of one entity at each tick."""
    ticks, size = values.shape
    series = [Standardised() for _ in range(size)]
    covariance, precision = np.zeros((size, size)), np.eye(size)
    learned, fourth, effective, limit = 0, 0.0, 0.0, 1.0
    scores = []
    for tick in range(ticks):
        z = np.array([one.distance(v) for one, v in zip(series, values[tick], strict=True)])
        distance, square = max(z @ precision @ z, 1e-12), float(z @ z)
        raw = (distance / size * max(square, 1e-12) / size) ** 0.25 / 2.0
        share = 0.5 * (z * (precision @ z) / distance + z**2 / max(square, 1e-12))
        share = np.maximum(share, 0.0)
        known = learned >= WARM and size >= 2
        lead = share / max(share.max(), 1e-12)
        scores.append(raw / limit * lead if known else np.full(size, np.nan))
        if known:
            step = TAIL_STEP * ((raw > limit) - 0.01)
            limit = float(np.clip(limit * (1 + step), 1.0, 3.0))
        rate = max(one.learn(float(tick), v) for one, v in zip(series, values[tick], strict=True))
        covariance += rate * (np.outer(z, z) - covariance)
        if rate > 0:
            learned += 1
            effective = min(learned, 2 / rate - 1)
        fourth += rate * (square**2 - fourth)
        if (turn + tick + 1) % REFIT == 0:
            middle = np.trace(covariance) / size
            spread = max((covariance**2).sum() / size - middle**2, 1e-12)
            noise = max(fourth - (covariance**2).sum(), 0) / max(effective, 1) / size
            weight = float(np.clip(noise / spread, 0, 1))
            shrunk = (1 - weight) * covariance + (weight * middle + 0.01) * np.eye(size)
            precision = np.linalg.inv(shrunk)
    return np.array(scores)


def test_all_entities_at_once_score_as_each_alone_in_plain_code() -> None:
    values = rows_of(400)
    vote = MahalanobisVote(CovarianceSettings())
    vote.grow(KEYS)
    names = [name for name, _ in vote._blocks.names]
    turns = dict(zip(names, vote._turn.tolist(), strict=True))
    own = [
        vote.score(float(t), row, np.ones(len(KEYS), bool)).score for t, row in enumerate(values)
    ]
    for entity in SIZES:
        columns = [number for number, key in enumerate(KEYS) if key.entity == entity]
        expected = reference(values[:, columns], turns[entity])
        np.testing.assert_allclose(np.array(own)[:, columns], expected, rtol=1e-6, atol=1e-9)
    assert np.nanmax(own) > 1


def isolation(trees: list[ExtraTreeRegressor], row: NDArray[np.float32]) -> float:
    """Return the score of one row as the paper has it, from scikit-learn's own trees."""
    depths = []
    for tree in trees:
        steps = tree.decision_path(row[None]).sum() - 1
        rest = mean_path_length(float(tree.tree_.n_node_samples[tree.apply(row[None])[0]]))
        depths.append(steps + rest)
    return float(2.0 ** (-np.mean(depths) / mean_path_length(128)))


def test_the_forest_of_each_entity_scores_as_its_trees_do_one_by_one() -> None:
    values = rows_of(200)
    settings = ForestSettings(first_rows=128, rows=256, row_seconds=1, refit_seconds=80_000)
    fitted: dict[int, list[ExtraTreeRegressor]] = {}

    class AlsoFitting(SameThreadExecutor):
        """Fits what is asked for, and keeps the trees as scikit-learn has them."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            (rows,) = args
            fitted[rows.shape[1]] = isolation_trees(rows, **kwargs)
            return super().submit(fn, *args, **kwargs)

    vote = ForestVote(settings, AlsoFitting(), largest=128)
    vote.grow(KEYS)
    for tick, row in enumerate(values[:-1]):
        vote.score(float(tick), row, np.ones(len(KEYS), bool))
    assert set(fitted) == {3, 11, 27}
    layout = vote._blocks.layout
    z = vote._blocks.standardise(vote._blocks.position(values[-1]))
    entities = np.flatnonzero(vote._about[:, 0] > 0)
    scores = vote._grove.isolation(z, layout.starts, entities)
    for entity, own in zip(entities, scores, strict=True):
        row = z[layout.entity_of == entity].astype(np.float32)
        np.testing.assert_allclose(own, isolation(fitted[len(row)], row), rtol=1e-6)
