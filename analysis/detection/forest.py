"""An isolation forest for each entity, fitted beside the ticks and evaluated for all entities at once.

Fitting is scikit-learn's IsolationForest (Liu, Ting and Zhou, ICDM 2008) on recent normal rows, in an
executor that is given; a tick only ever submits a fit and takes a finished one. Scoring does not call
scikit-learn, which spends milliseconds a call whatever the number of rows: the fitted trees of all
entities lie in one array and all rows go down all trees together.

Direction: both. Warm-up: :attr:`ForestSettings.first_rows` rows. It is a vote and raises nothing
alone: it takes every load state that it has not seen for strange.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from analysis.detection.calibration import TailTracker
from analysis.detection.contract import FloatArray, Realised, Scores
from analysis.detection.entity_blocks import EntityBlocks
from analysis.detection.settings import ForestSettings
from collectors.contract import SeriesKey

_log = structlog.get_logger(__name__)

_SAMPLES = 128
"""Rows of one tree. The paper finds no gain beyond 256; 128 halves memory and a level of depth."""
_NODES = 2 * _SAMPLES - 1
_DEPTH = 7
"""ceil(log2(samples)), the depth at which scikit-learn stops."""
_EULER_GAMMA = 0.5772156649015329
_LEAST_WIDTH = 0.05
_ROOMS = ("feature", "threshold", "left", "right", "length")


class SameThreadExecutor(Executor):
    """Runs at once what is submitted; for replays, where a fit may take its time."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the call and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - a future carries whatever its call raised
            future.set_exception(error)
        return future


@dataclass(frozen=True)
class PackedForest:
    """The trees of one forest as arrays ``[trees, nodes]``; a leaf has feature -1."""

    feature: NDArray[np.int16]
    threshold: FloatArray
    left: NDArray[np.int16]
    right: NDArray[np.int16]
    length: FloatArray
    """Path length of a leaf, the expected rest for the rows that share it included."""
    centre: float
    """Median score of the rows that it was fitted on."""
    width: float
    """Distance from there to their 99th percentile."""


def mean_path_length(samples: float) -> float:
    """Return the mean depth of a binary search tree, which normalises path lengths."""
    if samples <= 2:
        return float(max(samples - 1, 0))
    return float(2.0 * (np.log(samples - 1.0) + _EULER_GAMMA) - 2.0 * (samples - 1.0) / samples)


def fit_forest(rows: FloatArray, *, trees: int, seed: int) -> PackedForest:
    """Fit a forest on rows ``[rows, series]`` without NaN and pack it."""
    model = IsolationForest(
        n_estimators=trees, max_samples=min(_SAMPLES, len(rows)), random_state=seed, n_jobs=1
    ).fit(rows)
    packed: dict[str, NDArray[Any]] = {
        "feature": np.full((trees, _NODES), -1, dtype=np.int16),
        "threshold": np.zeros((trees, _NODES)),
        "left": np.zeros((trees, _NODES), dtype=np.int16),
        "right": np.zeros((trees, _NODES), dtype=np.int16),
        "length": np.zeros((trees, _NODES)),
    }
    for number, tree in enumerate(model.estimators_):
        inner, nodes = tree.tree_, tree.tree_.node_count
        split = inner.children_left >= 0
        packed["feature"][number, :nodes] = np.where(split, inner.feature, -1)
        packed["threshold"][number, :nodes] = inner.threshold
        packed["left"][number, :nodes] = inner.children_left
        packed["right"][number, :nodes] = inner.children_right
        rest = np.array([mean_path_length(float(n)) for n in inner.n_node_samples])
        packed["length"][number, :nodes] = inner.compute_node_depths() - 1.0 + rest
    # The trees hold max_samples rows, which may be fewer than _SAMPLES: scale to the full length.
    scale = mean_path_length(_SAMPLES) / max(mean_path_length(min(_SAMPLES, len(rows))), 1e-9)
    packed["length"] *= scale
    scores = -model.score_samples(rows)
    centre = float(np.median(scores))
    return PackedForest(**packed, centre=centre, width=float(np.quantile(scores, 0.99)) - centre)


