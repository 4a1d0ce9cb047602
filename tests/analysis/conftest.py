"""A small world of series with normal ranges, on which scenarios are played."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from analysis.detection.contract import Detections, SignalState
from analysis.detection.limits import bundled_limits
from analysis.findings import Anomaly, Direction
from collectors.contract import SeriesKey
from collectors.signals import Kind, catalogue, unit_of

SERVICE, HOST, GPU = "service/llm", "host/box1", "host/box1/gpu/0"
SERVICE_COLLECTOR, CANARY, GPU_COLLECTOR = (
    "collector/service-llm",
    "collector/canary-llm",
    "collector/gpu-nvml",
)

NORMAL: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    SERVICE: {
        "llm_requests_per_second": (12, 8, 16),
        "llm_tokens_per_second": (600, 400, 800),
        "llm_error_ratio": (0, 0, 0.02),
        "llm_client_error_ratio": (0.01, 0, 0.03),
        "llm_rejected_ratio": (0, 0, 0.01),
        "llm_cancelled_ratio": (0, 0, 0.02),
        "llm_request_latency_seconds": (0.4, 0.2, 0.7),
        "llm_time_to_first_token_seconds": (0.05, 0.02, 0.1),
        "llm_time_per_output_token_seconds": (0.006, 0.004, 0.01),
        "llm_queue_depth": (1, 0, 4),
        "llm_queue_wait_seconds": (0.01, 0, 0.05),
        "llm_active_requests": (4, 1, 9),
        "llm_slot_usage_ratio": (0.4, 0.1, 0.9),
        "llm_cache_hit_ratio": (0.5, 0.3, 0.7),
        "llm_batch_size": (4, 1, 8),
        "engine_up": (1, 1, 1),
        "engine_state": (1, 0, 1),
        "engine_steps_per_second": (150, 80, 220),
        "engine_step_age_seconds": (0, 0, 0.3),
        "engine_step_seconds": (0.005, 0.003, 0.009),
        "engine_busy_ratio": (0.5, 0.2, 0.8),
        "engine_crashes": (0, 0, 0),
        "engine_hang_kills": (0, 0, 0),
        "engine_planned_restarts": (0, 0, 0),
        "engine_load_failures": (0, 0, 0),
        "engine_invalid_outputs": (0, 0, 0),
        "engine_resident_memory_bytes": (4e8, 3.8e8, 4.4e8),
        "engine_cpu_percent": (60, 20, 110),
        "health_device_ok": (1, 1, 1),
        "health_runtime_ok": (1, 1, 1),
        "health_engine_ok": (1, 1, 1),
        "health_context_ok": (1, 1, 1),
        "health_canary_ok": (1, 1, 1),
        "service_degradation_level": (0, 0, 0),
        "canary_success": (1, 1, 1),
        "canary_latency_seconds": (0.2, 0.1, 0.4),
        "canary_output_match": (1, 1, 1),
    },
    HOST: {
        "host_cpu_percent": (40, 20, 65),
        "host_load": (0.6, 0.2, 1.2),
        "host_memory_available_bytes": (1e10, 9e9, 1.1e10),
        "host_memory_used_ratio": (0.4, 0.35, 0.45),
        "host_disk_used_ratio": (0.5, 0.48, 0.52),
        "host_disk_free_bytes": (5e10, 4.9e10, 5.1e10),
        "gpu_driver_state": (0, 0, 0),
        "gpu_driver_library_mismatch": (0, 0, 0),
    },
    GPU: {
        "gpu_utilization_percent": (50, 20, 80),
        "gpu_memory_used_bytes": (1e10, 9e9, 1.1e10),
        "gpu_memory_used_ratio": (0.6, 0.55, 0.65),
        "gpu_temperature_celsius": (60, 50, 70),
        "gpu_temperature_margin_celsius": (25, 15, 35),
        "gpu_power_usage_watts": (200, 120, 280),
        "gpu_power_limit_watts": (350, 350, 350),
        "gpu_sm_clock_mhz": (1700, 1600, 1800),
        "gpu_throttle_reason": (0, 0, 0),
        "gpu_throttle_thermal": (0, 0, 0),
        "healing_actions_in_force": (0, 0, 0),
        "gpu_throttle_power": (0, 0, 0),
        "gpu_throttle_power_brake": (0, 0, 0),
        "gpu_xid": (0, 0, 0),
        "gpu_ecc_uncorrectable_total": (0, 0, 0),
        "gpu_ecc_correctable_total": (0, 0, 0),
        "gpu_row_remap_pending": (0, 0, 0),
        "gpu_available": (1, 1, 1),
        "gpu_state": (0, 0, 0),
        "gpu_recovery_action": (0, 0, 0),
        "gpu_recommended_action": (0, 0, 0),
        "gpu_row_remap_failed": (0, 0, 0),
        "gpu_row_remap_banks_exhausted": (0, 0, 0),
        "gpu_retired_pages_pending": (0, 0, 0),
        "gpu_nvlink_errors_total": (0, 0, 0),
        "gpu_nvlink_links_active": (18, 18, 18),
        "gpu_pcie_link_width_ratio": (1, 1, 1),
        "gpu_pcie_replay_total": (0, 0, 0),
        "gpu_processes_vanished": (0, 0, 0),
        "gpu_driver_call_seconds": (0.002, 0.001, 0.01),
    },
    **{
        name: {"scrape_success": (1, 1, 1), "scrape_duration_seconds": (0.01, 0.005, 0.05)}
        for name in (SERVICE_COLLECTOR, CANARY, GPU_COLLECTOR, "collector/host")
    },
}


@dataclass
class World:
    """States of every series: normal unless a value was set."""

    values: dict[SeriesKey, float | None] = field(default_factory=dict)
    onsets: dict[SeriesKey, float] = field(default_factory=dict)
    quiet: set[SeriesKey] = field(default_factory=set)
    score: float = 4.0
    normal: Mapping[str, Mapping[str, tuple[float, float, float]]] = field(
        default_factory=lambda: NORMAL
    )

    def set(self, onset: float = 990.0, entity: str = SERVICE, /, **values: float | None) -> World:
        """Let series of one entity deviate from ``onset`` on."""
        for signal, value in values.items():
            key = SeriesKey(entity, signal)
            assert signal in self.normal[entity], key
            self.values[key] = value
            self.onsets[key] = onset
        return self

    def blind(self, *entities: str, onset: float = 990.0) -> World:
        """Let everything but the collectors' own series of some entities be absent."""
        for entity in entities:
            for signal in self.normal[entity]:
                if not signal.startswith("canary_"):
                    self.set(onset, entity, **{signal: None})
        return self

    def lose_gpu(self, state: int, onset: float = 990.0) -> World:
        """Let the GPU tell nothing but a state, as its collector does."""
        for signal in NORMAL[GPU]:
            if signal not in {"gpu_xid", "gpu_recommended_action"}:
                self.set(onset, GPU, **{signal: None})
        available = None if state in {6, 7} else 0.0
        return self.set(onset, GPU, gpu_state=state, gpu_available=available)

    def state(self, entity: str, signal: str) -> SignalState:
        """Return one series' state."""
        key = SeriesKey(entity, signal)
        expected, low, high = self.normal[entity][signal]
        deviates = key in self.values
        observed = self.values.get(key, expected)
        direction, score = Direction.NORMAL, 0.2
        if deviates:
            direction, score = self._direction(signal, observed, low, high), self.score
        active = deviates and direction is not Direction.NORMAL and key not in self.quiet
        return SignalState(
            key=key,
            observed=observed,
            age_seconds=0.0,
            expected=expected,
            low=low,
            high=high,
            score=score if direction is not Direction.NORMAL else 0.2,
            direction=direction,
            onset_seconds=self.onsets.get(key) if active else None,
            active=active,
            warmed_up=True,
            detectors=("test",) if active else (),
        )

    @staticmethod
    def _direction(signal: str, value: float | None, low: float, high: float) -> Direction:
        if value is None:
            return Direction.ABSENT
        if catalogue()[signal].kind is Kind.EVENT and value > 0:
            return Direction.EVENT
        # Detection does not raise what has no bad direction, such as a state or a planned restart,
        # unless a rule of its own does.
        if catalogue()[signal].bad_direction == "none" and signal not in bundled_limits():
            return Direction.NORMAL
        if value > high:
            return Direction.UP
        return Direction.DOWN if value < low else Direction.NORMAL

    def detections(self, now: float = 1000.0) -> Detections:
        """Return the tick."""
        states = {
            SeriesKey(entity, signal): self.state(entity, signal)
            for entity, signals in self.normal.items()
            for signal in signals
        }
        anomalies = [
            Anomaly(
                entity=state.key.entity,
                signal=state.key.signal,
                unit=unit_of(state.key.signal),
                time_seconds=now,
                onset_seconds=state.onset_seconds or now,
                score=state.score,
                direction=state.direction,
                observed=state.observed,
                expected=state.expected,
                low=state.low,
                high=state.high,
                detectors=state.detectors,
            )
            for state in states.values()
            if state.active
        ]
        return Detections(now, anomalies, states)


