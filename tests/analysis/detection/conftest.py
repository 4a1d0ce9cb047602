"""A small inference service under changing load, with faults: what the live detection is tried on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from analysis.detection.contract import Detections
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.history import History
from collectors.contract import Sample

SERVICE, GPU, HOST = "service/llm", "host/box1/gpu/0", "host/box1"
START_SECONDS = 1_800_000_000.0
SUBSTEPS = 20


@dataclass
class Request:
    arrived: float
    tokens: float
    started: float = math.nan
    first: float = math.nan


@dataclass
class LoadedService:
    """A queueing model in steps of a twentieth of a second, sampled once a second.

    The rate of requests swings by ``swing`` from its lowest to its highest over five minutes, like a
    day in fast motion; arrivals, lengths, temperatures and memory have noise of their own.
    """

    seed: int = 0
    swing: float = 4.0
    mean_rate: float = 10.0
    slots: int = 16
    max_queue: int = 64
    fault: str | None = None
    fault_at: float = math.inf
    fault_until: float = math.inf
    time: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    step_age: float = 0.0
    leaked: float = 0.0
    temperature: float = 45.0
    cpu: float = 15.0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.phase = self.random.uniform(0, 2 * math.pi)

    def faulty(self, name: str) -> bool:
        return self.fault == name and self.fault_at <= self.time < self.fault_until

    def rate(self) -> float:
        swing = 0.5 * math.log(self.swing) * math.sin(2 * math.pi * self.time / 300 + self.phase)
        return self.mean_rate * math.exp(swing) * (6.0 if self.faulty("surge") else 1.0)

    def second(self) -> list[Sample]:
        arrived = rejected = 0
        tokens = steps = 0.0
        finished: list[tuple[float, float, float]] = []
        busy = 0
        for _ in range(SUBSTEPS):
            dt = 1.0 / SUBSTEPS
            self.time += dt
            for _ in range(self.random.poisson(self.rate() * dt)):
                arrived += 1
                if len(self.waiting) >= self.max_queue:
                    rejected += 1
                else:
                    length = float(self.random.integers(16, 64))
                    self.waiting.append(Request(self.time, length))
            while self.waiting and len(self.running) < self.slots:
                request = self.waiting.popleft()
                request.started = self.time
                self.running.append(request)
            if not self.running or self.faulty("hang"):
                self.step_age = self.step_age + dt if self.running else 0.0
                continue
            busy += 1
            step = self.step_seconds()
            self.step_age = 0.0
            steps += dt / step
            for request in self.running:
                if math.isnan(request.first):
                    request.first = self.time + step
                done = min(request.tokens, dt / step)
                request.tokens -= done
                tokens += done
            for request in [r for r in self.running if r.tokens <= 0]:
                self.running.remove(request)
                waited = request.started - request.arrived
                first = request.first - request.arrived
                finished.append((self.time - request.arrived, waited, first))
        if self.faulty("leak"):
            self.leaked += 30e6
        return list(self.samples(arrived, rejected, tokens, steps, busy / SUBSTEPS, finished))

    def step_seconds(self) -> float:
        slow = 5.0 if self.faulty("slow") else 2.0 if self.faulty("throttle") else 1.0
        return (0.008 + 0.0003 * len(self.running)) * slow * self.random.lognormal(0, 0.05)

    def samples(
        self,
        arrived: int,
        rejected: int,
        tokens: float,
        steps: float,
        busy: float,
        finished: list[tuple[float, float, float]],
    ) -> Iterator[Sample]:
        now = START_SECONDS + round(self.time)
        noise = self.random.normal

        def sample(entity: str, signal: str, value: float) -> Sample:
            return Sample(now, entity, signal, float(value))

        if finished:
            latency, wait, first = (np.array(column) for column in zip(*finished, strict=True))
            yield sample(SERVICE, "llm_request_latency_seconds", np.quantile(latency, 0.95))
            yield sample(SERVICE, "llm_request_latency_p50_seconds", np.median(latency))
            yield sample(SERVICE, "llm_request_latency_p99_seconds", latency.max())
            yield sample(SERVICE, "llm_queue_wait_seconds", np.quantile(wait, 0.95))
            yield sample(SERVICE, "llm_time_to_first_token_seconds", np.quantile(first, 0.95))
            yield sample(SERVICE, "llm_error_ratio", float(self.random.random() < 0.002))
        if arrived:
            yield sample(SERVICE, "llm_rejected_ratio", rejected / arrived)
        if steps:
            yield sample(SERVICE, "engine_step_seconds", busy / steps)
            yield sample(SERVICE, "llm_batch_size", tokens / steps)
        yield sample(SERVICE, "llm_queue_depth", len(self.waiting))
        yield sample(SERVICE, "llm_active_requests", len(self.waiting) + len(self.running))
        yield sample(SERVICE, "llm_requests_per_second", arrived)
        yield sample(SERVICE, "llm_tokens_per_second", tokens)
        yield sample(SERVICE, "llm_slots", self.slots)
        yield sample(SERVICE, "llm_slot_usage_ratio", len(self.running) / self.slots)
        yield sample(SERVICE, "llm_cache_hit_ratio", np.clip(0.5 + noise(0, 0.05), 0, 1))
        yield sample(SERVICE, "engine_steps_per_second", steps)
        yield sample(SERVICE, "engine_step_age_seconds", self.step_age)
        yield sample(SERVICE, "engine_busy_ratio", busy)
        memory = 400e6 + self.leaked + 2e6 * len(self.running) + noise(0, 1e6)
        memory += 60e6 * (1 - math.exp(-self.time / 20))
        yield sample(SERVICE, "engine_resident_memory_bytes", memory)
        yield sample(SERVICE, "engine_cpu_percent", 5 + 90 * busy + noise(0, 3))
        yield sample(SERVICE, "engine_up", 1)
        yield sample(SERVICE, "engine_crashes", float(self.faulty("crash")))
        for layer in ("device", "runtime", "engine", "context", "canary"):
            yield sample(SERVICE, f"health_{layer}_ok", 1)
        if round(self.time) % 5 == 0:
            hung = self.faulty("hang")
            yield sample(SERVICE, "canary_success", 0 if hung else 1)
            yield sample(SERVICE, "canary_output_match", 0 if self.faulty("canary") else 1)
            wait = len(self.waiting) * 0.01
            yield sample(SERVICE, "canary_latency_seconds", 8 * self.step_seconds() + wait)
        yield from self.machine(sample, busy)

    def machine(self, sample: Callable[[str, str, float], Sample], busy: float) -> Iterator[Sample]:
        noise = self.random.normal
        utilisation = float(
            np.clip(100 * busy * (0.3 + 0.7 * len(self.running) / self.slots), 0, 100)
        )
        power = 60 + 3.2 * utilisation + noise(0, 6)
        self.temperature += (35 + 0.13 * power - self.temperature) / 25 + noise(0, 0.2)
        self.cpu += (12 + 0.5 * utilisation + noise(0, 6) - self.cpu) / 2
        yield sample(GPU, "gpu_utilization_percent", round(utilisation))
        yield sample(GPU, "gpu_power_usage_watts", power)
        yield sample(GPU, "gpu_power_limit_watts", 400)
        yield sample(GPU, "gpu_temperature_celsius", round(self.temperature))
        yield sample(GPU, "gpu_temperature_margin_celsius", round(88 - self.temperature))
        clock = 1200 if self.faulty("throttle") else 1980 - 15 * self.random.integers(0, 6)
        yield sample(GPU, "gpu_sm_clock_mhz", clock)
        yield sample(GPU, "gpu_memory_used_bytes", 20e9 + 40e6 * len(self.running))
        yield sample(GPU, "gpu_throttle_thermal", float(self.faulty("throttle")))
        yield sample(GPU, "gpu_throttle_power", float(power > 330))
        yield sample(GPU, "gpu_available", 1)
        yield sample(GPU, "gpu_ecc_uncorrectable_total", 3)
        yield sample(HOST, "host_cpu_percent", np.clip(self.cpu + abs(noise(0, 4)), 0, 100))
        yield sample(HOST, "host_load", max(0.0, self.cpu / 30 + noise(0, 0.1)))
        yield sample(HOST, "host_memory_available_bytes", 60e9 - self.leaked + noise(0, 40e6))
        yield sample(HOST, "host_memory_used_ratio", 0.4 + noise(0, 0.003))
        yield sample(HOST, "host_disk_used_ratio", 0.5)
        yield sample(HOST, "host_network_throughput_bytes", 3e3 * utilisation + abs(noise(0, 2e4)))
        for name in ("service", "gpu", "host"):
            duration = 0.02 * self.random.lognormal(0, 0.5)
            yield sample(f"collector/{name}", "scrape_success", 1)
            yield sample(f"collector/{name}", "scrape_duration_seconds", duration)


Replay = Callable[..., list[Detections]]


def run(
    service: LoadedService,
    seconds: int,
    settings: DetectionSettings | None = None,
) -> list[Detections]:
    """Run a service through a new pipeline; forests are fitted in the same thread."""
    history = History(capacity_ticks=60)
    pipeline = DetectionPipeline(
        settings or DetectionSettings(), history, executor=SameThreadExecutor()
    )
    results = []
    for _ in range(seconds):
        samples = service.second()
        now = START_SECONDS + round(service.time)
        results.append(pipeline.tick(now, history.append(now, samples)))
    return results


@pytest.fixture
def loaded_service() -> type[LoadedService]:
    return LoadedService


@pytest.fixture
def replay() -> Replay:
    return run
