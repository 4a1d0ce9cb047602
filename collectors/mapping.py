"""What series of any known exporter are about, and how series of one entity are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collectors.entities import FLEET, entity
from collectors.signals import Bad, Layer, Signal, catalogue

# The labels by which exporters say what a number is about; the first that is there wins.
HOST_LABELS = ("host", "Hostname", "nodename", "node", "instance")
GPU_LABELS = ("gpu_id", "gpu", "gpu_uuid", "UUID", "uuid")
MIG_LABEL = "GPU_I_ID"
SERVICE_LABELS = ("service", "model_name", "model", "job")
MODEL_LABELS = ("model_name", "model")
COLLECTOR_LABELS = ("collector", "job", "instance")
_DESCRIPTIVE_LABELS = {
    "UUID": "uuid",
    "gpu_uuid": "uuid",
    "uuid": "uuid",
    "modelName": "name",
    "GPU_I_PROFILE": "mig_profile",
    "model_name": "model",
    "model": "model",
    "simulated": "simulated",
}
_ADDITIVE_UNITS = frozenset(
    {
        "requests", "count", "bytes", "bytes/second", "tokens/second", "requests/second", "1/second",
        "percent of a core", "tokens", "joules",
    }
)  # fmt: skip
_HOST_LAYERS = frozenset({Layer.HOST, Layer.STORAGE, Layer.NETWORK})


@dataclass(frozen=True, slots=True)
class EntityNamer:
    """Names the entity of a series from its labels.

    ``service`` set puts every service-side series on that service and sums over its models; unset, the
    labels name the service, and ``fallback`` where they do not. ``replica`` says which one of several.
    """

    host: str = "unknown"
    service: str | None = None
    fallback: str | None = None
    replica: str | None = None

    def name(self, layer: Layer, labels: Mapping[str, str]) -> str:
        """Return the entity of a series of a signal of a layer."""
        if layer is Layer.GPU:
            return self._gpu(labels)
        if layer in _HOST_LAYERS:
            return entity("host", self._host(labels))
        if layer is Layer.MONITORING:
            collector = _first(labels, COLLECTOR_LABELS)
            return entity("collector", collector) if collector else FLEET
        service = (
            labels.get("service")
            or self.service
            or _first(labels, MODEL_LABELS)
            or self.fallback
            or labels.get("job")
        )
        if not service:
            return FLEET
        return entity("service", service, *(("replica", self.replica) if self.replica else ()))

    def name_of(self, signal: str, labels: Mapping[str, str]) -> str:
        """Return the entity of a series of a signal; labels tell about one that is not known."""
        known = catalogue().get(signal)
        if known is not None:
            return self.name(known.layer, labels)
        if _first(labels, GPU_LABELS):
            return self.name(Layer.GPU, labels)
        if _first(labels, SERVICE_LABELS[:-1]):
            return self.name(Layer.SERVICE, labels)
        return self.name(Layer.HOST, labels) if _first(labels, HOST_LABELS) else FLEET

    def _gpu(self, labels: Mapping[str, str]) -> str:
        gpu = _first(labels, GPU_LABELS)
        if not gpu:
            return entity("host", self._host(labels))
        instance = labels.get(MIG_LABEL, "")
        mig = ("mig", instance) if instance else ()
        return entity("host", self._host(labels), "gpu", gpu, *mig)

    def _host(self, labels: Mapping[str, str]) -> str:
        host = _first(labels, HOST_LABELS) or self.host
        # A Prometheus instance is `host:port`; an IPv6 address keeps its brackets.
        name, colon, port = host.rpartition(":")
        return name if colon and port.isdigit() and name else host


def together(signal: Signal, left: float, right: float) -> float:
    """Put two series of one entity together: add what can be added, else take the worse."""
    if is_additive(signal):
        return left + right
    return min(left, right) if signal.bad_direction is Bad.DOWN else max(left, right)


def is_additive(signal: Signal) -> bool:
    """Say whether values of parts add up to the value of the whole.

    A GPU has no parts here: exporters repeat its numbers for every pod that shares it.
    """
    return signal.unit in _ADDITIVE_UNITS and signal.layer is not Layer.GPU


def described(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that describe an entity, by the names that samples give them."""
    return {
        ours: labels[theirs] for theirs, ours in _DESCRIPTIVE_LABELS.items() if labels.get(theirs)
    }


def _first(labels: Mapping[str, str], wanted: Sequence[str]) -> str:
    return next((labels[label] for label in wanted if labels.get(label)), "")
