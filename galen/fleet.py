"""Detection over a fleet from the command line: where the series are, and who computes."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from analysis.detection.fleet.build import this_build
from analysis.detection.fleet.here import run_here
from analysis.detection.fleet.results import FleetResult
from analysis.detection.fleet.shards import ShardSource, plan_shards
from analysis.detection.fleet.task import ReplayPlan, ShardTask, Window
from analysis.settings import AnalysisSettings
from collectors.addresses import split_userinfo
from collectors.contract import CollectorError, SeriesKey
from collectors.settings import PrometheusTarget
from collectors.store.contract import SeriesReader, StoreError
from collectors.store.prometheus import PrometheusSeriesReader
from collectors.store.sqlite import SqliteSeriesReader
from galen.config import Settings, load_settings
from galen.errors import ConfigError, GalenError

PROMETHEUS = "prometheus:"
_DEADLINE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PrometheusSource:
    """A Prometheus by name, whose address and credentials each worker finds in its configuration.

    An address in place of the name is read without credentials.
    """

    target: str
    step_seconds: float
    config: Path | None = None
    """The configuration file; None is what the process at hand finds by itself."""

    def open(self) -> PrometheusSeriesReader:
        """Open it as this machine's configuration says."""
        try:
            target = prometheus_target(load_settings(self.config), self.target)
        except ConfigError as error:
            raise StoreError(f"{error}; {error.fix}") from error
        return PrometheusSeriesReader(
            target.url,
            access=target,
            step_seconds=self.step_seconds,
            step_lookback_seconds=max(target.max_age_seconds, self.step_seconds),
            deadline_seconds=max(target.deadline_seconds, _DEADLINE_SECONDS),
        )

    def keys(self, start_seconds: float, end_seconds: float) -> Sequence[SeriesKey]:
        """List the series that may have samples in a time."""
        with closing(self.open()) as reader:
            return reader.keys(start_seconds=start_seconds, end_seconds=end_seconds)


@dataclass(frozen=True, slots=True)
class StoreSource:
    """A series store, by a path that every worker can read."""

    path: Path

    def open(self) -> SeriesReader:
        """Open it where it is."""
        if not self.path.exists():
            raise StoreError(f"{self.path}: there is no such file on this machine")
        return SqliteSeriesReader(self.path)

    def keys(self, start_seconds: float, end_seconds: float) -> Sequence[SeriesKey]:
        """List the series that have samples in a time."""
        with closing(self.open()) as reader:
            return [
                info.key
                for info in reader.series()
                if info.first_seconds < end_seconds and info.last_seconds >= start_seconds
            ]


def prometheus_target(settings: Settings, given: str) -> PrometheusTarget:
    """Return a configured Prometheus by its name, or one at an address.

    Raises:
        ConfigError: when it is neither, or the address holds credentials.
    """
    configured = {target.name: target for target in settings.collectors.prometheus}
    if given in configured:
        return configured[given]
    try:
        if split_userinfo(given)[1] is not None:
            raise ConfigError(
                "an address with a password would be seen by whoever can see this command",
                fix="Configure a [[collectors.prometheus]] where detection runs; give its name.",
            )
        return PrometheusTarget(name="given", url=given)
    except (ValidationError, ValueError) as error:
        raise ConfigError(
            "this is neither the name of a collectors.prometheus here nor an address",
            fix=f"Give one of {', '.join(configured) or 'none'}, or http://prometheus:9090.",
        ) from error


def plan(
    source: ShardSource,
    keys: Sequence[SeriesKey],
    window: Window,
    analysis: AnalysisSettings,
    *,
    replay: ReplayPlan | None = None,
) -> list[ShardTask]:
    """Return the tasks that score these series, or replay them as a backtest does."""
    run, detection, fleet = uuid.uuid4().hex[:12], analysis.detection, analysis.fleet
    return [
        ShardTask(run, shard, source, window, detection, fleet, this_build(), replay)
        for shard in plan_shards(keys, analysis.fleet.shard_series)
    ]


def run_tasks(
    tasks: Sequence[ShardTask],
    cluster: str | None,
    *,
    workers: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[float], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> FleetResult:
    """Score shards in this process, or on a cluster.

    Args:
        tasks: what to score.
        cluster: the address of a scheduler, ``local``, or None for this process.
        workers: processes of a local cluster.
        say: told who computes.
        progress: told the done share.
        stop: set by whoever wants it to end.

    Raises:
        GalenError: when the cluster cannot be used.
    """
    if cluster is None or not tasks:
        return run_here(tasks, progress=progress, stop=stop)
    from analysis.detection.fleet.cluster import (  # noqa: PLC0415 - distributed is heavy
        ClusterError,
        check_workers,
        cluster_client,
        run_on_cluster,
    )

    fleet = tasks[0].fleet
    try:
        with ExitStack() as stack:
            client = stack.enter_context(
                cluster_client(cluster, workers=workers, connect_seconds=fleet.connect_seconds)
            )
            count = check_workers(
                client, tasks[0].build, wait_seconds=min(fleet.worker_wait_seconds, 60.0)
            )
            say(f"{len(tasks)} shards on {count} workers")
            return run_on_cluster(client, tasks, progress=progress, stop=stop)
    except ClusterError as error:
        raise GalenError(str(error), fix=error.fix) from error


def list_series(source: PrometheusSource | StoreSource, window: Window) -> Sequence[SeriesKey]:
    """List what a source has in a window.

    Raises:
        GalenError: when it cannot be asked.
    """
    try:
        return source.keys(window.first_seconds, window.end_seconds)
    except (StoreError, CollectorError) as error:
        raise GalenError(str(error), fix=getattr(error, "fix", "")) from error
