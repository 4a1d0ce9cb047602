"""An isolation forest for each entity, fitted beside the ticks and evaluated for all entities at once.

Fitting grows the trees of scikit-learn's IsolationForest (Liu, Ting and Zhou, ICDM 2008) on recent
normal rows, in an executor that is given; a tick only ever submits fits and takes finished ones. Scoring
does not call scikit-learn, which spends milliseconds a call whatever the number of rows: the trees of
all entities lie in one array (:mod:`analysis.detection.packed_forest`) and rows go down all at once.

Direction: both. Warm-up: :attr:`ForestSettings.first_rows` rows. It is a vote and raises nothing
alone: it takes every load state that it has not seen for strange.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any
from zlib import crc32

import numpy as np
import structlog
from numpy.typing import NDArray

from analysis.detection.calibration import TailTracker
from analysis.detection.contract import FloatArray, Realised, Scores
from analysis.detection.entity_blocks import EntityBlocks
from analysis.detection.entity_layout import Move
from analysis.detection.packed_forest import Grove, PackedForest, fit_forest
from analysis.detection.settings import ForestSettings
from collectors.contract import SeriesKey

_log = structlog.get_logger(__name__)

_LEAST_WIDTH = 0.05
_MOST_FITS_A_TICK = 16
_MOST_PENDING = 64
"""Fits that wait at a time: each holds its rows."""
_ABOUT = _FITTED, _CENTRE, _WIDTH, _SINCE, _ROWS = range(5)
"""What is known of each entity: whether it has a forest, the median score of the rows that it was
fitted on and the distance from there to their 99th percentile, when that was, and rows kept."""


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


class ForestVote:
    """Scores each entity's row and hands the score to the series that stand out in it."""

    name = "forest"

    def __init__(self, settings: ForestSettings, executor: Executor, *, largest: int = 64) -> None:
        self._settings = settings
        self._executor = executor
        self._blocks = EntityBlocks(memory_seconds=300.0, memory_values=120.0, largest=largest)
        self._tail = TailTracker(settings.tail_rate)
        self._grove = Grove(settings.trees)
        # Recent normal rows of all entities side by side, [rows, members], a ring.
        self._kept = np.full((settings.rows, 0), np.nan, dtype=np.float32)
        self._about = np.zeros((0, len(_ABOUT)))
        self._last_row_seconds = -np.inf
        self._last_tick_seconds = -np.inf
        self._next_row = 0
        self._ticks = 0
        self._pending: dict[int, tuple[int, FloatArray, Future[PackedForest]]] = {}

    @property
    def fitted(self) -> int:
        """How many entities have a forest."""
        return int((self._about[:, _FITTED] > 0).sum())

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for new series. A forest knows only the series that it was fitted on."""
        self._settle(self._blocks.grow(keys))

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false; an entity that loses one is fitted anew."""
        self._settle(self._blocks.keep(kept))

    def _settle(self, move: Move) -> None:
        """Bring what is kept into the layout after a change."""
        self._tail.move(move.entity_from)
        same = np.flatnonzero(move.slots_stayed)
        self._about = move.rows(self._about)
        self._about[~move.slots_stayed, _FITTED] = 0.0
        self._grove.move(np.where(move.slots_stayed, move.entity_from, -1))
        kept = np.full((len(self._kept), len(move.after.columns)), np.nan, dtype=np.float32)
        known = move.came_from >= 0
        kept[:, known] = self._kept[:, move.came_from[known]]
        self._kept = kept
        now_at = {int(move.entity_from[entity]): int(entity) for entity in same}
        self._pending = {
            now_at[entity]: fit for entity, fit in self._pending.items() if entity in now_at
        }

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:
        """Score one tick, keep its row where it is normal, start and take over fits."""
        layout, nothing = self._blocks.layout, np.full(len(values), np.nan)
        if not len(layout.columns):
            return Scores(nothing, nothing, nothing, nothing)
        self._take_over()
        position = self._blocks.position(values)
        z = self._blocks.standardise(position)
        raw = self._raw_score(z)
        most = np.maximum(layout.highest(z**2), 1e-12)
        share = z**2 / most[layout.entity_of]
        score = (raw / self._tail.limit)[layout.entity_of] * share
        result = Scores(layout.to_series(score, len(values)), nothing, nothing, nothing)
        entity_learn = self._blocks.learning(learn)
        self._tail.update(raw, entity_learn)
        self._keep(time_seconds, z, entity_learn)
        self._blocks.learn(time_seconds, position, learn)
        self._start_fits(time_seconds)
        self._ticks += 1
        return result

    def _raw_score(self, z: FloatArray) -> FloatArray:
        """Return the score of each entity before calibration, NaN where it has no forest."""
        raw = np.full(len(self._about), np.nan)
        fitted = np.flatnonzero(self._about[:, _FITTED] > 0)
        if fitted.size:
            isolation = self._grove.isolation(z, self._blocks.layout.starts, fitted)
            centre, width = self._about[fitted, _CENTRE], self._about[fitted, _WIDTH]
            above = (isolation - centre) / (1.5 * np.maximum(width, _LEAST_WIDTH))
            raw[fitted] = np.maximum(above, 0.0)
        return raw

    def _keep(self, time_seconds: float, z: FloatArray, learn: NDArray[np.bool_]) -> None:
        if time_seconds - self._last_row_seconds < self._settings.row_seconds - 1e-6:
            return
        # A row that may not be learned from leaves the one before it in place.
        taken = learn[self._blocks.layout.entity_of]
        self._kept[self._next_row, taken] = z[taken]
        rows = self._about[:, _ROWS]
        rows[learn] = np.minimum(rows[learn] + 1, self._settings.rows)
        self._next_row = (self._next_row + 1) % self._settings.rows
        self._last_row_seconds = time_seconds

    def _start_fits(self, time_seconds: float) -> None:
        """Submit the fits of those that have waited longest, one for each second that has passed."""
        about, own, layout = self._about, self._settings, self._blocks.layout
        passed = time_seconds - self._last_tick_seconds
        self._last_tick_seconds = time_seconds
        due = (about[:, _ROWS] >= own.first_rows) & (layout.sizes >= 2)
        # At slow cadences fits on hardly another row would be most of what detection costs.
        pause = max(own.refit_seconds, own.first_rows * max(own.row_seconds, passed))
        due &= (about[:, _FITTED] == 0) | (time_seconds - about[:, _SINCE] >= pause)
        due[list(self._pending)] = False
        waiting = np.flatnonzero(due)
        if not waiting.size:
            return
        allowed = int(np.clip(np.nan_to_num(passed), 1, _MOST_FITS_A_TICK))
        allowed = min(allowed, _MOST_PENDING - len(self._pending))
        first = np.argsort(about[waiting, _SINCE], kind="stable")[: max(allowed, 0)]
        for entity in waiting[first].tolist():
            about[entity, _SINCE] = time_seconds
            self._start_fit(entity)

    def _start_fit(self, entity: int) -> None:
        layout = self._blocks.layout
        start, size = int(layout.starts[entity]), int(layout.sizes[entity])
        rows = self._kept[:, start : start + size]
        rows = np.nan_to_num(rows[np.isfinite(rows).any(axis=1)])
        if rows.any():  # where nothing has ever moved a forest would have no split
            self._submit(entity, self._ticks, np.asarray(rows, dtype=float))

    def _submit(self, entity: int, tick: int, rows: FloatArray) -> None:
        # By the name, so that the trees of an entity do not depend on which others are watched.
        seed = (self._settings.seed + crc32(self._blocks.names[entity][0].encode())) % 2**32
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
            self._grove.plant(entity, forest)
            self._about[entity, [_FITTED, _CENTRE, _WIDTH]] = 1.0, forest.centre, forest.width

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
            **self._grove.state(),
            **pending,
            "kept": self._kept.copy(),
            "about": self._about.copy(),
            "clock": np.array(
                [self._last_row_seconds, self._next_row, self._ticks, self._last_tick_seconds]
            ),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state of the same series; unfinished fits start again on the same rows."""
        own: dict[str, NDArray[Any]] = {
            "kept": self._kept,
            "about": self._about,
            "clock": np.empty(4),
        }
        for name, array in own.items():
            if name not in state or state[name].shape != array.shape:
                raise ValueError(f"the array {name!r} of the state is missing or has another shape")
        self._blocks.check(state)
        self._tail.check(state)
        self._grove.restore(state)
        self._tail.restore(state)
        self._blocks.restore(state)
        self._kept = np.array(state["kept"], dtype=np.float32)
        self._about = np.array(state["about"], dtype=float)
        clock = np.asarray(state["clock"], dtype=float)
        self._last_row_seconds = float(clock[0])
        self._next_row, self._ticks = int(clock[1]), int(clock[2])
        self._last_tick_seconds = float(clock[3])
        self._pending = {}
        for name, rows in state.items():
            if name.startswith("pending_"):
                entity, tick = (int(part) for part in name.split("_")[1:])
                self._submit(entity, tick, np.asarray(rows, dtype=float))
