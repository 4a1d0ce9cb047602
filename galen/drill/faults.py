"""The faults of a drill, each injected at the place where it would happen, never by writing metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from collectors.gpu.control import SimulatedGpuControl
from galen.config import Settings
from galen.drill.traffic import Traffic
from galen.errors import ConfigError, GalenError
from galen.paths import StatePaths
from galen.stack import service_url

_ADMIN_DEADLINE_SECONDS = 5.0


class Patient:
    """The handles on a live stack that faults are injected through."""

    def __init__(
        self, base_url: str, admin_token: str, gpu: SimulatedGpuControl, traffic: Traffic
    ) -> None:
        self.gpu = gpu
        self.traffic = traffic
        self._client = httpx.Client(
            base_url=base_url,
            headers={"authorization": f"Bearer {admin_token}"},
            timeout=_ADMIN_DEADLINE_SECONDS,
        )

    @classmethod
    def of_stack(cls, settings: Settings, paths: StatePaths, traffic: Traffic) -> Patient:
        """Take hold of the stack that runs with these settings on this state."""
        gpu = SimulatedGpuControl(paths.simulated_gpu)
        return cls(service_url(settings), paths.read_admin_token(), gpu, traffic)

    def inject_in_service(self, fault: str, **parameters: Any) -> None:
        """Ask the service to break itself.

        Raises:
            GalenError: when it refuses or does not answer.
        """
        self._call("POST", "/admin/faults", {"fault": fault, "parameters": parameters})

    def restore(self) -> None:
        """Take back every fault and every leftover: service, GPU and traffic as at the start."""
        self.traffic.calm()
        self.gpu.clear_faults()
        self._call("DELETE", "/admin/faults", None)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> None:
        try:
            self._client.request(method, path, json=body).raise_for_status()
        except httpx.HTTPError as error:
            raise GalenError(
                f"{method} {path}: {error}",
                fix="The service must run with inference.allow_faults = true.",
            ) from error


@dataclass(frozen=True, slots=True)
class DrillFault:
    """One fault: how to cause it, what it truly is, and what counts as healed."""

    name: str
    cause: str
    """The cause that diagnosis has to rank first."""
    inject: Callable[[Patient], None]
    remedy: bool
    """Whether there is something that Galen can do about it by itself."""
    lasts_seconds: float
    """When the fault is taken back from outside, healed or not."""
    told: str
    """What is done, in words for the terminal."""


def _service(fault: str, **parameters: Any) -> Callable[[Patient], None]:
    return lambda patient: patient.inject_in_service(fault, **parameters)


CORE: tuple[DrillFault, ...] = (
    DrillFault(
        "engine_hang", "engine_hang", _service("engine_hang"), remedy=True, lasts_seconds=60,
        told="the engine's step loop stops; the service keeps answering its port",
    ),
    DrillFault(
        "engine_crash", "engine_crash", _service("engine_crash"), remedy=True, lasts_seconds=60,
        told="the worker process dies by SIGKILL",
    ),
    DrillFault(
        "engine_slow", "engine_slow", _service("engine_slow", step_seconds=0.04), remedy=True,
        lasts_seconds=60, told="every engine step computes for 40 ms",
    ),
    DrillFault(
        "corrupt_output", "corrupt_output", _service("corrupt_output", kind="wrong"), remedy=True,
        lasts_seconds=60, told="the model's logits are permuted: fast, fluent and wrong",
    ),
    DrillFault(
        "model_load_failure", "model_load_failure", _service("model_load_failure"), remedy=True,
        lasts_seconds=60, told="a truncated model version appears and the worker restarts onto it",
    ),
    DrillFault(
        "traffic_surge", "traffic_surge", lambda patient: patient.traffic.surge(14.0), remedy=True,
        lasts_seconds=45, told="clients send fourteen times as much",
    ),
    DrillFault(
        "host_memory_leak", "host_memory_leak",
        _service("host_memory_leak", bytes_per_second=60 * 2**20), remedy=True, lasts_seconds=60,
        told="the worker allocates and touches 60 MiB a second",
    ),
    DrillFault(
        "gpu_thermal_throttle", "gpu_thermal_throttle",
        lambda patient: patient.gpu.inject(inlet_offset_celsius=42.0), remedy=True,
        lasts_seconds=60, told="the air at the (simulated) GPU's inlet is 42 C hotter",
    ),
    DrillFault(
        "gpu_xid_fatal", "gpu_xid_fatal", lambda patient: patient.gpu.inject(xid=79), remedy=False,
        lasts_seconds=25, told="the (simulated) GPU falls off the bus: XID 79",
    ),
    DrillFault(
        "client_errors", "client_errors", lambda patient: patient.traffic.storm(20.0), remedy=False,
        lasts_seconds=25, told="a client sends 20 bad requests a second",
    ),
    DrillFault(
        "collector_down", "collector_down", _service("metrics_hang"), remedy=False,
        lasts_seconds=25, told="/metrics hangs while the service works",
    ),
)  # fmt: skip

SUITES: Mapping[str, tuple[DrillFault, ...]] = {"core": CORE}


def select_faults(suite: str, names: list[str]) -> list[DrillFault]:
    """Return the faults of a suite, or those of it that are named, in the order of the names.

    Raises:
        ConfigError: for a suite or fault that does not exist, with those that do.
    """
    if suite not in SUITES:
        raise ConfigError(f"unknown suite {suite!r}", fix=f"Suites: {', '.join(SUITES)}.")
    known = {fault.name: fault for fault in SUITES[suite]}
    if missing := [name for name in names if name not in known]:
        raise ConfigError(f"unknown fault {missing[0]!r}", fix=f"Faults: {', '.join(known)}.")
    return [known[name] for name in names] if names else list(known.values())
