"""Builds each part from the settings. The only place that knows how everything fits together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import httpx
import structlog

from analysis.analyst import Analyst
from analysis.detection.catch_up import catch_up
from analysis.detection.seasonal_history import fit_shapes
from analysis.detection.trial import ReplaceablePipeline
from analysis.history import History
from analysis.journal import EventKind, Journal
from collectors.cardinality import SeriesLimit
from collectors.contract import Collector, SeriesKey
from collectors.entities import entity
from collectors.exporter import make_exporter_server
from collectors.gpu.control import SimulatedGpuControl
from collectors.gpu.nvml import NvmlCollector
from collectors.gpu.release import GpuRelease
from collectors.gpu.simulated import SimulatedGpuCollector
from collectors.poller import Poller
from collectors.registry import build_collectors
from collectors.settings import CollectorsSettings
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore
from collectors.store.upkeep import Retention, StoreUpkeep
from galen.config import Settings
from galen.paths import StatePaths
from galen.reload import ConfigSource, Reloader, ReloadParts
from galen.seasons import SeasonFitter
from galen.stack import service_url
from galen.telemetry.metrics import GalenMetrics
from galen.telemetry.status import StatusBoard
from galen.watch import WATCH_ENTITY, WatchLoop, WatchParts, only_watch
from healing.executors.gpu import GpuControl, SimulatedControl
from healing.executors.nvidia_smi import LocalGpus, NvidiaSmiControl
from healing.executors.registry import build_executors
from healing.healer import Healer
from healing.ledger import Ledger
from healing.settings import HealingSettings, ServiceTarget
from inference.repository import install_bundled_repository
from inference.server import run as run_inference
from inference.settings import InferenceSettings
from reporting.alerts.channels import notifiers
from reporting.alerts.dispatcher import AlertDispatcher
from reporting.reports.archive import ReportArchive
from reporting.schedule import ReportSchedule
from reporting.settings import ReportingSettings

log = structlog.get_logger(__name__)

_DISPATCH_SECONDS = 1.0
_LOAD_AGE_SECONDS = 10.0
_SEASONS_SECONDS = 28 * 86_400.0
"""Seasons are fitted on so much history: four weeks, of which the last judges."""


def run_service(
    settings: Settings, paths: StatePaths, *, host: str | None = None, port: int | None = None
) -> None:
    """Run the bundled inference service until told to stop, with its state under the state directory."""
    configured = settings.inference
    run_inference(
        service_settings(configured, paths),
        host or configured.host,
        port or configured.port,
    )


def service_settings(configured: InferenceSettings, paths: StatePaths) -> InferenceSettings:
    """Return the service's settings with its files placed; a bundled model gets a copy to write to."""
    repository = configured.repository
    if repository is None:
        repository = install_bundled_repository(paths.service / "models")
    return configured.model_copy(update={"state_dir": paths.service, "repository": repository})


def run_watch(
    settings: Settings,
    paths: StatePaths,
    stop: threading.Event,
    source: ConfigSource | None = None,
) -> None:
    """Collect, analyse, heal and tell until told to stop.

    Args:
        settings: to start with.
        paths: where the state lies.
        stop: ends it.
        source: where changed settings come from while it runs; without one they never change.

    Raises:
        GalenError: when another watch loop writes to the same state directory.
    """
    with only_watch(paths.state_dir), ExitStack() as stack:
        journal = Journal(paths.journal)
        stack.callback(journal.close)
        ledger = Ledger(journal)
        telling = _Telling(paths, journal, ledger, settings.reporting)
        stack.callback(telling.close)
        history = _history(settings)
        detection = ReplaceablePipeline(settings.analysis.detection, history)
        parts = _watch_parts(
            settings, paths, journal, ledger, history=history, detection=detection, stack=stack
        )
        mode = settings.healing.mode.value
        journal.append(
            EventKind.STARTED,
            time_seconds=time.time(),
            summary=f"Galen watches; healing mode {mode}",
            data={"healing_mode": mode},
        )
        stack.callback(_note_stop, journal)
        _catch_up(detection, history, paths)
        board = StatusBoard(
            paths.status,
            started_seconds=time.time(),
            interval_seconds=settings.watch.interval_seconds,
        )
        changed = ReloadParts(detection, telling.replace, journal, board.reloaded)
        loop = WatchLoop(
            parts,
            interval_seconds=settings.watch.interval_seconds,
            board=board,
            reloader=Reloader(settings, source, changed) if source is not None else None,
        )
        loop.run(stop)


