"""Scores the shards of a fleet on the workers of a Dask cluster, through the loss of any of them."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import structlog

from analysis.detection.fleet.build import LIBRARIES, Build
from analysis.detection.fleet.results import FleetResult, ShardFailure, ShardResult
from analysis.detection.fleet.task import ShardTask

if TYPE_CHECKING:
    from distributed import Client, Future

log = structlog.get_logger(__name__)

LOCAL = "local"
"""In place of an address: a cluster of processes on this machine, for this run."""

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 2.0
"""How often workers are counted."""
_CALL_SECONDS = 5.0
_CANCEL_SECONDS = 30.0
"""Busy workers are slow to hear that they shall stop."""
_GRACE_SECONDS = 60.0
"""A worker ends a shard at its deadline by itself; this much later it is taken for stuck."""


class ClusterError(Exception):
    """A cluster cannot be used; the message says why and ``fix`` what helps."""

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


@contextmanager
def cluster_client(
    address: str, *, workers: int | None = None, connect_seconds: float
) -> Iterator[Client]:
    """Connect to a scheduler, or start a cluster of processes here, while the block runs.

    A cluster started here listens on the loopback device only and speaks TLS with keys of its own:
    whoever may send tasks to a scheduler may run code as its user.

    Args:
        address: of the scheduler, such as ``tcp://scheduler:8786``, or ``local``.
        workers: processes of a local cluster; by default one a core.
        connect_seconds: the longest that the scheduler may take to answer.

    Raises:
        ClusterError: when distributed is not installed, or nobody answers there.
    """
    try:
        from distributed import Client  # noqa: PLC0415 - heavy, and only needed here
    except ImportError as error:
        raise ClusterError(
            f"a cluster needs Dask distributed: {error}", fix="pip install 'galen[fleet]'"
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        given: dict[str, Any] = {"address": address}
        if address == LOCAL:
            cluster = stack.enter_context(_local_cluster(workers or os.cpu_count() or 1))
            given = {"address": cluster.scheduler_address, "security": cluster.security}
        try:
            client = Client(
                **given, timeout=connect_seconds, set_as_default=False, name="galen-fleet"
            )
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {address}: {type(error).__name__}",
                fix="start it with `dask scheduler`, or give the address that it printed",
            ) from error
        stack.callback(client.close, timeout=_CALL_SECONDS)
        yield client


@contextmanager
def _local_cluster(workers: int) -> Iterator[Any]:
    from distributed import LocalCluster  # noqa: PLC0415 - heavy, and only needed here
    from distributed.security import Security  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="galen-fleet-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            security = Security.temporary()
        except ImportError as error:
            raise ClusterError(
                f"a local cluster needs {error.name or 'cryptography'}",
                fix="pip install 'galen[fleet]'",
            ) from error
        with LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="tls://127.0.0.1",
            dashboard_address=None,
            security=security,
            silence_logs=logging.CRITICAL,
            local_directory=scratch,
            preload=["analysis.detection.fleet.local_worker"],
        ) as cluster:
            yield cluster


def check_workers(client: Client, build: Build, *, wait_seconds: float) -> int:
    """Compare every worker's program with this one; return how many workers there are.

    Raises:
        ClusterError: when there is no worker in time, or one would compute other scores.
    """
    try:
        client.wait_for_workers(1, timeout=wait_seconds)
    except TimeoutError as error:
        raise ClusterError(
            f"the scheduler has no worker after {wait_seconds:g} s",
            fix="start some: `dask worker ADDRESS --nthreads 1`, where Galen is installed",
        ) from error
    try:
        found = _within(client, client._get_versions, packages=list(LIBRARIES))  # noqa: SLF001
    except (TimeoutError, OSError) as error:
        raise ClusterError(
            f"the workers do not say what they run: {type(error).__name__}",
            fix="look at the scheduler's log; restart workers that hang",
        ) from error
    differences = []
    for address, about in sorted(found["workers"].items()):
        python = ".".join(about["host"]["python"].split(".")[:2])
        if wrong := build.differences(python, about["packages"]):
            differences.append(f"{address} has {', '.join(wrong)}")
    if differences:
        raise ClusterError(
            "workers would compute other scores: " + "; ".join(differences),
            fix="install what requirements.lock names on every worker, and restart it",
        )
    return len(found["workers"])


def run_on_cluster(
    client: Client,
    tasks: Sequence[ShardTask],
    *,
    progress: Callable[[float], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> FleetResult:
    """Score every shard on the workers of a cluster.

    The shard of a worker that is lost is scored again by another one. A shard that fails is named in
    the result, and the others' results are kept.

    Args:
        client: of the cluster.
        tasks: what to score, all of one run.
        progress: told the done share of all, 0 to 1.
        stop: set by whoever wants it to end: the cluster's work is cancelled, and what is done is
            returned.
    """
    return _Run(client, tasks, progress, stop or threading.Event()).result()


def _within(
    client: Client,
    call: Callable[..., Any],
    *args: Any,
    deadline_seconds: float = _CALL_SECONDS,
    **given: Any,
) -> Any:
    """Ask the scheduler something, with a deadline, which the client's own methods lack."""
    return client.sync(call, *args, **given, callback_timeout=deadline_seconds)


