"""One GPU that several sources speak of: who is believed.

Galen's own NVML collector, a dcgm-exporter and Triton can all see one GPU, under different names of its
host and with different numbers. Its UUID tells that it is the same. Then for each signal one source is
believed, in this order:

1. Galen's own reading through NVML, which is first-hand and knows a lost GPU from a silent driver;
2. dcgm-exporter, which reads profiling counters that NVML does not offer;
3. Triton, which repeats a few numbers of NVML;
4. any other.

What the believed source does not give comes from the next one, on the entity that the first of them
uses: one GPU is one entity. A source that falls silent loses its claim after a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from collectors.contract import Sample

log = structlog.get_logger(__name__)

OWN = ""
"""The exporter of samples that Galen measured itself."""
ORDER: Sequence[str] = (OWN, "dcgm", "triton")
_FORGET_SECONDS = 60.0
_MAX_GPUS = 100_000


def rank_of(exporter: str) -> int:
    """Return how early a source comes in the order; the lower the rather it is believed."""
    return ORDER.index(exporter) if exporter in ORDER else len(ORDER)


@dataclass(slots=True)
class _Claim:
    exporter: str
    entity: str
    seen_seconds: float


@dataclass(slots=True)
class _Gpu:
    """Who speaks of one GPU.

    A MIG instance has a UUID of its own in NVML and that of its GPU in DCGM, where it goes with the GPU.
    """

    names: dict[tuple[str, str], _Claim] = field(default_factory=dict)
    signals: dict[tuple[str, str], _Claim] = field(default_factory=dict)
    """By signal and MIG instance."""
    said: set[tuple[str, str]] = field(default_factory=set)


class GpuClaims:
    """Settles who is believed about each GPU, from the samples of all sources together.

    Args:
        forget_seconds: how long a source that is silent keeps its claim.
    """

    def __init__(self, *, forget_seconds: float = _FORGET_SECONDS) -> None:
        self._forget_seconds = forget_seconds
        self._gpus: dict[str, _Gpu] = {}

    def settle(self, samples: Iterable[Sample]) -> list[Sample]:
        """Return the samples with one entity for each GPU and one source for each of its signals."""
        samples = list(samples)
        for sample in samples:
            if uuid := _uuid(sample):
                self._hear(uuid, sample)
        return [kept for sample in samples if (kept := self._kept(sample)) is not None]

    def _hear(self, uuid: str, sample: Sample) -> None:
        if uuid not in self._gpus and len(self._gpus) >= _MAX_GPUS:
            self._gpus.clear()  # UUIDs without end are no GPUs
        gpu = self._gpus.setdefault(uuid, _Gpu())
        exporter, now = sample.labels.get("exporter", OWN), sample.time_seconds
        entity, mig = _parted(sample.entity)
        claim = _Claim(exporter, entity, now)
        gpu.names[exporter, entity] = claim
        known = gpu.signals.get((sample.signal, mig))
        if known is None or self._yields(known, claim):
            gpu.signals[sample.signal, mig] = claim

    def _yields(self, known: _Claim, other: _Claim) -> bool:
        """Say whether a claim gives way: to an earlier source, to itself, or after silence."""
        same = (known.exporter, known.entity) == (other.exporter, other.entity)
        silent = other.seen_seconds - known.seen_seconds > self._forget_seconds
        return same or silent or rank_of(other.exporter) < rank_of(known.exporter)

    def _kept(self, sample: Sample) -> Sample | None:
        uuid = _uuid(sample)
        if not uuid:
            return sample
        gpu = self._gpus[uuid]
        claims = gpu.names
        if len(claims) == 1:
            return sample
        exporter = sample.labels.get("exporter", OWN)
        entity, mig = _parted(sample.entity)
        best = self._best(gpu, sample.time_seconds)
        if (best.exporter, best.entity) != (exporter, entity):
            self._say(uuid, gpu, best, exporter, entity)
        chosen = gpu.signals[sample.signal, mig]
        if (chosen.exporter, chosen.entity) != (exporter, entity):
            return None
        return sample if entity == best.entity else sample._replace(entity=best.entity + mig)

    def _best(self, gpu: _Gpu, now_seconds: float) -> _Claim:
        alive = {
            key: claim
            for key, claim in gpu.names.items()
            if now_seconds - claim.seen_seconds <= self._forget_seconds
        }
        gpu.names = alive
        return min(alive.values(), key=lambda claim: (rank_of(claim.exporter), claim.entity))

    @staticmethod
    def _say(uuid: str, gpu: _Gpu, best: _Claim, exporter: str, entity: str) -> None:
        if (exporter, entity) in gpu.said:
            return
        gpu.said.add((exporter, entity))
        log.warning(
            "gpu_claimed_twice",
            uuid=uuid,
            believed=best.exporter or "nvml",
            on=best.entity,
            beside=exporter or "nvml",
            which_calls_it=entity,
        )


def _uuid(sample: Sample) -> str:
    labels: Mapping[str, str] = sample.labels
    # Simulated GPUs and hosts have none; most samples are not about GPUs at all.
    return labels.get("uuid", "") if labels and "/gpu/" in sample.entity else ""


def _parted(entity: str) -> tuple[str, str]:
    """Return the GPU and what of its name says which MIG instance is meant."""
    gpu, slash, mig = entity.partition("/mig/")
    return gpu, slash + mig
