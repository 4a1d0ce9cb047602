"""Alerts on what Galen measures, and on Galen itself: a watchman who sleeps is the worst outage.

Alerts on GPUs and hosts are states, not thresholds on noise: finding what is unusual is detection's
work, and its incidents have an alert here, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from galen.telemetry.rules import Alert, AlertSeverity, Group

_CRITICAL, _WARNING = AlertSeverity.CRITICAL, AlertSeverity.WARNING
_GPU = "GPU {{ $labels.gpu_id }} of {{ $labels.host }}"
_RUN = "See `galen incidents` and the dashboard Galen / GPUs."


def alert_groups(jobs: Sequence[str]) -> Iterator[Group]:
    """Yield the alerting rules.

    Args:
        jobs: names of the scrape jobs; one that has targets and none that answers is an alert.
    """
    yield Group("galen-gpu", [*_gpu_alerts()])
    yield Group("galen-incidents", [*_incident_alerts()])
    yield Group("galen-targets", [*_target_alerts(jobs)])
    yield Group("galen-itself", [*_own_alerts()])


def _gpu_alerts() -> Iterator[Alert]:
    yield Alert(
        "GpuUnavailable", "gpu_available == 0", _CRITICAL,
        f"{_GPU} does not answer", f"It needs a reset or a reboot. {_RUN}", "1m",
    )  # fmt: skip
    yield Alert(
        "GpuVanished", "(gpu_available offset 15m) unless gpu_available", _CRITICAL,
        f"{_GPU} was there a quarter of an hour ago and nobody reports it now",
        "Check the host, then its collector: unknown is not healthy.", "2m",
    )  # fmt: skip
    yield Alert(
        "GpuDriverBroken", "gpu_driver_state > 0", _CRITICAL,
        "The GPU driver of {{ $labels.host }} is in state {{ $value }}",
        "1 hung, 2 not loaded, 3 library missing, 4 versions differ, 5 no permission, 6 failed.",
        "2m",
    )  # fmt: skip
    yield Alert(
        "GpuNeedsReset", "gpu_recommended_action >= 3", _CRITICAL,
        f"{_GPU} asks for action {{{{ $value }}}}",
        "3 reset the GPU, 4 reboot the node, 5 contact support. Drain it first.", "1m",
    )  # fmt: skip
    yield Alert(
        "GpuNeedsRestartOfApplication",
        "gpu_recommended_action >= 1 and gpu_recommended_action < 3", _WARNING,
        f"{_GPU} asks for action {{{{ $value }}}}",
        "1 check the application, 2 restart it: its work on this GPU has failed.", "2m",
    )  # fmt: skip
    yield Alert(
        "GpuUncorrectableMemoryErrors", "increase(gpu_ecc_uncorrectable_total[15m]) > 0", _CRITICAL,
        f"{_GPU} has uncorrectable memory errors",
        "What ran there may have computed wrongly. Drain and reset it; see gpu_row_remap_pending.",
    )  # fmt: skip
    yield Alert(
        "GpuRowRemapPending", "gpu_row_remap_pending == 1", _WARNING,
        f"{_GPU} has memory rows that wait to be remapped", "Drain it and reset it.", "5m",
    )  # fmt: skip
    yield Alert(
        "GpuRowRemapFailed", "gpu_row_remap_failed == 1", _CRITICAL,
        f"{_GPU} has no spare memory rows left", "Replace it: run the vendor's field diagnostics.",
        "1m",
    )  # fmt: skip
    yield Alert(
        "GpuThermalThrottling", "avg_over_time(gpu_throttle_thermal[10m]) > 0.5", _WARNING,
        f"{_GPU} is slowed by its temperature", "Check airflow and inlet; lower the power limit.",
        "5m",
    )  # fmt: skip
    yield Alert(
        "GpuPowerBrake", "gpu_throttle_power_brake == 1", _CRITICAL,
        f"{_GPU} is braked by the power supply", "Check power supplies and the rack's budget.",
        "1m",
    )  # fmt: skip
    yield Alert(
        "GpuNvlinkDown", "gpu_nvlink_links_active < gpu_nvlink_links", _WARNING,
        f"{_GPU} has {{{{ $value }}}} NVLinks up, fewer than it should", _RUN, "5m",
    )  # fmt: skip
    yield Alert(
        "GpuPcieLinkDegraded", "gpu_pcie_link_width < gpu_pcie_link_width_max", _WARNING,
        f"{_GPU} talks over {{{{ $value }}}} PCIe lanes, fewer than it could",
        "Reseat it, or check the riser.", "30m",
    )  # fmt: skip


def _incident_alerts() -> Iterator[Alert]:
    for severity in (_CRITICAL, _WARNING):
        yield Alert(
            "GalenIncidentOpen",
            f'galen_incident_confidence_ratio{{severity="{severity.value}"}} >= 0',
            severity,
            "{{ $labels.entity }}: {{ $labels.cause }} ({{ $value | humanizePercentage }} sure)",
            "See `galen incidents` for evidence, rivals and what was done.",
            "30s",
        )


def _target_alerts(jobs: Sequence[str]) -> Iterator[Alert]:
    names = "|".join(jobs)
    yield Alert(
        "TargetDown", f'up{{job=~"{names}"}} == 0', _CRITICAL,
        "{{ $labels.job }} at {{ $labels.instance }} cannot be scraped",
        "Check that it runs and listens; Prometheus' page of targets has the error.", "2m",
    )  # fmt: skip
    yield Alert(
        "TargetVanished",
        f'(count by (job) (up{{job=~"{names}"}} offset 1h)) unless count by (job) (up)', _CRITICAL,
        "{{ $labels.job }} had targets an hour ago and has none now",
        "Check service discovery: what is not listed is not watched.", "5m",
    )  # fmt: skip
    yield Alert(
        "GalenAbsent", 'absent(up{job="galen"})', _CRITICAL,
        "Nobody scrapes Galen", "Start `galen export`, and check the scrape job `galen`.", "5m",
    )  # fmt: skip


def _own_alerts() -> Iterator[Alert]:
    yield Alert(
        "GalenNotWatching",
        "time() - galen_watch_last_tick_timestamp_seconds"
        " > 30 + 10 * galen_watch_interval_seconds",
        _CRITICAL,
        "Galen at {{ $labels.instance }} has not looked for {{ $value | humanizeDuration }}",
        "Start `galen watch`, or see its log: it hangs or has ended.", "1m",
    )  # fmt: skip
    yield Alert(
        "GalenBlind", 'galen_export_part_readable{part=~"watch|journal"} == 0', _CRITICAL,
        "Galen's {{ $labels.part }} at {{ $labels.instance }} cannot be read",
        "Does `galen watch` run on this state directory?", "2m",
    )  # fmt: skip
    yield Alert(
        "GalenStoreUnreadable", "galen_store_readable == 0", _CRITICAL,
        "The series store at {{ $labels.instance }} cannot be read",
        "Check the disk and `galen store info`.", "2m",
    )  # fmt: skip
    yield Alert(
        "GalenPartFailing", "increase(galen_watch_part_failures_total[10m]) > 3", _CRITICAL,
        "The part {{ $labels.part }} of Galen at {{ $labels.instance }} keeps failing",
        "See part_failed in the log of `galen watch`.",
    )  # fmt: skip
    yield Alert(
        "GalenTooSlow",
        "avg_over_time(galen_watch_tick_duration_seconds[10m]) > galen_watch_interval_seconds",
        _WARNING,
        "A tick of Galen at {{ $labels.instance }} takes {{ $value | humanizeDuration }}",
        "Watch fewer series, or raise watch.interval_seconds.", "10m",
    )  # fmt: skip
    yield Alert(
        "GalenConfigReloadFailed", "galen_config_last_reload_successful == 0", _WARNING,
        "The newest configuration of Galen at {{ $labels.instance }} does not hold",
        "See config_rejected and config_rolled_back in the journal; what held before still does.",
        "5m",
    )  # fmt: skip
    yield Alert(
        "GalenDetectionMiscalibrated",
        # P-values decide nothing: that they are off is to be seen, and wakes nobody.
        'increase(galen_detection_normal_values_unusual_total{detector!="p_value"}[6h])'
        " / (increase(galen_detection_normal_values_total[6h]) > 10000)"
        " > 3 * galen_detection_nominal_rate_ratio",
        _WARNING,
        "{{ $labels.detector }} at {{ $labels.instance }} calls {{ $value | humanizePercentage }}"
        " of normal values unusual",
        "galen_detection_worst_rate_ratio names the series: raise its `least` in an override.", "1h",
    )  # fmt: skip
    yield Alert(
        "GalenCollectorFailing", 'scrape_success{collector!=""} == 0', _WARNING,
        "The collector {{ $labels.collector }} fails", "See collector_failed in the log.", "5m",
    )  # fmt: skip
    yield Alert(
        "GalenAlertsStuck", "min_over_time(galen_alert_messages_pending[15m]) > 0", _CRITICAL,
        "Galen's messages to {{ $labels.channel }} are not delivered",
        "Check the channel's address and credentials; they are kept and sent later.", "5m",
    )  # fmt: skip
    yield Alert(
        "GalenAgentLosesSamples", "increase(galen_agent_dropped_samples_total[15m]) > 0", _CRITICAL,
        "The agent of {{ $labels.instance }} drops samples: its buffer or disk is full",
        "Mend the receiver, or raise collectors.push.spool_megabytes.",
    )  # fmt: skip
    yield Alert(
        "GalenAgentRefused", "galen_agent_parked_samples > 0", _WARNING,
        "The receiver refuses samples of {{ $labels.instance }}",
        "See remote_write_refused in the agent's log; then start it with --retry-refused.", "5m",
    )  # fmt: skip
    yield Alert(
        "GalenAgentSilent",
        "(galen_agent_waiting_samples offset 15m) unless galen_agent_waiting_samples",
        _CRITICAL,
        "The agent of {{ $labels.instance }} has sent nothing for a quarter of an hour",
        "Check the host and the agent; it keeps what it cannot send.", "2m",
    )  # fmt: skip