SCENARIOS: dict[str, Callable[[], World]] = {
    "engine_hang": lambda: World().set(
        engine_step_age_seconds=6,
        engine_state=4,
        engine_steps_per_second=0,
        llm_tokens_per_second=0,
        engine_busy_ratio=0.0,
        llm_queue_depth=31,
        llm_active_requests=40,
        canary_success=0,
        health_engine_ok=0,
    ),
    "engine_crash": lambda: World().set(
        engine_crashes=1, engine_up=0, engine_state=5, health_engine_ok=0, llm_error_ratio=0.4
    ),
    "model_load_failure": lambda: World().set(
        engine_load_failures=2, engine_up=0, engine_state=6, canary_success=0, llm_error_ratio=1
    ),
    "engine_slow": lambda: World().set(
        engine_step_seconds=0.08,
        llm_time_per_output_token_seconds=0.09,
        llm_request_latency_seconds=4,
        llm_time_to_first_token_seconds=0.6,
        canary_latency_seconds=2,
        llm_active_requests=14,
    ),
    "corrupt_output": lambda: World().set(
        canary_output_match=0, health_canary_ok=0, engine_invalid_outputs=3
    ),
    "traffic_surge": lambda: (
        World()
        .set(
            llm_requests_per_second=40,
            llm_tokens_per_second=1100,
            llm_queue_depth=40,
            llm_queue_wait_seconds=2,
            llm_request_latency_seconds=2.5,
            llm_active_requests=60,
            llm_slot_usage_ratio=1,
            llm_rejected_ratio=0.2,
        )
        .set(990.0, GPU, gpu_utilization_percent=99)
        .set(990.0, HOST, host_cpu_percent=90)
    ),
    "client_errors": lambda: World().set(llm_client_error_ratio=0.6),
    "host_memory_leak": lambda: World().set(engine_resident_memory_bytes=9e8),
    "host_cpu_contention": lambda: (
        World()
        .set(990.0, HOST, host_cpu_percent=99, host_load=6)
        .set(
            engine_step_seconds=0.03,
            llm_request_latency_seconds=1.5,
            llm_time_per_output_token_seconds=0.04,
        )
    ),
    "host_memory_pressure": lambda: World().set(990.0, HOST, host_memory_available_bytes=2e8),
    "disk_full": lambda: World().set(
        990.0, HOST, host_disk_used_ratio=0.99, host_disk_free_bytes=1e8
    ),
    "gpu_overload": lambda: (
        World()
        .set(990.0, GPU, gpu_utilization_percent=100, gpu_power_usage_watts=345)
        .set(
            llm_request_latency_seconds=2.5,
            llm_time_to_first_token_seconds=0.8,
            llm_queue_depth=12,
        )
    ),
    "gpu_memory_pressure": lambda: (
        World()
        .set(990.0, GPU, gpu_memory_used_ratio=0.99, gpu_memory_used_bytes=1.6e10)
        .set(llm_time_per_output_token_seconds=0.03)
    ),
    "gpu_underutilization": lambda: (
        World()
        .set(980.0, GPU, gpu_utilization_percent=5, gpu_power_usage_watts=80)
        .set(980.0, llm_batch_size=0.5, llm_queue_depth=20, llm_queue_wait_seconds=1)
    ),
    "gpu_thermal_throttle": lambda: World().set(
        990.0,
        GPU,
        gpu_temperature_celsius=92,
        gpu_temperature_margin_celsius=0,
        gpu_throttle_thermal=1,
        gpu_throttle_reason=0x20,
        gpu_sm_clock_mhz=1200,
    ),
    "gpu_power_cap": lambda: World().set(
        990.0,
        GPU,
        gpu_power_limit_watts=150,
        gpu_throttle_power=1,
        gpu_throttle_reason=0x4,
        gpu_power_usage_watts=90,
        gpu_sm_clock_mhz=1100,
    ),
    "own_remedy": lambda: World().set(
        990.0,
        GPU,
        healing_actions_in_force=1,
        gpu_power_limit_watts=150,
        gpu_throttle_power=1,
        gpu_throttle_reason=0x4,
        gpu_power_usage_watts=90,
        gpu_sm_clock_mhz=1100,
    ),
    "gpu_power_brake": lambda: World().set(
        990.0, GPU, gpu_throttle_power_brake=1, gpu_throttle_reason=0x80, gpu_sm_clock_mhz=600
    ),
    "gpu_xid_fatal": lambda: (
        World().lose_gpu(2).set(990.0, GPU, gpu_xid=79, gpu_recommended_action=4)
    ),
    "gpu_reset_required": lambda: World().lose_gpu(1).set(990.0, GPU, gpu_recommended_action=3),
    "gpu_released": lambda: World().lose_gpu(7),
    "gpu_gone": lambda: World().lose_gpu(3),
    "gpu_hung": lambda: World().lose_gpu(5),
    "gpu_unreadable": lambda: World().lose_gpu(4),
    "gpu_driver_unusable": lambda: (
        World()
        .lose_gpu(6)
        .set(990.0, HOST, gpu_driver_state=2)
        .set(990.0, GPU_COLLECTOR, scrape_success=0)
    ),
    "gpu_driver_mismatch": lambda: World().set(990.0, HOST, gpu_driver_library_mismatch=1),
    "gpu_ecc_correctable": lambda: World().set(
        990.0, GPU, gpu_ecc_correctable_total=900, gpu_xid=92
    ),
    "gpu_memory_unrepairable": lambda: World().set(
        990.0, GPU, gpu_row_remap_failed=1, gpu_ecc_uncorrectable_total=3, gpu_xid=64
    ),
    "gpu_nvlink_fault": lambda: World().set(
        990.0, GPU, gpu_nvlink_errors_total=4000, gpu_nvlink_links_active=17
    ),
    "gpu_pcie_degraded": lambda: World().set(990.0, GPU, gpu_pcie_link_width_ratio=0.5),
    "gpu_memory_orphaned": lambda: World().set(990.0, GPU, gpu_processes_vanished=1),
    "gpu_xid_application": lambda: (
        World().set(990.0, GPU, gpu_xid=31).set(engine_crashes=1, engine_up=0, engine_state=5)
    ),
    "gpu_ecc": lambda: World().set(990.0, GPU, gpu_ecc_uncorrectable_total=2, gpu_xid=94),
    "gpu_driver_hang": lambda: (
        World()
        .lose_gpu(6)
        .set(990.0, HOST, gpu_driver_state=1)
        .set(990.0, GPU_COLLECTOR, scrape_success=0, scrape_duration_seconds=2.0)
    ),
    "collector_down": lambda: (
        World()
        .blind(SERVICE)
        .set(990.0, SERVICE_COLLECTOR, scrape_success=0, scrape_duration_seconds=2.0)
    ),
    "service_unreachable": lambda: (
        World().blind(SERVICE).set(990.0, SERVICE_COLLECTOR, scrape_success=0).set(canary_success=0)
    ),
    "planned_restart": lambda: World().set(
        engine_planned_restarts=1, engine_up=0, engine_state=2, llm_tokens_per_second=0
    ),
    "no_fault": lambda: (
        World()
        .set(llm_requests_per_second=22, llm_tokens_per_second=1000, llm_active_requests=11)
        .set(990.0, GPU, gpu_utilization_percent=85, gpu_power_usage_watts=300)
    ),
    "unknown": lambda: World().set(
        llm_error_ratio=0.3, canary_success=0, health_canary_ok=0, llm_cache_hit_ratio=0.0
    ),
}
"""One world for each cause of the catalogue: what it looks like when nothing else is wrong."""


@pytest.fixture
def scenarios() -> dict[str, Callable[[], World]]:
    return SCENARIOS


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def normal() -> Mapping[str, Mapping[str, tuple[float, float, float]]]:
    return NORMAL
