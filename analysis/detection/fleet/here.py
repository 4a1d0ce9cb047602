"""Scores the shards of a fleet in this process, one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from analysis.detection.fleet.results import FleetResult, ShardFailure, ShardResult
from analysis.detection.fleet.task import ShardTask, score_shard


def run_here(
    tasks: Sequence[ShardTask],
    *,
    progress: Callable[[float], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> FleetResult:
    """Score every shard.

    Args:
        tasks: what to score.
        progress: told the done share of all, 0 to 1.
        stop: set by whoever wants it to end; what is done is returned.
    """
    stop = stop or threading.Event()
    began = time.monotonic()
    done: list[ShardResult] = []
    failed: list[ShardFailure] = []
    for place, task in enumerate(tasks):
        if stop.is_set():
            break

        def tell(share: float, place: int = place) -> None:
            progress((place + share) / len(tasks))

        result = score_shard(task, tell=tell, stopped=stop.is_set)
        if isinstance(result, ShardResult):
            done.append(result)
        elif not stop.is_set():
            failed.append(result)
        progress((place + 1) / len(tasks))
    return FleetResult(
        done, failed, seconds=time.monotonic() - began, stopped=len(done) + len(failed) < len(tasks)
    )
