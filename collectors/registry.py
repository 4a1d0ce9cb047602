"""The one list of collectors that a configuration asks for.

What is large and seldom asked for on a small agent is imported when it is asked for.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import structlog

from collectors.canary import CanaryCollector, GoldenPrompt
from collectors.cardinality import SeriesLimit
from collectors.contract import Collector
from collectors.gpu.kernel_log import open_log
from collectors.gpu.nvml import NvmlCollector, nvml_library_present
from collectors.gpu.release import RELEASE_FILE, GpuRelease
from collectors.gpu.xid import override_xid
from collectors.gpu.xid_collector import XidCollector
from collectors.gpu.xid_ledger import XidLedger
from collectors.host import HostCollector
from collectors.settings import CollectorsSettings, GpuMode, PrometheusTarget, ServiceTarget

log = structlog.get_logger(__name__)

SIMULATED_GPU_FILE = "simulated_gpu.json"
"""Name of the simulated GPU's control file in the state directory."""


def build_collectors(
    settings: CollectorsSettings,
    *,
    state_dir: Path,
    gpu_load: Callable[[], float | None] | None = None,
    rng: random.Random | None = None,
    nvml_present: Callable[[], bool] = nvml_library_present,
    limit: SeriesLimit | None = None,
) -> list[Collector]:
    """Build every collector that the settings ask for.

    A collector that cannot work here stays in, after a warning that says how to fix it: what somebody
    asked to watch and cannot be watched must show as failing, not be absent.

    Args:
        settings: what to collect.
        state_dir: its file system is the one that is watched; the simulated GPU is controlled by
            ``simulated_gpu.json`` in it.
        gpu_load: load of the simulated GPU between 0 and 1, None while unknown. Without it, ``auto``
            never simulates.
        rng: noise of the simulated GPU.
        nvml_present: whether NVML can be loaded here.
        limit: how many series each target of the scrape pool may have.
    """
    host = settings.host_name or socket.gethostname()
    collectors: list[Collector] = []
    if settings.host_enabled:
        collectors.append(
            HostCollector(state_dir, hostname=host, deadline_seconds=settings.host_deadline_seconds)
        )
    collectors += _gpu(settings, host, state_dir, load=gpu_load, rng=rng, nvml_present=nvml_present)
    for target in settings.services:
        collectors += _service(target)
    if settings.scrape:
        collectors.append(_scraping(settings, limit))
    collectors += [_prometheus(target) for target in settings.prometheus]
    for collector in collectors:
        support = collector.is_supported()
        if not support.supported:
            log.warning(
                "collector_unsupported",
                collector=collector.name,
                reason=support.reason,
                fix=support.fix,
            )
    return collectors


def _gpu(
    settings: CollectorsSettings,
    host: str,
    state_dir: Path,
    *,
    load: Callable[[], float | None] | None,
    rng: random.Random | None,
    nvml_present: Callable[[], bool],
) -> list[Collector]:
    mode = settings.gpu_mode
    if mode is GpuMode.AUTO:
        simulated = GpuMode.NONE if load is None else GpuMode.SIMULATED
        mode = GpuMode.NVML if nvml_present() else simulated
    if mode is GpuMode.NVML:
        return _nvml(settings, host, state_dir, nvml_present)
    if mode is GpuMode.SIMULATED:
        from collectors.gpu.simulated import SimulatedGpuCollector  # noqa: PLC0415

        return [
            SimulatedGpuCollector(
                host,
                load or (lambda: None),
                state_dir / SIMULATED_GPU_FILE,
                rng=rng,
                deadline_seconds=settings.gpu_deadline_seconds,
            )
        ]
    return []


def _nvml(
    settings: CollectorsSettings,
    host: str,
    state_dir: Path,
    nvml_present: Callable[[], bool],
) -> list[Collector]:
    xid = settings.xid
    ledger = XidLedger(
        host,
        overrides={
            code: override_xid(code, severity=one.severity, action=one.action, note=one.note)
            for code, one in xid.overrides.items()
        },
        merge_seconds=xid.merge_seconds,
        hold_seconds=xid.hold_seconds,
        advice_seconds=xid.advice_seconds,
    )
    return [
        NvmlCollector(
            host,
            deadline_seconds=settings.gpu_deadline_seconds,
            library_present=nvml_present,
            xids=ledger,
            release=GpuRelease(state_dir / RELEASE_FILE),
        ),
        XidCollector(host, ledger, open_log(xid.source, kernel_only=xid.kernel_only)),
    ]


def _scraping(settings: CollectorsSettings, limit: SeriesLimit | None) -> Collector:
    from collectors.scraping.build import scrape_collector  # noqa: PLC0415

    return scrape_collector(settings, limit)


def _client() -> httpx.Client:
    # Like Prometheus, do not send scrapes through the proxy of the environment.
    return httpx.Client(trust_env=False)


def _service(target: ServiceTarget) -> list[Collector]:
    from collectors.service import ServiceCollector  # noqa: PLC0415

    collectors: list[Collector] = [
        ServiceCollector(
            target.name,
            target.url,
            _client(),
            deadline_seconds=target.deadline_seconds,
            window_seconds=target.window_seconds,
            wide_window_seconds=target.wide_window_seconds,
            minimum_events=target.minimum_events,
        )
    ]
    canary = target.canary
    if canary.enabled:
        golden = GoldenPrompt(
            canary.prompt, canary.expected, max_tokens=canary.max_tokens, model=canary.model
        )
        collectors.append(
            CanaryCollector(
                target.name,
                target.url,
                _client(),
                golden,
                deadline_seconds=canary.deadline_seconds,
                every_seconds=canary.every_seconds,
            )
        )
    return collectors


def _prometheus(target: PrometheusTarget) -> Collector:
    from collectors.prometheus import PrometheusCollector, own_queries  # noqa: PLC0415

    return PrometheusCollector(
        target.name,
        target.url,
        own_queries(target) or None,
        access=target,
        every_seconds=target.every_seconds,
        deadline_seconds=target.deadline_seconds,
        max_age_seconds=target.max_age_seconds,
        longest_backoff_seconds=target.longest_backoff_seconds,
    )
