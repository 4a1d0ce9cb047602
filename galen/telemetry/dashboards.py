"""The dashboards: the fleet, its GPUs, a service and its objectives, and Galen itself."""

from __future__ import annotations

from collections.abc import Iterator

from collectors.signals import catalogue
from galen.telemetry.panels import Dashboard, Panel, Query, Row, Step, Variable
from galen.telemetry.settings import ObjectiveSettings

_UNITS = {
    "percent": "percent",
    "bytes": "bytes",
    "bytes/second": "Bps",
    "celsius": "celsius",
    "watts": "watt",
    "seconds": "s",
    "ratio": "percentunit",
    "MHz": "rotmhz",
    "tokens/second": "short",
    "requests/second": "reqps",
}
_GPU = '{host=~"$host",gpu_id=~"$gpu"}'
_GPU_LEGEND = "{{host}} {{gpu_id}}"
_SERVICE = '{service=~"$service"}'
_HOST_CHOICE = Variable("host", "Host", "label_values(gpu_available, host)")
_GPU_CHOICE = Variable("gpu", "GPU", 'label_values(gpu_available{host=~"$host"}, gpu_id)')
_SERVICE_CHOICE = Variable("service", "Service", "label_values(llm_requests_per_second, service)")
_BAD_AT_ZERO = (Step(0, "red"), Step(1, "green"))
_BAD_AT_ONE = (Step(1, "red"),)


def dashboards(objectives: ObjectiveSettings) -> Iterator[Dashboard]:
    """Yield every dashboard."""
    yield _fleet()
    yield _gpus()
    yield _service(objectives)
    yield _itself()


def _signal(name: str, selector: str, legend: str, *, title: str = "", width: int = 8) -> Panel:
    """Show one canonical signal; its words, unit and limits come from the catalogue."""
    known = catalogue()[name]
    high = {"percent": 100.0, "ratio": 1.0}.get(known.unit)
    return Panel(
        title or _words(name),
        [Query(f"{name}{selector}", legend)],
        unit=_UNITS.get(known.unit, "short"),
        low=0.0 if known.low == 0 else None,
        high=high,
        description=known.description,
        width=width,
    )


def _words(name: str) -> str:
    known = catalogue()[name]
    words = name.removesuffix(f"_{known.unit}").replace("_", " ")
    return words.replace("gpu ", "GPU ").replace("llm ", "").capitalize().replace("Gpu", "GPU")


def _stat(title: str, expr: str, unit: str = "short", steps: tuple[Step, ...] = ()) -> Panel:
    return Panel(title, [Query(expr)], unit=unit, kind="stat", width=4, height=4, steps=steps)


def _fleet() -> Dashboard:
    return Dashboard(
        "galen-fleet",
        "Galen / Fleet",
        "What is wrong, where, and how sure Galen is.",
        [
            Row(
                "Now",
                [
                    _stat(
                        "Critical incidents",
                        'sum(galen_incidents_open{severity="critical"})',
                        steps=_BAD_AT_ONE,
                    ),
                    _stat(
                        "Warnings", 'sum(galen_incidents_open{severity="warning"})',
                        steps=(Step(1, "orange"),),
                    ),
                    _stat("Anomalous series", "sum(galen_anomalies)"),
                    _stat(
                        "GPUs that do not answer", "count(gpu_available == 0) or vector(0)",
                        steps=_BAD_AT_ONE,
                    ),
                    _stat("GPUs", "count(gpu_available)"),
                    _stat(
                        "Since the last look",
                        "time() - max(galen_watch_last_tick_timestamp_seconds)",
                        "s", (Step(30, "red"),),
                    ),
                ],
            ),
            Row(
                "Incidents",
                [
                    Panel(
                        "Open incidents", [Query("galen_incident_confidence_ratio")],
                        unit="percentunit", kind="table", width=12, height=9,
                        description="Confidence in the leading cause",
                    ),
                    Panel(
                        "Open incidents by cause",
                        [Query("sum by (severity, cause) (galen_incidents_open > 0)",
                               "{{severity}} {{cause}}")],
                        width=12, height=9, low=0.0,
                    ),
                ],
            ),
            Row(
                "How unusual",
                [
                    Panel(
                        "Highest anomaly scores by entity",
                        [Query("topk(10, galen_entity_anomaly_score)", "{{entity}}")],
                        width=12, low=0.0, steps=(Step(1, "red"),),
                        description="Above 1 is an anomaly",
                    ),
                    Panel(
                        "Anomalous series",
                        [Query("topk(20, galen_anomaly_score)",
                               "{{entity}} {{signal}} {{direction}}")],
                        width=12, low=0.0,
                    ),
                ],
            ),
            Row(
                "Hosts",
                [
                    _signal("host_cpu_percent", "", "{{host}}"),
                    _signal("host_memory_used_ratio", "", "{{host}}"),
                    _signal("host_disk_used_ratio", "", "{{host}}"),
                ],
            ),
            Row(
                "Healing",
                [
                    Panel(
                        "Actions executed and failed",
                        [
                            Query("sum by (kind) (increase(galen_journal_events_total"
                                  '{kind=~"action_executed|action_confirmed|action_failed'
                                  '|action_rolled_back|escalated"}[$__rate_interval]))',
                                  "{{kind}}"),
                        ],
                        width=12, low=0.0,
                    ),
                    Panel(
                        "Actions that wait for a person",
                        [Query('sum by (action) (galen_healing_actions{state="proposed"})',
                               "{{action}}")],
                        width=12, low=0.0,
                    ),
                ],
            ),
        ],
    )  # fmt: skip


