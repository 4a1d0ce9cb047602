"""Scores one shard: reads it from its source in chunks of time, fits its seasons, runs the pipeline.

This is the whole of what a worker does, and the very code that runs where there is no cluster.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import pandas as pd
import structlog
from threadpoolctl import threadpool_limits

from analysis.detection.backtest import LabelledFault, SeasonPlan, replay
from analysis.detection.contract import Detections
from analysis.detection.fleet.build import Build, BuildMismatchError, this_build
from analysis.detection.fleet.frame_reader import FrameReader
from analysis.detection.fleet.results import ShardFailure, ShardResult, Spent
from analysis.detection.fleet.settings import FleetSettings
from analysis.detection.fleet.shards import Shard, ShardSource, TellsNotes
from analysis.detection.fleet.summaries import ScoreBook
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.replaying.alarms import AlarmRecorder
from analysis.detection.replaying.ticks import TickRows
from analysis.detection.seasonal_fit import SeasonalShape
from analysis.detection.seasonal_history import fit_shapes
from analysis.detection.settings import DetectionSettings
from analysis.detection.states import States, TickArrays
from collectors.backoff import Backoff
from collectors.contract import CollectorError, SeriesKey
from collectors.store.contract import SeriesReader, StoreError

log = structlog.get_logger(__name__)

_ERROR_CHARACTERS = 500
_FITTING_SHARE = 0.3
"""Of the progress of a shard that has something to train on; a guess that only moves a bar."""


@dataclass(frozen=True, slots=True)
class Window:
    """What is scored: ticks at each step in ``start <= time < end``."""

    start_seconds: float
    end_seconds: float
    step_seconds: float
    train_seconds: float = 0.0
    """How long before the first tick seasons are learned from."""
    warmup_seconds: float = 0.0
    """How long before the start ticks run, so that the start finds baselines; they do not count."""

    @property
    def first_seconds(self) -> float:
        """Where the first tick begins, warm-up included."""
        return self.start_seconds - self.warmup_seconds

    @property
    def ticks(self) -> int:
        """How many steps there are, warm-up included."""
        return max(1, round((self.end_seconds - self.first_seconds) / self.step_seconds))


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What a backtest wants to know beside scores."""

    labels: tuple[LabelledFault, ...] = ()
    seasons: SeasonPlan | None = None
    warmup_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard and how to score it: names, queries and settings; no data, no secret."""

    run: str
    shard: Shard
    source: ShardSource
    window: Window
    detection: DetectionSettings
    fleet: FleetSettings
    build: Build
    replay: ReplayPlan | None = None
    """Replay it as a backtest does, instead of summing up scores."""


class ShardStoppedError(Exception):
    """Somebody does not want the result any more."""


class ShardTimeoutError(Exception):
    """A shard took longer than it may."""


def score_shard(
    task: ShardTask,
    *,
    tell: Callable[[float], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> ShardResult | ShardFailure:
    """Score one shard; whatever goes wrong with it is its result.

    Args:
        task: what to do.
        tell: told the done share, 0 to 1, now and then.
        stopped: whether to give up; looked at between ticks.
    """
    try:
        # One thread: the order of sums, and with it the last bit, must not hang on the machine's cores.
        with threadpool_limits(1):
            return _Scoring(task, tell, stopped).run()
    except BuildMismatchError as error:
        return _failure(task, str(error), "install the same release of Galen on every worker")
    except (StoreError, CollectorError) as error:
        return _failure(task, str(error), getattr(error, "fix", ""))
    except ShardTimeoutError as error:
        return _failure(task, str(error), "raise analysis.fleet.shard_deadline_seconds, or lower "
                        "shard_series")  # fmt: skip
    except ShardStoppedError:
        return _failure(task, "stopped", "")
    # Poisoned data and faults of our own must cost this shard only; the log has the trace.
    except Exception as error:
        log.exception("shard_failed", shard=task.shard.name)
        return _failure(task, f"{type(error).__name__}: {error}", "the worker's log has the trace")


def worker_name() -> str:
    """Name this process: host and process number."""
    return f"{platform.node()}:{os.getpid()}"


def _failure(task: ShardTask, error: str, fix: str) -> ShardFailure:
    return ShardFailure(
        task.shard.number, task.shard.entities, error[:_ERROR_CHARACTERS], fix, worker_name()
    )


def _arrays(detections: Detections) -> TickArrays:
    if not isinstance(detections.states, States):
        raise TypeError("a tick's states must be those of the pipeline")
    return detections.states.arrays


class _Clock:
    """Adds up where time goes."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.busy: dict[str, float] = {}

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        wall, busy = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.wall[stage] = self.wall.get(stage, 0.0) + time.perf_counter() - wall
            self.busy[stage] = self.busy.get(stage, 0.0) + time.thread_time() - busy

    def spent(self) -> Spent:
        return Spent(
            reading=self.wall.get("reading", 0.0),
            reading_busy=self.busy.get("reading", 0.0),
            fitting=self.wall.get("fitting", 0.0),
            scoring=self.wall.get("scoring", 0.0),
        )