class _Run:
    """One run: what is not done yet, how far it is, which workers there are."""

    def __init__(
        self,
        client: Client,
        tasks: Sequence[ShardTask],
        progress: Callable[[float], None],
        stop: threading.Event,
    ) -> None:
        self._client = client
        self._tasks = {task.shard.number: task for task in tasks}
        self._fleet = tasks[0].fleet
        self._run = tasks[0].run
        self._progress = progress
        self._stop = stop
        self._pending: dict[int, Future] = {}
        self._done: list[ShardResult] = []
        self._failed: list[ShardFailure] = []
        self._shares: dict[int, float] = {}
        self._begun: dict[int, float] = {}
        self._workers: set[str] = set()
        self._lost = 0
        self._alone_since: float | None = None
        self._look_at = 0.0

    def result(self) -> FleetResult:
        from analysis.detection.fleet.worker import (  # noqa: PLC0415 - needs distributed
            PROGRESS_TOPIC,
            score_on_worker,
        )

        began = time.monotonic()
        self._client.subscribe_topic(PROGRESS_TOPIC, self._hear)
        try:
            futures = self._client.map(
                score_on_worker,
                list(self._tasks.values()),
                key=[f"galen-{self._run}-{number}" for number in self._tasks],
                pure=False,
                batch_size=len(self._tasks),
            )
            self._pending = dict(zip(self._tasks, futures, strict=True))
            self._follow()
            if not self._pending:
                # A worker may have been lost since the last look; who stops does not wait for one.
                self._look()
        finally:
            if self._pending:
                self._cancel()
            self._client.unsubscribe_topic(PROGRESS_TOPIC)
        return FleetResult(
            sorted(self._done, key=lambda one: one.number),
            sorted(self._failed, key=lambda one: one.number),
            seconds=time.monotonic() - began,
            lost_workers=self._lost,
            stopped=bool(self._pending),
        )

    def _follow(self) -> None:
        while self._pending:
            for number, future in list(self._pending.items()):
                if future.done():
                    self._take(number, future)
            if self._stop.wait(_POLL_SECONDS):
                return
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + _LOOK_SECONDS
                self._look()
            self._progress((self._finished() + sum(self._shares.values())) / len(self._tasks))

    def _finished(self) -> int:
        return len(self._done) + len(self._failed)

    def _hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Note how far a shard is; called by the client's own thread."""
        told = event[1]
        if told["run"] != self._run:
            return
        number, share = int(told["shard"]), float(told["share"])
        if share == 0.0:
            self._begun[number] = time.monotonic()
        if number in self._pending:
            self._shares[number] = share

    def _take(self, number: int, future: Future) -> None:
        """Take what came of a shard."""
        status = future.status
        if status == "finished":
            try:
                found = future.result(timeout=_CALL_SECONDS)
            # The worker that held it died just now: it is computed again.
            except (TimeoutError, OSError) as error:
                log.warning("shard_result_late", shard=number, error=type(error).__name__)
                return
            except Exception as error:  # noqa: BLE001 - unpickling may raise anything; it is told
                self._fail(number, *_explain(error))
                return
            del self._pending[number]
            self._shares.pop(number, None)
            if isinstance(found, ShardResult):
                self._done.append(found)
            else:
                self._failed.append(found)
        elif status == "error":
            self._fail(number, *_explain(future.exception(timeout=_CALL_SECONDS)))
        else:
            self._fail(
                number,
                "the connection to the scheduler was lost",
                "look at the scheduler's log, and run again",
            )

    def _fail(self, number: int, error: str, fix: str) -> None:
        del self._pending[number]
        self._shares.pop(number, None)
        entities = self._tasks[number].shard.entities
        self._failed.append(ShardFailure(number, entities, error, fix, "the cluster"))

    def _look(self) -> None:
        """Look which workers there are, and which shards take too long."""
        now = time.monotonic()
        try:
            workers = set(_within(self._client, self._client.scheduler.ncores))
        except (TimeoutError, OSError) as error:
            log.warning("scheduler_silent", error=type(error).__name__)
            workers = None
        if workers is not None:
            for address in sorted(self._workers - workers):
                self._lost += 1
                log.warning("fleet_worker_lost", worker=address)
            self._workers = workers
        if workers:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since > self._fleet.worker_wait_seconds:
            self._give_up()
        longest = self._fleet.shard_deadline_seconds + _GRACE_SECONDS
        for number, begun in list(self._begun.items()):
            if number in self._pending and now - begun > longest:
                self._client.cancel([self._pending[number]])
                self._fail(
                    number, f"its worker was silent for {longest:g} s", "look at the worker's log"
                )

    def _give_up(self) -> None:
        wait = self._fleet.worker_wait_seconds
        for number, future in list(self._pending.items()):
            self._client.cancel([future])
            self._fail(number, f"there was no worker for {wait:g} s", "start workers again")

    def _cancel(self) -> None:
        """Take back what is not done, and make workers end what they are at."""
        from analysis.detection.fleet.worker import stop_run  # noqa: PLC0415 - needs distributed

        pending, client = list(self._pending.values()), self._client
        try:
            _within(client, client._cancel, pending)  # noqa: SLF001 - cancel takes no deadline
            _within(
                client,
                client._run,  # noqa: SLF001 - nor does run
                stop_run,
                self._run,
                on_error="ignore",
                deadline_seconds=_CANCEL_SECONDS,
            )
        except (TimeoutError, OSError) as error:
            log.warning("fleet_not_cancelled", error=type(error).__name__)


def _explain(error: BaseException | None) -> tuple[str, str]:
    """Say why the cluster itself could not run a shard."""
    from distributed.scheduler import KilledWorker  # noqa: PLC0415 - heavy, and only needed here

    if isinstance(error, KilledWorker):
        return (
            "every worker that took it died",
            "look at the workers' logs; where memory ran out, lower analysis.fleet.shard_series",
        )
    return f"{type(error).__name__}: {error}"[:500], "look at the workers' logs"