def run_exporter(
    paths: StatePaths,
    *,
    host: str,
    port: int,
    max_age_seconds: float,
    say: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Offer the newest samples and Galen's own metrics to Prometheus until told to stop."""
    reader = SqliteSeriesReader(paths.series)
    own = GalenMetrics(paths, max_age_seconds=max_age_seconds)
    try:
        with make_exporter_server(
            reader, host=host, port=port, max_age_seconds=max_age_seconds, more=[own]
        ) as server:
            say(f"metrics at http://{host}:{server.server_address[1]}/metrics")
            thread = threading.Thread(target=server.serve_forever, name="exporter", daemon=True)
            thread.start()
            stop.wait()
            server.shutdown()
            thread.join(5.0)
    finally:
        own.close()
        reader.close()


def _catch_up(detection: ReplaceablePipeline, history: History, paths: StatePaths) -> None:
    """Let detection see what was stored after its state was saved."""
    reader = SqliteSeriesReader(paths.series)
    try:
        catch_up(detection, history, reader, tick_entity=WATCH_ENTITY, now_seconds=time.time())
    # Without it detection goes on from where it was saved; the watch must start whatever is stored.
    except Exception:
        log.exception("detection_cannot_catch_up")
    finally:
        reader.close()


def _history(settings: Settings) -> History:
    watch = settings.watch
    return History(capacity_ticks=max(2, int(watch.history_minutes * 60 / watch.interval_seconds)))


def _watch_parts(
    settings: Settings,
    paths: StatePaths,
    journal: Journal,
    ledger: Ledger,
    *,
    history: History,
    detection: ReplaceablePipeline,
    stack: ExitStack,
) -> WatchParts:
    watch = settings.watch
    store = SqliteSeriesStore(paths.series)
    stack.callback(store.close)
    limit = SeriesLimit(
        per_source=settings.collectors.most_series_per_source,
        overall=settings.collectors.most_series,
        known=(info.key for info in store.series()),
    )
    collectors = build_collectors(
        settings.collectors,
        state_dir=paths.state_dir,
        gpu_load=_service_load(settings, history),
        limit=limit,
    )
    poller = Poller(collectors, budget_seconds=0.8 * watch.interval_seconds, limit=limit)
    stack.callback(poller.close)
    analyst = Analyst(
        settings.analysis, journal, history, state_path=paths.detection, pipeline=detection
    )
    stack.callback(analyst.close)
    healer = Healer(
        settings.healing,
        ledger,
        journal,
        build_executors(_healing_settings(settings, paths), _gpu_controls(collectors, paths)),
        state_dir=paths.state_dir,
    )
    stack.callback(healer.close)
    return WatchParts(
        poller,
        store,
        history,
        analyst,
        healer,
        ledger,
        journal,
        _seasons(settings, paths, stack),
        StoreUpkeep(store, _retention(settings.collectors), limit=limit),
    )


def _retention(settings: CollectorsSettings) -> Retention:
    return Retention(
        raw_seconds=settings.retention_hours * 3600.0,
        minute_seconds=settings.rollup_minute_retention_days * 86_400.0,
        hour_seconds=settings.rollup_hour_retention_days * 86_400.0,
    )


def _seasons(settings: Settings, paths: StatePaths, stack: ExitStack) -> SeasonFitter:
    reader = SqliteSeriesReader(paths.series)
    stack.callback(reader.close)
    kept_seconds = settings.collectors.rollup_minute_retention_days * 86_400.0
    span_seconds = min(kept_seconds, _SEASONS_SECONDS)
    zone = settings.analysis.detection.baseline.timezone
    return SeasonFitter(lambda now: fit_shapes(reader, now - span_seconds, now, zone=zone))


def _service_load(settings: Settings, history: History) -> Callable[[], float | None]:
    """Return what the simulated GPU's load follows: how busy the first service's engine is."""
    if not settings.collectors.services:
        return lambda: None
    key = SeriesKey(entity("service", settings.collectors.services[0].name), "engine_busy_ratio")
    return lambda: history.latest(key, max_age_seconds=_LOAD_AGE_SECONDS)


def _healing_settings(settings: Settings, paths: StatePaths) -> HealingSettings:
    """Add the service that runs beside this loop, with its own token, where none is configured."""
    if settings.healing.services:
        return settings.healing
    own = service_url(settings)
    targets = tuple(
        ServiceTarget(name=service.name, url=own, token_file=paths.admin_token)
        for service in settings.collectors.services
        if service.url.rstrip("/") == own
    )
    return settings.healing.model_copy(update={"services": targets})


def _gpu_controls(collectors: Sequence[Collector], paths: StatePaths) -> Mapping[str, GpuControl]:
    """Return what acts on the GPUs that are collected here; real ones show once they are read."""
    nvml = next((one for one in collectors if isinstance(one, NvmlCollector)), None)
    if nvml is not None:
        release = GpuRelease(paths.gpu_release)
        return LocalGpus(lambda: nvml.uuids, lambda uuid: NvidiaSmiControl(uuid, release=release))
    return {
        collector.entity: SimulatedControl(SimulatedGpuControl(paths.simulated_gpu))
        for collector in collectors
        if isinstance(collector, SimulatedGpuCollector)
    }


class _Telling:
    """Alerts and scheduled reports, which can be put on other settings while the rest goes on."""

    def __init__(
        self, paths: StatePaths, journal: Journal, ledger: Ledger, settings: ReportingSettings
    ) -> None:
        self._start = partial(_telling, paths=paths, journal=journal, ledger=ledger)
        self._settings = settings
        self._running = self._start(settings)

    def replace(self, settings: ReportingSettings) -> None:
        """Go on with other settings; where that fails, with those of before.

        What is queued stays queued: two dispatchers at once would send it twice, so the old one ends
        first.
        """
        self._running.close()
        try:
            self._running = self._start(settings)
        except BaseException:
            self._running = self._start(self._settings)
            raise
        self._settings = settings

    def close(self) -> None:
        """End both."""
        self._running.close()


def _telling(
    settings: ReportingSettings, *, paths: StatePaths, journal: Journal, ledger: Ledger
) -> ExitStack:
    """Start alerts and scheduled reports; they end with the returned stack."""
    with ExitStack() as stack:
        _start_telling(settings, paths, journal, ledger, stack)
        return stack.pop_all()


def _start_telling(
    settings: ReportingSettings,
    paths: StatePaths,
    journal: Journal,
    ledger: Ledger,
    stack: ExitStack,
) -> None:
    client = stack.enter_context(httpx.Client(timeout=settings.send_deadline_seconds))
    dispatcher = AlertDispatcher(settings, journal, notifiers(settings, client))
    stack.callback(dispatcher.close)
    stop = threading.Event()
    thread = threading.Thread(target=_dispatch, args=(dispatcher, stop), name="alerts", daemon=True)
    thread.start()
    # The last steps of an incident are queued in the outbox already: what is not sent now is sent
    # after the next start.
    stack.callback(thread.join, 5.0)
    stack.callback(stop.set)
    if settings.report_schedule is not None:
        reader = SqliteSeriesReader(paths.series)
        stack.callback(reader.close)
        archive = ReportArchive(
            paths.state_dir / settings.report_directory,
            formats=settings.report_formats,
            keep_seconds=settings.report_keep_days * 86_400.0,
        )
        schedule = ReportSchedule(settings, journal, ledger, reader, archive)
        schedule.start()
        stack.callback(schedule.stop)


def _dispatch(dispatcher: AlertDispatcher, stop: threading.Event) -> None:
    while not stop.wait(_DISPATCH_SECONDS):
        try:
            dispatcher.run_once(time.time())
        # Alerts must go on after a fault of one round, whatever it was; it is said in the log.
        except Exception:
            log.exception("alerts_failed")


def _note_stop(journal: Journal) -> None:
    journal.append(EventKind.STOPPED, time_seconds=time.time(), summary="Galen stopped watching")
