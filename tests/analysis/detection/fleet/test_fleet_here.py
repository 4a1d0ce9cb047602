from __future__ import annotations

import pickle
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.detection.backtest import LabelledFault, joined, judged, replay
from analysis.detection.fleet import task as task_module
from analysis.detection.fleet.build import Build, this_build
from analysis.detection.fleet.here import run_here
from analysis.detection.fleet.results import FleetResult, ShardFailure
from analysis.detection.fleet.settings import FleetSettings
from analysis.detection.fleet.shards import plan_shards
from analysis.detection.fleet.task import ReplayPlan, Window, score_shard
from analysis.detection.settings import DetectionSettings
from analysis.detection.together import together_of
from collectors.contract import CollectorError, SeriesKey
from collectors.store.contract import StoreError

TICKS = 200


def summaries(result: FleetResult) -> dict[SeriesKey, Any]:
    return {one.key: repr(one) for one in result.series()}


@pytest.fixture(scope="module")
def plain(fleet: SimpleNamespace) -> FleetResult:
    return run_here(fleet.tasks(fleet.Source(4, TICKS)))


def test_a_shard_keeps_together_what_is_compared_and_depends_on_names_alone(
    fleet: SimpleNamespace,
) -> None:
    keys = fleet.keys(7)
    shards = plan_shards(keys, 20)
    assert [shard.series for shard in shards] == [18, 18, 18, 9]
    assert sorted(entity for shard in shards for entity in shard.entities) == sorted(
        fleet.entities(7)
    )
    homes = [{together_of(entity) for entity in shard.entities} for shard in shards]
    assert sum(len(some) for some in homes) == len(set().union(*homes)) == 7
    assert plan_shards(reversed(keys), 20) == shards
    # More than a shard may have stays whole where it belongs together.
    assert [shard.series for shard in plan_shards(keys, 1)] == [9] * 7
    assert plan_shards([], 20) == []


def test_it_finds_what_is_wrong_and_sums_up_every_series(
    fleet: SimpleNamespace, plain: FleetResult
) -> None:
    assert not plain.failed
    assert (plain.ticks, len(list(plain.series()))) == (TICKS, 36)
    found = {(alarm.key.entity, alarm.key.signal) for alarm in plain.alarms()}
    latency = "llm_request_latency_seconds"
    assert found == {(f"service/s{number}/replica/0", latency) for number in (0, 2)}
    by_key = {one.key: one for one in plain.series()}
    slow = by_key[SeriesKey("service/s0/replica/0", latency)]
    calm = by_key[SeriesKey("service/s1/replica/0", latency)]
    assert (slow.values, calm.values) == (TICKS, TICKS)
    assert 30 <= slow.anomalous_ticks <= 40
    assert calm.anomalous_ticks == 0
    assert slow.highest_score > 1 > calm.highest_score
    assert slow.highest_at_seconds is not None
    assert slow.highest_at_seconds > fleet.START + fleet.STEP * (TICKS - 41)
    assert slow.digest != calm.digest


def test_scores_do_not_depend_on_how_much_is_read_at_a_time(
    fleet: SimpleNamespace, plain: FleetResult
) -> None:
    whole = run_here(fleet.tasks(fleet.Source(4, TICKS), chunk_samples=10_000_000))
    assert summaries(whole) == summaries(plain)
    assert whole.alarms() == plain.alarms()


def test_a_shard_that_fails_is_named_and_costs_no_other(
    fleet: SimpleNamespace, plain: FleetResult
) -> None:
    source = fleet.Source(
        4, TICKS, refused=frozenset({"service/s0"}), poisoned=frozenset({"service/s3"})
    )
    result = run_here(fleet.tasks(source, shard_series=9))
    assert [one.number for one in result.done] == [1, 2]
    refused, poisoned = result.failed
    assert (refused.entities[0], refused.error) == ("service/s0", "the server refused: bad query")
    assert poisoned.entities[0] == "service/s3"
    assert "ValueError" in poisoned.error
    expected = run_here(fleet.tasks(fleet.Source(4, TICKS), shard_series=9))
    kept = summaries(result)
    assert kept
    assert kept.items() <= summaries(expected).items()
    assert len(summaries(expected)) == len(summaries(plain))


def test_what_warms_up_does_not_count(fleet: SimpleNamespace) -> None:
    source = fleet.Source(1, TICKS)
    end = fleet.START + fleet.STEP * TICKS
    late = end - 20 * fleet.STEP
    window = Window(late, end, fleet.STEP, warmup_seconds=fleet.STEP * (TICKS - 20))
    result = run_here(fleet.tasks(source, window=window))
    # It was raised in the warm-up and goes on: it counts where it is, not where it began.
    assert result.alarms() == []
    assert result.ticks == 20
    slow = next(one for one in result.series() if one.anomalous_ticks)
    assert slow.anomalous_ticks == slow.values == 20


def test_seasons_are_learned_from_what_was_before(fleet: SimpleNamespace) -> None:
    source = fleet.Source(1, 2000)
    middle = fleet.START + 1500 * fleet.STEP
    window = Window(middle, middle + 20 * fleet.STEP, fleet.STEP, train_seconds=1500 * fleet.STEP)
    detection = DetectionSettings.model_validate({"forest": {"enabled": False}})
    result = run_here(fleet.tasks(source, window=window, detection=detection))
    assert not result.failed
    assert sum(one.shapes for one in result.done) > 0
    assert result.spent.fitting > 0