def _gpus() -> Dashboard:
    def gpu(name: str, width: int = 8) -> Panel:
        return _signal(name, _GPU, _GPU_LEGEND, width=width)

    return Dashboard(
        "galen-gpus",
        "Galen / GPUs",
        "Each GPU: work, memory, heat, power, clocks, errors.",
        [
            Row(
                "State",
                [
                    Panel("Answers", [Query(f"gpu_available{_GPU}", _GPU_LEGEND)], kind="stat",
                          width=8, height=6, steps=_BAD_AT_ZERO),
                    Panel("State (0 is ok)", [Query(f"gpu_state{_GPU}", _GPU_LEGEND)],
                          kind="stat", width=8, height=6, steps=_BAD_AT_ONE),
                    Panel("Action that it needs (0 is none)",
                          [Query(f"gpu_recommended_action{_GPU}", _GPU_LEGEND)],
                          kind="stat", width=8, height=6,
                          steps=(Step(1, "orange"), Step(3, "red"))),
                ],
            ),
            Row("Work", [gpu("gpu_utilization_percent"), gpu("gpu_sm_active_percent"),
                         gpu("gpu_memory_bandwidth_percent")]),
            Row("Memory", [gpu("gpu_memory_used_bytes"), gpu("gpu_memory_used_ratio"),
                           gpu("gpu_foreign_memory_bytes")]),
            Row("Heat and power", [
                gpu("gpu_temperature_celsius"), gpu("gpu_temperature_margin_celsius"),
                gpu("gpu_memory_temperature_celsius"), gpu("gpu_power_usage_watts"),
                gpu("gpu_power_limit_watts"), gpu("gpu_sm_clock_mhz"),
                gpu("gpu_throttle_thermal"), gpu("gpu_throttle_power"), gpu("gpu_fan_speed_percent"),
            ]),
            Row("Errors", [
                gpu("gpu_xid"),
                Panel("Memory errors",
                      [Query(f"increase(gpu_ecc_uncorrectable_total{_GPU}[1h])",
                             f"uncorrectable {_GPU_LEGEND}"),
                       Query(f"increase(gpu_ecc_correctable_total{_GPU}[1h])",
                             f"correctable {_GPU_LEGEND}")], low=0.0),
                gpu("gpu_row_remap_pending"),
                Panel("PCIe replays and NVLink errors",
                      [Query(f"increase(gpu_pcie_replay_total{_GPU}[1h])", f"PCIe {_GPU_LEGEND}"),
                       Query(f"increase(gpu_nvlink_errors_total{_GPU}[1h])",
                             f"NVLink {_GPU_LEGEND}")], low=0.0),
                gpu("gpu_pcie_link_width"), gpu("gpu_nvlink_links_active"),
            ]),
        ],
        (_HOST_CHOICE, _GPU_CHOICE),
    )  # fmt: skip


