"""A made fleet, as a source that pickles, for tests of detection over a fleet."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analysis.detection.fleet.build import this_build
from analysis.detection.fleet.frame_reader import FrameReader
from analysis.detection.fleet.settings import FleetSettings
from analysis.detection.fleet.shards import plan_shards
from analysis.detection.fleet.task import ShardTask, Window
from analysis.detection.settings import DetectionSettings
from collectors.contract import SeriesKey
from collectors.store.contract import StoreError
from collectors.store.frames import sample_frame

START = 1_800_000_000.0
STEP = 15.0
SIGNALS = ("llm_request_latency_seconds", "llm_queue_depth", "llm_tokens_per_second")


def entities(services: int) -> list[str]:
    parts = ("", "/replica/0", "/replica/1")
    return [f"service/s{number}{part}" for number in range(services) for part in parts]


def keys(services: int) -> list[SeriesKey]:
    return [SeriesKey(entity, signal) for entity in entities(services) for signal in SIGNALS]


def table(services: int, ticks: int) -> pd.DataFrame:
    """Series that wander about a level; the first replica of each second service is slow at the end."""
    names = keys(services)
    values = np.empty((ticks, len(names)))
    for place in range(len(names)):
        random = np.random.default_rng(place)
        wave = 3 * np.sin(np.arange(ticks) / 40 + place)
        values[:, place] = 60 + wave + random.normal(0, 0.5, ticks)
    for number in range(0, services, 2):
        values[-40:, 9 * number + 3] *= 10.0
    numbers = np.tile(np.arange(len(names)), ticks)
    times = np.repeat(START + STEP * np.arange(ticks), len(names))
    return sample_frame(numbers, times, values.ravel(), dict(enumerate(names)))


@dataclass(frozen=True)
class MadeSource:
    """Makes its samples wherever it is opened; troubles are told by the entities that meet them."""

    services: int
    ticks: int
    refused: frozenset[str] = frozenset()
    poisoned: frozenset[str] = frozenset()
    deadly: str = ""
    """Entity whose first reader is killed like by the kernel, where ``once`` does not exist yet."""
    once: Path = field(default=Path("/nonexistent"))

    def open(self) -> MadeReader:
        return MadeReader(self)


class MadeReader(FrameReader):
    def __init__(self, source: MadeSource) -> None:
        super().__init__(table(source.services, source.ticks))
        self._source = source

    def read(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        source, wanted = self._source, set(entities or ())
        if wanted & source.refused:
            raise StoreError("the server refused: bad query")
        if source.deadly in wanted and start_seconds > START and not source.once.exists():
            source.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        frame = super().read(
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            entities=entities,
            signals=signals,
        )
        if wanted & source.poisoned:
            return frame.astype({"value": "string"}).assign(value="no number")
        return frame


def tasks(
    source: MadeSource,
    *,
    shard_series: int = 18,
    detection: DetectionSettings | None = None,
    window: Window | None = None,
    **fleet: float,
) -> Sequence[ShardTask]:
    settings = FleetSettings.model_validate({"chunk_samples": 1000, **fleet})
    return [
        ShardTask(
            "run",
            shard,
            source,
            window or Window(START, START + STEP * source.ticks, STEP),
            detection or DetectionSettings(),
            settings,
            this_build(),
        )
        for shard in plan_shards(keys(source.services), shard_series)
    ]


@pytest.fixture(scope="session")
def fleet() -> SimpleNamespace:
    """The made fleet: sources, tasks, and what they are made of."""
    return SimpleNamespace(
        Source=MadeSource, tasks=tasks, keys=keys, entities=entities, START=START, STEP=STEP
    )
