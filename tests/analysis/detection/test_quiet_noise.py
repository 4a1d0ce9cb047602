"""Six hours of fault-free noise of several kinds raise next to nothing."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.detection.contract import FloatArray
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.history import History
from collectors.contract import Sample, SeriesKey

GPU = {
    "gpu_utilization_percent": (60.0, "wandering"),
    "gpu_temperature_celsius": (60.0, "coarse"),
    "gpu_power_usage_watts": (350.0, "wandering"),
    "gpu_sm_clock_mhz": (1900.0, "steps"),
    "gpu_memory_used_bytes": (4e10, "drifting"),
}
HOST = {
    "host_cpu_percent": (30.0, "wandering"),
    "host_memory_available_bytes": (6e10, "drifting"),
    "host_disk_free_bytes": (5e11, "sawtooth"),
    "host_network_throughput_bytes": (3e7, "skewed"),
}
REPLICA = {
    "llm_requests_per_second": (20.0, "counted"),
    "llm_request_latency_seconds": (0.4, "skewed"),
    "llm_queue_depth": (2.0, "counted"),
    "llm_tokens_per_second": (800.0, "daily"),
    "llm_time_to_first_token_seconds": (0.2, "heavy"),
    "engine_step_seconds": (0.01, "plain"),
}
SERIES = {
    SeriesKey(f"{place}/{number}", signal): kind
    for place, signals in (("host/a/gpu", GPU), ("host", HOST), ("service/llm/replica", REPLICA))
    for number in range(6)
    for signal, kind in signals.items()
}


class Noise:
    """Values of all series, one row a call."""

    def __init__(self, cadence: float, seed: int) -> None:
        self.cadence = cadence
        self.random = np.random.default_rng(seed)
        self.usual = np.array([usual for usual, _ in SERIES.values()])
        self.kinds = np.array([kind for _, kind in SERIES.values()])
        self.slow, self.drift = np.zeros((2, len(SERIES)))
        self.disk = self.random.uniform(0, 1, len(SERIES))
        self.seconds = 0.0

    def __call__(self) -> FloatArray:
        self.seconds += self.cadence
        new, other = self.random.normal(size=(2, len(SERIES)))
        kept, left = np.exp(-self.cadence / 30), np.exp(-self.cadence / 7200)
        self.slow = kept * self.slow + np.sqrt(1 - kept**2) * new
        self.drift = left * self.drift + np.sqrt(1 - left**2) * other
        self.disk = (self.disk + self.cadence / 21600) % 1.0
        day = np.exp(0.8 * np.sin(2 * np.pi * self.seconds / 86400))
        factors = {
            "plain": 1 + 0.05 * new,
            "wandering": 1 + 0.1 * self.slow,
            "drifting": 1 + 0.02 * self.drift + 0.002 * new,
            "skewed": np.exp(0.2 * new),
            "heavy": 1 + 0.05 * self.random.standard_t(3, len(SERIES)),
            "daily": day * np.exp(0.1 * new),
            "sawtooth": 1 - 0.1 * self.disk,
            "counted": self.random.poisson(self.usual) / self.usual,
            "coarse": np.round(60 + 1.5 * self.slow) / 60,
            "steps": 1 - 15 / 1900 * self.random.integers(0, 6, len(SERIES)),
        }
        chosen = np.select([self.kinds == kind for kind in factors], list(factors.values()))
        return np.asarray(self.usual * chosen)


@pytest.mark.parametrize("cadence", [15.0, 60.0])
def test_noise_raises_next_to_nothing(cadence: float) -> None:
    history = History(capacity_ticks=20)
    settings = DetectionSettings.model_validate({"forest": {"enabled": False}})
    pipeline = DetectionPipeline(settings, history, executor=SameThreadExecutor())
    noise = Noise(cadence, seed=int(cadence))
    raised: list[tuple[int, SeriesKey, tuple[str, ...]]] = []
    before: set[SeriesKey] = set()
    shifts = 0
    for tick in range(int(6 * 3600 / cadence)):
        now = 1_800_000_000.0 + tick * cadence
        samples = [Sample(now, *key, float(v)) for key, v in zip(SERIES, noise(), strict=True)]
        result = pipeline.tick(now, history.append(now, samples))
        active = {SeriesKey(each.entity, each.signal): each for each in result.anomalies}
        raised += [(tick, key, active[key].detectors) for key in active.keys() - before]
        before = set(active)
        shifts += len(result.shifts)
    assert len(raised) <= 1, raised  # 22 series-days
    assert shifts == 0
