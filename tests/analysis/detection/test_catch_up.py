"""After a sudden end detection is where it was, to the last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from analysis.detection.catch_up import catch_up
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.history import History
from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore

START = 1_700_000_000.0
LOOP = "collector/watch"
SERVICE = "service/llm"
TICKS = 260
SAVE_EVERY = 37
SETTINGS = DetectionSettings.model_validate(
    {"forest": {"first_rows": 16, "rows": 32, "trees": 5, "refit_seconds": 20}}
)


def samples_of(tick: int) -> list[Sample]:
    """What is measured at a tick: noise, a fault now and then, and what the loop says of itself."""
    now = START + tick
    random = np.random.default_rng(tick)
    latency = 0.3 * random.lognormal(0.0, 0.05) * (6.0 if tick % 90 in range(60, 70) else 1.0)
    return [
        Sample(now, SERVICE, "llm_request_latency_seconds", float(latency)),
        Sample(now, SERVICE, "llm_requests_per_second", float(20 + random.normal())),
        Sample(now, SERVICE, "engine_up", 1.0),
        Sample(now, LOOP, "scrape_success", 1.0),
    ]


class Life:
    """One life of a process that scores and stores until it ends."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "detection.npz"
        self.store = SqliteSeriesStore(folder / "series.sqlite")
        self.history = History(capacity_ticks=600)
        self.pipeline = DetectionPipeline(SETTINGS, self.history, executor=SameThreadExecutor())
        self.pipeline.load(self.state)
        reader = SqliteSeriesReader(folder / "series.sqlite")
        self.replayed = catch_up(
            self.pipeline, self.history, reader, tick_entity=LOOP, now_seconds=START + 1e6
            if self.pipeline.last_seconds is None else self.pipeline.last_seconds + 290.0,
        )  # fmt: skip
        reader.close()

    @property
    def next_tick(self) -> int:
        last = self.pipeline.last_seconds
        return 0 if last is None else int(last - START) + 1

    def tick(self, tick: int) -> str:
        samples = samples_of(tick)
        self.store.write(samples)
        found = self.pipeline.tick(START + tick, self.history.append(START + tick, samples))
        if tick % SAVE_EVERY == 0:
            self.pipeline.save(self.state)
        states = sorted(found.states.values(), key=lambda state: state.key)
        numbers = [number for one in states for number in (one.score, one.expected or 0.0)]
        return f"{tick} {[number.hex() for number in numbers]} {len(found.anomalies)}"


def live(folder: Path) -> None:
    """Run to the end, one line a tick; the process of the test below."""
    life = Life(folder)
    with (folder / "scores.txt").open("a") as out:
        for tick in range(life.next_tick, TICKS):
            out.write(life.tick(tick) + "\n")
            out.flush()


def start(folder: Path) -> subprocess.Popen[bytes]:
    code = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
    code += "import test_catch_up; test_catch_up.live(Path(sys.argv[2]))"
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(folder)], env=environment
    )


def lines(folder: Path) -> list[str]:
    path = folder / "scores.txt"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    life = Life(tmp_path_factory.mktemp("whole"))
    whole = [life.tick(tick) for tick in range(TICKS)]
    assert any(line.endswith(" 1") for line in whole)
    return {line.split()[0]: line for line in whole}


def test_a_process_that_is_killed_goes_on_bit_for_bit(
    tmp_path: Path, uninterrupted: dict[str, str]
) -> None:
    for wanted in (65, 170):  # in a fault, and between two saves
        process = start(tmp_path)
        try:
            end = time.monotonic() + 60
            while len(lines(tmp_path)) < wanted:
                assert process.poll() is None, "it ended by itself"
                assert time.monotonic() < end
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    process = start(tmp_path)
    assert process.wait(100) == 0
    found = lines(tmp_path)
    numbers = [line.split()[0] for line in found if line.endswith(("0", "1"))]
    assert len(numbers) >= TICKS - 2  # a tick that was stored and not yet told is replayed, unheard
    assert numbers == sorted(set(numbers), key=int)
    for line in found:
        assert line == uninterrupted[line.split()[0]]


def test_what_was_not_saved_is_replayed_and_no_more(tmp_path: Path) -> None:
    first = Life(tmp_path)
    for tick in range(100):
        first.tick(tick)
    first.store.close()
    second = Life(tmp_path)
    assert second.replayed == 99 - 74  # saved at 0, 37 and 74
    assert second.history.ticks == second.replayed
    assert second.next_tick == 100


def test_without_a_state_the_newest_minutes_are_replayed(tmp_path: Path) -> None:
    store = SqliteSeriesStore(tmp_path / "series.sqlite")
    for tick in range(400):
        store.write(samples_of(tick))
    store.close()
    history = History(capacity_ticks=600)
    pipeline = DetectionPipeline(SETTINGS, history, executor=SameThreadExecutor())
    reader = SqliteSeriesReader(tmp_path / "series.sqlite")
    now = START + 400
    count = catch_up(pipeline, history, reader, tick_entity=LOOP, now_seconds=now)
    assert count == 300
    assert catch_up(pipeline, history, reader, tick_entity=LOOP, now_seconds=now) == 0
    reader.close()
    states = pipeline.tick(now, history.append(now, samples_of(400))).states
    assert all(state.warmed_up for key, state in states.items() if key.entity == SERVICE)


def test_an_empty_store_has_nothing_to_replay(tmp_path: Path) -> None:
    SqliteSeriesStore(tmp_path / "series.sqlite").close()
    history = History(capacity_ticks=10)
    pipeline = DetectionPipeline(SETTINGS, history, executor=SameThreadExecutor())
    reader = SqliteSeriesReader(tmp_path / "series.sqlite")
    assert catch_up(pipeline, history, reader, tick_entity=LOOP, now_seconds=START) == 0
    reader.close()
