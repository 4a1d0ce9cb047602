"""Real worker processes under a real Dask scheduler; each test starts its own cluster."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.detection.fleet.build import this_build
from analysis.detection.fleet.cluster import (
    LOCAL,
    ClusterError,
    check_workers,
    cluster_client,
    run_on_cluster,
)
from analysis.detection.fleet.here import run_here
from analysis.detection.fleet.results import FleetResult

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
pytest.importorskip("distributed")

TICKS = 150
START_SECONDS = 120.0


def scores(result: FleetResult) -> dict[Any, str]:
    return {one.key: repr(one) for one in result.series()}


@contextmanager
def local(workers: int) -> Iterator[Any]:
    with cluster_client(LOCAL, workers=workers, connect_seconds=START_SECONDS) as client:
        assert check_workers(client, this_build(), wait_seconds=START_SECONDS) == workers
        yield client


def test_workers_score_as_one_process_does_though_one_is_killed_and_one_shard_fails(
    fleet: SimpleNamespace, tmp_path: Path
) -> None:
    expected = run_here(fleet.tasks(fleet.Source(8, TICKS)))
    source = fleet.Source(
        8,
        TICKS,
        deadly="service/s3",
        once=tmp_path / "once",
        refused=frozenset({"service/s6/replica/1"}),
    )
    shares: list[float] = []
    with local(2) as client:
        result = run_on_cluster(client, fleet.tasks(source), progress=shares.append)
    assert (tmp_path / "once").exists()  # a worker was killed with what it had begun
    assert result.lost_workers >= 1
    (failure,) = result.failed
    assert "service/s6" in failure.entities
    assert failure.error == "the server refused: bad query"
    assert [one.number for one in result.done] == [0, 1, 2]
    kept = scores(result)
    assert len(kept) == 54
    assert kept.items() <= scores(expected).items()
    assert {alarm.key.entity for alarm in result.alarms()} == {
        f"service/s{number}/replica/0" for number in (0, 2, 4)
    }
    assert shares
    assert all(0 <= share <= 1 for share in shares)


def test_a_run_that_is_stopped_leaves_the_workers_idle(fleet: SimpleNamespace) -> None:
    stop = threading.Event()
    with local(1) as client:
        result = run_on_cluster(
            client,
            fleet.tasks(fleet.Source(8, 200_000), chunk_samples=10_000),
            progress=lambda share: stop.set() if share > 0 else None,
            stop=stop,
        )
        assert result.stopped
        assert not result.done
        assert not result.failed
        assert _eventually_idle(client)


def _eventually_idle(client: Any) -> bool:
    for _ in range(600):
        running = client.run(
            lambda dask_worker: dask_worker.state.executing_count + len(dask_worker.state.tasks)
        )
        if not any(running.values()):
            return True
        time.sleep(0.1)
    return False


def test_nobody_at_the_address_is_said_at_once() -> None:
    with (
        pytest.raises(ClusterError, match="no Dask scheduler answers at tcp:"),
        cluster_client("tcp://127.0.0.1:9", connect_seconds=1.0),
    ):
        pass


def test_a_worker_with_another_program_is_named_before_anything_runs() -> None:
    own = this_build()
    other = replace(own, versions=(("galen", "9.9"), *own.versions[1:]))
    with local(1) as client:
        with pytest.raises(ClusterError, match=r"galen .* instead of 9\.9") as caught:
            check_workers(client, other, wait_seconds=START_SECONDS)
        assert "requirements.lock" in caught.value.fix
        with pytest.raises(ClusterError, match=r"Python 3.* instead of 2\.7"):
            check_workers(client, replace(own, python="2.7"), wait_seconds=START_SECONDS)


def test_without_any_worker_a_run_ends(fleet: SimpleNamespace) -> None:
    with local(1) as client:
        tasks = fleet.tasks(fleet.Source(2, 200_000), worker_wait_seconds=1.0)
        (address,) = client.scheduler_info()["workers"]
        gone = threading.Thread(target=lambda: client.retire_workers([address], close_workers=True))
        gone.start()
        result = run_on_cluster(client, tasks)
        gone.join()
    assert not result.done
    assert [one.error for one in result.failed] == ["there was no worker for 1 s"] * len(tasks)


def test_the_command_line_does_not_import_what_only_clusters_need() -> None:
    program = (
        "import sys; from galen.cli import make_app; make_app('detect'); make_app('backtest');"
        "import galen.fleet, analysis.settings;"
        "sys.exit(any(name in sys.modules for name in ('distributed', 'dask', 'cryptography')))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=120)
    assert done.returncode == 0