class ForestVote:
    """Scores each entity's row and hands the score to the series that stand out in it."""

    name = "forest"

    def __init__(self, settings: ForestSettings, executor: Executor, *, largest: int = 64) -> None:
        self._settings = settings
        self._executor = executor
        self._blocks = EntityBlocks(memory_seconds=300.0, memory_values=120.0, largest=largest)
        self._tail = TailTracker(settings.tail_rate)
        self._kept = np.full((settings.rows, 0, 0), np.nan, dtype=np.float32)
        self._trees: dict[str, NDArray[Any]] = {
            name: np.zeros((0, settings.trees, _NODES), dtype=kind)
            for name, kind in zip(_ROOMS, (np.int16, float, np.int16, np.int16, float), strict=True)
        }
        # One row an entity: fitted, centre, width, seconds of the last fit, rows kept, features.
        self._about = np.zeros((0, 6))
        self._last_row_seconds = -np.inf
        self._next_row = 0
        self._ticks = 0
        self._pending: dict[int, tuple[int, FloatArray, Future[PackedForest]]] = {}

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for new series. A forest knows only the series that it was fitted on."""
        before = self._blocks.entities
        self._blocks.grow(keys)
        entities, width = self._blocks.entities, self._blocks.width
        added = entities - before
        self._tail.grow(added)
        kept = np.full((self._settings.rows, entities, width), np.nan, dtype=np.float32)
        kept[:, : self._kept.shape[1], : self._kept.shape[2]] = self._kept
        self._kept = kept
        self._about = np.vstack((self._about, np.zeros((added, 6))))
        for name, array in self._trees.items():
            room = np.zeros((added, *array.shape[1:]), dtype=array.dtype)
            self._trees[name] = np.concatenate((array, room))

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:
        """Score one tick, keep its row where it is normal, start and take over fits."""
        blocks = self._blocks
        nothing = np.full(len(values), np.nan)
        if not blocks.entities or not blocks.width:
            return Scores(nothing, nothing, nothing, nothing)
        self._take_over()
        z = blocks.to_blocks(blocks.standardise(values))
        fitted = self._about[:, 0] > 0
        raw = np.full(blocks.entities, np.nan)
        if fitted.any():
            about = self._about[fitted]
            isolation = self._isolation(z, np.flatnonzero(fitted))
            raw[fitted] = (isolation - about[:, 1]) / (1.5 * np.maximum(about[:, 2], _LEAST_WIDTH))
        raw = np.maximum(raw, 0.0)
        share = z**2 / np.maximum((z**2).max(axis=1, keepdims=True), 1e-12)
        score = blocks.to_series((raw / self._tail.limit)[:, None] * share)
        result = Scores(score, blocks.mean, nothing, nothing)
        entity_learn = blocks.learning(learn)
        self._tail.update(raw, entity_learn)
        self._keep(time_seconds, z, entity_learn)
        blocks.learn(time_seconds, values, learn)
        self._start_fits(time_seconds)
        self._ticks += 1
        return result

    def _isolation(self, z: FloatArray, chosen: NDArray[np.int64]) -> FloatArray:
        """Send the rows ``[entities, slots]`` of the chosen entities down their trees."""
        count = self._settings.trees
        base = (chosen[:, None] * count + np.arange(count)) * _NODES
        node = np.zeros_like(base)
        feature, threshold = self._trees["feature"].ravel(), self._trees["threshold"].ravel()
        left, right = self._trees["left"].ravel(), self._trees["right"].ravel()
        row = chosen[:, None]
        exact = z.astype(np.float32)
        for _ in range(_DEPTH):
            place = base + node
            split_on = feature[place]
            goes_left = exact[row, split_on] <= threshold[place]
            below = np.where(goes_left, left[place], right[place])
            node = np.where(split_on >= 0, below, node)
        depth = self._trees["length"].ravel()[base + node].mean(axis=1)
        return np.asarray(2.0 ** (-depth / mean_path_length(_SAMPLES)))

    def _keep(self, time_seconds: float, z: FloatArray, learn: NDArray[np.bool_]) -> None:
        if time_seconds - self._last_row_seconds < self._settings.row_seconds - 1e-6:
            return
        # A row that may not be learned from leaves the one before it in place.
        self._kept[self._next_row, learn] = z[learn]
        self._about[learn, 4] = np.minimum(self._about[learn, 4] + 1, self._settings.rows)
        self._next_row = (self._next_row + 1) % self._settings.rows
        self._last_row_seconds = time_seconds

    def _start_fits(self, time_seconds: float) -> None:
        """Submit the fit of the one entity that has waited longest, if one is due."""
        about, own = self._about, self._settings
        due = (about[:, 4] >= own.first_rows) & (self._blocks.sizes >= 2)
        due &= (about[:, 0] == 0) | (time_seconds - about[:, 3] >= own.refit_seconds)
        due[list(self._pending)] = False
        if not due.any():
            return
        entity = int(np.argmin(np.where(due, about[:, 3], np.inf)))
        self._about[entity, 3] = time_seconds
        size = int(self._blocks.sizes[entity])
        rows = self._kept[:, entity, :size]
        rows = np.nan_to_num(rows[np.isfinite(rows).any(axis=1)])
        if not rows.any():
            return  # nothing has ever moved: a forest would have no split
        self._submit(entity, self._ticks, np.asarray(rows, dtype=float))

    def _submit(self, entity: int, tick: int, rows: FloatArray) -> None:
        seed = self._settings.seed + entity
        future = self._executor.submit(fit_forest, rows, trees=self._settings.trees, seed=seed)
        self._pending[entity] = (tick, rows, future)

    def _take_over(self) -> None:
        """Put finished fits to use, never before the hand-over tick, so that a replay does the same."""
        for entity, (tick, rows, future) in list(self._pending.items()):
            if self._ticks - tick < self._settings.handover_ticks or not future.done():
                continue
            del self._pending[entity]
            error = future.exception()
            if error is not None:
                _log.warning("forest_fit_failed", entity=entity, rows=len(rows), error=repr(error))
                continue
            forest = future.result()
            for name in _ROOMS:
                self._trees[name][entity] = getattr(forest, name)
            self._about[entity, :3] = 1.0, forest.centre, forest.width
            self._about[entity, 5] = rows.shape[1]

    def realised(self) -> Realised:
        """Return how often rows of normal values scored above 1."""
        return self._tail.realised.summary(self.name, self._blocks.names)

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart, the rows of unfinished fits included."""
        pending = {
            f"pending_{entity}_{tick}": rows for entity, (tick, rows, _) in self._pending.items()
        }
        return {
            **self._blocks.state(),
            **self._tail.state(),
            **{f"tree_{name}": array.copy() for name, array in self._trees.items()},
            **pending,
            "kept": self._kept.copy(),
            "about": self._about.copy(),
            "clock": np.array([self._last_row_seconds, self._next_row, self._ticks]),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state of the same series; unfinished fits start again on the same rows."""
        own: dict[str, NDArray[Any]] = {
            "kept": self._kept,
            "about": self._about,
            "clock": np.empty(3),
        }
        own.update({f"tree_{name}": array for name, array in self._trees.items()})
        for name, array in own.items():
            if name not in state or state[name].shape != array.shape:
                raise ValueError(f"the array {name!r} of the state is missing or has another shape")
        self._blocks.check(state)
        self._tail.restore(state)
        self._blocks.restore(state)
        self._kept = np.array(state["kept"], dtype=np.float32)
        self._about = np.array(state["about"], dtype=float)
        for name, array in self._trees.items():
            array[:] = state[f"tree_{name}"]
        clock = np.asarray(state["clock"], dtype=float)
        self._last_row_seconds = float(clock[0])
        self._next_row, self._ticks = int(clock[1]), int(clock[2])
        self._pending = {}
        for name, rows in state.items():
            if name.startswith("pending_"):
                entity, tick = (int(part) for part in name.split("_")[1:])
                self._submit(entity, tick, np.asarray(rows, dtype=float))
