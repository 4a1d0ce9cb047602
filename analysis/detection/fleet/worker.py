"""What runs on a worker of Dask distributed. The only module that a task there is named by."""

from __future__ import annotations

import time

from distributed import get_worker

from analysis.detection.fleet.results import ShardFailure, ShardResult
from analysis.detection.fleet.task import ShardTask, score_shard, worker_name

_TELL_EVERY_SECONDS = 0.5

_stopped: dict[str, None] = {}
"""Runs that somebody has stopped; a worker lives longer than a run, so it is bounded."""
_MOST_STOPPED = 100


PROGRESS_TOPIC = "galen-progress"
"""On which workers tell how far they are: ``run``, ``shard``, ``share`` and ``process``."""


def score_on_worker(task: ShardTask) -> ShardResult | ShardFailure:
    """Score a shard and tell the scheduler now and then how far it is."""
    worker = get_worker()
    due = 0.0

    def tell(share: float) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _TELL_EVERY_SECONDS
            told = {"run": task.run, "shard": task.shard.number, "share": share}
            worker.log_event(PROGRESS_TOPIC, {**told, "process": worker_name()})

    return score_shard(task, tell=tell, stopped=lambda: task.run in _stopped)


def stop_run(run: str) -> None:
    """Make the shards of a run that this worker scores end at their next tick."""
    while len(_stopped) >= _MOST_STOPPED:
        del _stopped[next(iter(_stopped))]
    _stopped[run] = None