def _service(objectives: ObjectiveSettings) -> Dashboard:
    def service(name: str) -> Panel:
        return _signal(name, _SERVICE, "{{service}}")

    legend = "{{slo}} {{job}} {{model}}"
    days = objectives.window_days
    return Dashboard(
        "galen-service",
        "Galen / Service",
        "Objectives, traffic, latency and the engine behind them.",
        [
            Row("Objectives", [
                Panel(f"Error budget left of {days} days",
                      [Query("slo:error_budget_remaining:ratio", legend)],
                      unit="percentunit", width=12, high=1.0,
                      description="Below zero the objective is broken"),
                Panel("Burn rate over one hour",
                      [Query("slo:sli_error:ratio_rate1h / on (slo) group_left ()"
                             " (1 - slo:objective:ratio)", legend)],
                      width=12, low=0.0, description="1 uses the budget up exactly in its window"),
            ]),
            Row("Traffic", [service("llm_requests_per_second"), service("llm_tokens_per_second"),
                            service("llm_active_requests")]),
            Row("Latency", [
                Panel("Latency of requests",
                      [Query(f"llm_request_latency_p50_seconds{_SERVICE}", "p50 {{service}}"),
                       Query(f"llm_request_latency_seconds{_SERVICE}", "p95 {{service}}"),
                       Query(f"llm_request_latency_p99_seconds{_SERVICE}", "p99 {{service}}")],
                      unit="s", low=0.0),
                service("llm_time_to_first_token_seconds"),
                service("llm_time_per_output_token_seconds"),
            ]),
            Row("Trouble", [
                service("llm_error_ratio"), service("llm_rejected_ratio"),
                service("llm_queue_depth"), service("llm_queue_wait_seconds"),
                service("llm_slot_usage_ratio"), service("service_degradation_level"),
            ]),
            Row("Engine", [
                service("engine_busy_ratio"), service("llm_batch_size"),
                service("llm_kv_cache_usage_ratio"), service("engine_step_age_seconds"),
                service("engine_restarts"), service("canary_success"),
            ]),
        ],
        (_SERVICE_CHOICE,),
    )  # fmt: skip


def _itself() -> Dashboard:
    by_instance = "{{instance}}"
    return Dashboard(
        "galen-itself",
        "Galen / Galen itself",
        "Whether the watchman is awake, and what watching costs.",
        [
            Row("Watching", [
                Panel("Since the last look",
                      [Query("time() - galen_watch_last_tick_timestamp_seconds", by_instance)],
                      unit="s", low=0.0),
                Panel("Length of a tick",
                      [Query("galen_watch_tick_duration_seconds", by_instance),
                       Query("galen_watch_interval_seconds", f"interval {by_instance}")],
                      unit="s", low=0.0),
                Panel("Ticks and samples a second",
                      [Query("rate(galen_watch_ticks_total[$__rate_interval])",
                             f"ticks {by_instance}"),
                       Query("rate(galen_watch_samples_total[$__rate_interval])",
                             f"samples {by_instance}")], low=0.0),
                Panel("Parts that fail",
                      [Query("increase(galen_watch_part_failures_total[$__rate_interval])",
                             "{{part}}"),
                       Query("galen_export_part_readable == 0", "unreadable {{part}}")], low=0.0),
                Panel("Series that detection watches",
                      [Query("galen_watch_series", by_instance)], low=0.0),
                Panel("Events in the journal",
                      [Query("sum by (kind) (increase(galen_journal_events_total"
                             "[$__rate_interval])) > 0", "{{kind}}")], low=0.0),
            ]),
            Row("Collectors", [
                _signal("scrape_success", '{collector!=""}', "{{collector}}"),
                _signal("scrape_duration_seconds", '{collector!=""}', "{{collector}}"),
                _signal("scrape_age_seconds", '{collector!=""}', "{{collector}}"),
            ]),
            Row("Detection", [
                Panel("Normal values called unusual, over the nominal rate",
                      [Query("increase(galen_detection_normal_values_unusual_total[6h])"
                             " / (increase(galen_detection_normal_values_total[6h]) > 10000)"
                             " / galen_detection_nominal_rate_ratio", "{{detector}}")],
                      low=0.0, description="1 is what the settings say; above 3 alarms are too many"),
                Panel("The same of the worst series",
                      [Query("galen_detection_worst_rate_ratio / on (instance, job, detector)"
                             " group_left () galen_detection_nominal_rate_ratio",
                             "{{detector}} {{entity}} {{signal}}")], low=0.0),
                Panel("Configuration that holds",
                      [Query("galen_config_last_reload_successful", by_instance)],
                      low=0.0, high=1.0, description="0: the newest was refused or rolled back"),
            ]),
            Row("Store", [
                Panel("Size", [Query("galen_store_size_bytes", by_instance)], unit="bytes",
                      low=0.0),
                Panel("Series", [Query("galen_store_series", by_instance)], low=0.0),
                Panel("Age of the newest sample",
                      [Query("time() - galen_store_newest_timestamp_seconds", by_instance)],
                      unit="s", low=0.0),
            ]),
            Row("Telling and sending", [
                Panel("Messages that wait",
                      [Query("galen_alert_messages_pending", "{{channel}}")], low=0.0),
                Panel("Samples that agents keep",
                      [Query("galen_agent_waiting_samples", f"waiting {by_instance}"),
                       Query("galen_agent_parked_samples", f"refused {by_instance}")], low=0.0),
                Panel("Samples that agents lost",
                      [Query("increase(galen_agent_dropped_samples_total[$__rate_interval])",
                             by_instance)], low=0.0),
            ]),
        ],
    )  # fmt: skip