class _Scoring:
    def __init__(
        self, task: ShardTask, tell: Callable[[float], None], stopped: Callable[[], bool]
    ) -> None:
        self._task = task
        self._tell = tell
        self._stopped = stopped
        self._clock = _Clock()
        self._deadline = time.monotonic() + task.fleet.shard_deadline_seconds
        self._before = _FITTING_SHARE if task.window.train_seconds else 0.0

    def run(self) -> ShardResult:
        task = self._task
        task.build.check(this_build(), worker_name())
        self._tell(0.0)
        with closing(task.source.open()) as reader:
            plan = task.replay
            found = self._score(reader) if plan is None else self._replay(reader, plan)
            notes = reader.take_notes() if isinstance(reader, TellsNotes) else ()
            return replace(found, notes=tuple(notes))

    def _score(self, reader: SeriesReader) -> ShardResult:
        task, window = self._task, self._task.window
        shapes = self._fit(reader)
        rows = TickRows(window.first_seconds, step_seconds=window.step_seconds, steady=True)
        pipeline = DetectionPipeline(task.detection, rows, executor=SameThreadExecutor())
        pipeline.adopt_shapes(shapes)
        book, recorder = ScoreBook(window.start_seconds), AlarmRecorder()
        for last, frame in self._chunks(reader):
            with self._clock.on("scoring"):
                for now, row in rows.take(frame, last):
                    self._check(now)
                    names = pipeline.keys
                    detections = pipeline.tick(now, row)
                    recorder.take(detections)
                    # A tick is told in the columns before series were retired at its end.
                    retired = names is not pipeline.keys
                    book.take(now, row, _arrays(detections), names if retired else pipeline.keys)
        return ShardResult(
            number=task.shard.number,
            series=book.summaries(rows.keys, pipeline.realised_tail_rate),
            alarms=tuple(
                alarm for alarm in recorder.alarms() if alarm.raised_seconds >= window.start_seconds
            ),
            ticks=book.ticks,
            shapes=len(shapes),
            spent=self._clock.spent(),
            worker=worker_name(),
        )

    def _replay(self, reader: SeriesReader, plan: ReplayPlan) -> ShardResult:
        window, samples = self._task.window, 0

        def chunks() -> Iterator[tuple[float, pd.DataFrame]]:
            nonlocal samples
            for last, frame in self._chunks(reader):
                samples += len(frame)
                yield last, frame

        replayed = None
        began = time.perf_counter()
        try:
            replayed = replay(
                chunks(),
                self._task.detection,
                window.first_seconds,
                labels=plan.labels,
                tick_seconds=window.step_seconds,
                steady=True,
                seasons=plan.seasons,
                warmup_seconds=plan.warmup_seconds,
                progress=self._check,
            )
        except ValueError:
            # What is listed may have no sample in the time, which is no fault of the shard.
            if samples:
                raise
        spent = self._clock.spent()
        scoring = time.perf_counter() - began - spent.reading
        return ShardResult(
            number=self._task.shard.number,
            series=(),
            alarms=(),
            ticks=0 if replayed is None else replayed.ticks,
            shapes=0,
            spent=replace(spent, scoring=scoring),
            worker=worker_name(),
            replayed=replayed,
        )

    def _chunks(self, reader: SeriesReader) -> Iterator[tuple[float, pd.DataFrame]]:
        """Yield the end of one part of the window after the other, and what it holds."""
        task = self._task
        for first, last in _parts(task.window, task.shard.series, task.fleet.chunk_samples):
            yield last, self._read(reader, first, last, task.shard.entities)

    def _fit(self, reader: SeriesReader) -> dict[SeriesKey, SeasonalShape]:
        """Fit seasons on what was before the window, some entities at a time to bound the memory."""
        window, shard = self._task.window, self._task.shard
        if window.train_seconds <= 0:
            return {}
        start, end = window.first_seconds - window.train_seconds, window.first_seconds
        points = window.train_seconds / window.step_seconds * shard.series / len(shard.entities)
        batch = max(1, int(self._task.fleet.chunk_samples / max(points, 1.0)))
        shapes: dict[SeriesKey, SeasonalShape] = {}
        for first in range(0, len(shard.entities), batch):
            self._say(self._before * first / len(shard.entities))
            frame = self._read(reader, start, end, shard.entities[first : first + batch])
            with self._clock.on("fitting"):
                shapes |= fit_shapes(
                    FrameReader(frame), start, end, zone=self._task.detection.baseline.timezone
                )
        return shapes

    def _read(
        self, reader: SeriesReader, start: float, end: float, entities: Sequence[str]
    ) -> pd.DataFrame:
        """Read samples; a server that fails is asked again after a pause."""
        backoff = Backoff(0.5, 30.0)
        while True:
            try:
                with self._clock.on("reading"):
                    return reader.read(start_seconds=start, end_seconds=end, entities=entities)
            except StoreError as error:
                cause = error.__cause__
                if not (isinstance(cause, CollectorError) and cause.retryable):
                    raise
                pause = backoff.failed(getattr(cause, "retry_after_seconds", None))
                if backoff.failures >= self._task.fleet.read_attempts:
                    raise
                log.warning("shard_read_again", shard=self._task.shard.name, reason=str(error))
                self._wait(pause)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        pause = threading.Event()
        while (left := until - time.monotonic()) > 0:
            self._say(None)
            pause.wait(min(left, 0.5))

    def _check(self, now: float) -> None:
        window = self._task.window
        done = (now - window.first_seconds) / (window.end_seconds - window.first_seconds)
        self._say(self._before + (1.0 - self._before) * min(1.0, done))

    def _say(self, share: float | None) -> None:
        """Tell how far the work is, and end it where it may not go on."""
        if self._stopped():
            raise ShardStoppedError
        if time.monotonic() > self._deadline:
            raise ShardTimeoutError(
                f"not done within {self._task.fleet.shard_deadline_seconds:g} s"
            )
        if share is not None:
            self._tell(share)


def _parts(window: Window, series: int, samples: int) -> Iterator[tuple[float, float]]:
    """Divide a window into whole steps, so that each part has about as many samples as may be."""
    steps = max(1, int(samples / max(series, 1)))
    for first in range(0, window.ticks, steps):
        last = min(first + steps, window.ticks)
        yield (
            window.first_seconds + first * window.step_seconds,
            window.first_seconds + last * window.step_seconds,
        )