def test_it_stops_between_ticks_and_keeps_what_is_done(fleet: SimpleNamespace) -> None:
    stop = threading.Event()
    shares: list[float] = []

    def watch(share: float) -> None:
        shares.append(share)
        if share > 0.5:
            stop.set()

    result = run_here(fleet.tasks(fleet.Source(4, TICKS)), progress=watch, stop=stop)
    assert result.stopped
    assert len(result.done) == 1
    assert not result.failed
    assert shares == sorted(shares)


def test_a_deadline_ends_a_shard(fleet: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def later() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(task_module, "time", SimpleNamespace(
        monotonic=later, perf_counter=later, thread_time=later))  # fmt: skip
    (task,) = fleet.tasks(fleet.Source(1, TICKS), shard_deadline_seconds=10)
    failure = score_shard(task)
    assert isinstance(failure, ShardFailure)
    assert "not done within 10 s" in failure.error
    assert "shard_deadline_seconds" in failure.fix


def test_a_server_that_fails_for_a_while_is_asked_again(
    fleet: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = fleet.tasks(fleet.Source(1, 20), read_attempts=3)
    reader = task.source.open()
    errors = [True, True, False]

    def read(*, retryable: bool = True, **given: Any) -> Any:
        if errors and errors.pop(0):
            cause = CollectorError("busy", retryable=retryable)
            raise StoreError("busy") from cause
        return type(reader).read(reader, **given)

    monkeypatch.setattr(task_module, "Backoff", lambda *_: NoPause())
    failing = SimpleNamespace(open=lambda: SimpleNamespace(read=read, close=lambda: None))
    assert not isinstance(score_shard(replace(task, source=failing)), ShardFailure)
    errors = [True] * 3
    failure = score_shard(replace(task, source=failing))
    assert isinstance(failure, ShardFailure)
    errors = [True, False]
    final = SimpleNamespace(
        open=lambda: SimpleNamespace(
            read=lambda **given: read(retryable=False, **given), close=lambda: None
        )
    )
    assert isinstance(score_shard(replace(task, source=final)), ShardFailure)
    assert errors == [False]


class NoPause:
    def __init__(self) -> None:
        self.failures = 0

    def failed(self, _: float | None = None) -> float:
        self.failures += 1
        return 0.0


def test_another_program_refuses_the_work(fleet: SimpleNamespace) -> None:
    (task,) = fleet.tasks(fleet.Source(1, 20))
    own = this_build()
    old = replace(own, python="3.9", versions=(("galen", "0.0.1"), *own.versions[1:]))
    failure = score_shard(replace(task, build=old))
    assert isinstance(failure, ShardFailure)
    assert f"Python {own.python} instead of 3.9" in failure.error
    assert "instead of 0.0.1" in failure.error
    failure = score_shard(replace(task, build=Build(own.python, own.versions, "0" * 16)))
    assert isinstance(failure, ShardFailure)
    assert "other code" in failure.error


def test_a_task_is_small_and_holds_no_samples(fleet: SimpleNamespace) -> None:
    tasks = fleet.tasks(fleet.Source(100, 100_000), shard_series=90)
    assert len(tasks) == 10
    assert max(len(pickle.dumps((one.shard, one.window, one.detection))) for one in tasks) < 5000


def test_settings_have_bounds() -> None:
    with pytest.raises(ValueError, match="shard_series"):
        FleetSettings(shard_series=0)


def test_a_backtest_by_shards_finds_what_one_replay_of_all_finds(fleet: SimpleNamespace) -> None:
    source = fleet.Source(4, TICKS)
    labels = (LabelledFault(fleet.START + 150 * fleet.STEP, fleet.START + 1e6, ["service/s0"]),)
    frame = source.open().read(start_seconds=0, end_seconds=1e12)
    whole = replay(
        [(fleet.START + fleet.STEP * TICKS, frame)],
        DetectionSettings(),
        fleet.START,
        labels=labels,
        tick_seconds=fleet.STEP,
        steady=True,
    )
    plan = ReplayPlan(labels)
    tasks = [replace(task, replay=plan) for task in fleet.tasks(source, shard_series=9)]
    parts = run_here(tasks)
    assert not parts.failed
    together = joined(parts.replays())
    assert len(tasks) == len(parts.replays()) == 4
    assert len(whole.alarms) == 2
    # Seeds and layouts follow names, so the very numbers agree, not only what was raised.
    assert together.alarms == whole.alarms
    assert sorted(together.keys) == sorted(whole.keys)
    assert together.realised_tail_rate == whole.realised_tail_rate
    assert (together.ticks, together.whole) == (whole.ticks, True)
    settings = DetectionSettings()
    quality = judged(together, settings, labels).quality
    assert quality == judged(whole, settings, labels).quality
    assert (quality.faults, quality.detected, quality.false_alarms) == (1, 1, 1)


def test_a_shard_without_a_sample_is_no_failure(fleet: SimpleNamespace) -> None:
    window = Window(fleet.START + 1e6, fleet.START + 1e6 + 600, fleet.STEP)
    tasks = fleet.tasks(fleet.Source(1, 20), window=window)
    assert run_here(tasks).failed == []
    empty = run_here([replace(task, replay=ReplayPlan()) for task in tasks])
    assert (empty.failed, empty.replays()) == ([], [])


def test_answers_that_were_incomplete_are_told(fleet: SimpleNamespace) -> None:
    (task,) = fleet.tasks(fleet.Source(1, 20))
    reader = task.source.open()
    partial = SimpleNamespace(
        read=reader.read, close=lambda: None, take_notes=lambda: ["a partial answer"]
    )
    result = run_here([replace(task, source=SimpleNamespace(open=lambda: partial))] * 2)
    assert not result.failed
    assert result.notes() == ["a partial answer"]
    assert run_here([task]).notes() == []
