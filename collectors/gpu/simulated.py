"""A GPU that is not there: it follows the real load of the inference service.

For demos and drills on machines without a GPU. Every sample carries the label ``simulated="true"``. A
fault gives the samples that the NVML collector gives for it: the same states, and no reading of a device
that cannot be read.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.entities import entity, parent_of
from collectors.gpu.control import ControlError, SimulatedFaults, SimulatedGpuControl
from collectors.gpu.simulated_device import GpuModel, Shown, SimulatedGpu
from collectors.gpu.states import DriverState, GpuState, fix_of
from collectors.gpu.throttle import throttle_signals
from collectors.gpu.xid import (
    FALLEN_OFF_THE_BUS,
    RESET_ACTION,
    RecommendedAction,
    describe_xid,
    recovery_action,
)

LABELS = {"simulated": "true"}
# A simulated call that hangs is given up before the poller gives up on the collector.
_GIVEN_UP_SHARE = 0.6
_LOOK_SECONDS = 0.05
_ACTIONS = tuple(RecommendedAction)

Values = Iterator[tuple[str, float]]


def state_of(faults: SimulatedFaults) -> GpuState:
    """Return the state in which a device with these faults is."""
    if faults.driver_hang:
        return GpuState.HUNG
    if faults.gone:
        return GpuState.GONE
    if faults.lost or faults.xid == FALLEN_OFF_THE_BUS:
        return GpuState.LOST
    return GpuState.RESET_REQUIRED if faults.reset_required else GpuState.OK


class SimulatedGpuCollector:
    """Reads a :class:`SimulatedGpu` whose load is that of a service.

    Args:
        host: the host's name; the entity is ``host/<host>/gpu/<index>``.
        load: the service's load between 0 and 1; None while unknown, which holds the last value.
        control_path: the file of :class:`SimulatedGpuControl`, read again whenever it changes.
        clock: a clock that never goes back; the physics advance with it.
        rng: the source of measurement noise.
        model: the device's constants.
        index: the device's number.
        deadline_seconds: the poller gives up on a hanging driver after this.
    """

    def __init__(
        self,
        host: str,
        load: Callable[[], float | None],
        control_path: Path | str,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        model: GpuModel | None = None,
        index: int = 0,
        deadline_seconds: float = 0.5,
    ) -> None:
        self._entity = entity("host", host, "gpu", str(index))
        self._load = load
        self._control = SimulatedGpuControl(control_path)
        self._clock = clock
        self._rng = rng or random.Random(0)  # noqa: S311  # noise, not a secret
        self._gpu = SimulatedGpu(model or GpuModel())
        self._deadline_seconds = deadline_seconds
        self._last_load = 0.0
        self._last_time: float | None = None
        self._closed = threading.Event()

    @property
    def name(self) -> str:
        """``gpu-simulated``."""
        return "gpu-simulated"

    @property
    def deadline_seconds(self) -> float:
        """The longest that one reading may take."""
        return self._deadline_seconds

    @property
    def entity(self) -> str:
        """The device's entity."""
        return self._entity

    def is_supported(self) -> Support:
        """Always: it needs no device."""
        return Support(supported=True)

    def collect(self, now_seconds: float) -> Collection:
        """Advance the device to now and read it.

        Raises:
            CollectorError: when the driver hangs, or the control file cannot be understood. A driver
                that hangs is given up in time, and the error carries the states, as NVML's collector's.
        """
        started = self._clock()
        faults = self._hang_while_told(now_seconds)
        shown = self._advance(faults)
        state = state_of(faults)
        signals = dict(self._about(state, faults))
        if state is GpuState.OK:
            signals |= dict(self._read(shown, faults))
            signals["gpu_driver_call_seconds"] = self._clock() - started
        samples = [self._sample(now_seconds, signal, value) for signal, value in signals.items()]
        answers = float(state is GpuState.OK)
        samples.append(self._host_sample(now_seconds, "gpu_count", answers))
        samples.append(self._host_sample(now_seconds, "gpu_driver_state", float(DriverState.OK)))
        return Collection(samples=samples)

    def close(self) -> None:
        """Let a hanging call return."""
        self._closed.set()

    def _sample(self, now_seconds: float, signal: str, value: float) -> Sample:
        labels = LABELS
        if signal == "gpu_state":
            labels = LABELS | {"state": GpuState(int(value)).name.lower()}
        return Sample(now_seconds, self._entity, signal, value, labels)

    def _host_sample(self, now_seconds: float, signal: str, value: float) -> Sample:
        labels = LABELS
        if signal == "gpu_driver_state":
            labels = LABELS | {"state": DriverState(int(value)).name.lower()}
        return Sample(now_seconds, parent_of(self._entity), signal, value, labels)

    def _hang_while_told(self, now_seconds: float) -> SimulatedFaults:
        waited = 0.0
        try:
            while (faults := self._control.read().faults).driver_hang:
                if waited >= _GIVEN_UP_SHARE * self._deadline_seconds or self._closed.is_set():
                    raise self._hung(now_seconds)
                self._closed.wait(_LOOK_SECONDS)
                waited += _LOOK_SECONDS
        except ControlError as error:
            raise CollectorError(str(error), retryable=False, fix="delete the file") from error
        return faults

    def _hung(self, now_seconds: float) -> CollectorError:
        return CollectorError(
            "the simulated driver did not answer and the call was given up",
            fix=fix_of(DriverState.HUNG),
            samples=[
                self._host_sample(now_seconds, "gpu_driver_state", float(DriverState.HUNG)),
                self._sample(now_seconds, "gpu_state", float(GpuState.HUNG)),
            ],
        )

    def _advance(self, faults: SimulatedFaults) -> Shown:
        load = self._load()
        # A device that cannot be reached computes nothing, whatever the service says.
        self._last_load = self._last_load if load is None else load
        now = self._clock()
        seconds = 0.0 if self._last_time is None else now - self._last_time
        self._last_time = now
        return self._gpu.step(
            seconds,
            load=self._last_load if state_of(faults) is GpuState.OK else 0.0,
            limit_watts=self._limit_watts(faults),
            inlet_offset_celsius=faults.inlet_offset_celsius,
            fan_stands=faults.fan_failure,
            power_brake=faults.power_brake,
        )

    def _limit_watts(self, faults: SimulatedFaults) -> float:
        model = self._gpu.model
        chosen = faults.power_limit_watts or self._control.read().power_limit_watts
        return (
            model.default_limit_watts if chosen is None else max(model.minimum_limit_watts, chosen)
        )

    def _about(self, state: GpuState, faults: SimulatedFaults) -> Values:
        """Yield what is known of a device whether it can be read or not."""
        yield "gpu_state", float(state)
        yield "gpu_available", float(state is GpuState.OK)
        yield "gpu_xid", float(faults.xid)
        # The driver's own verdict first, as for a real device; else the catalogue's while a code stands.
        action = describe_xid(faults.xid).action if faults.xid else RecommendedAction.IGNORE
        if faults.reset_required:
            action = recovery_action(int(RESET_ACTION))
        yield "gpu_recommended_action", float(_ACTIONS.index(action))

    def _read(self, shown: Shown, faults: SimulatedFaults) -> Values:
        yield from self._activity(shown)
        yield from self._heat(shown, faults)
        yield from self._clocks(shown)
        yield from self._memory_errors(faults)
        yield from self._links(faults)
        yield "gpu_driver_call_errors", 0.0
        yield "gpu_recovery_action", 0.0
        yield "gpu_persistence_mode", 1.0
        yield "gpu_mig_enabled", 0.0

    def _memory_errors(self, faults: SimulatedFaults) -> Values:
        for signal, count in (
            ("uncorrectable", faults.ecc_uncorrectable),
            ("correctable", faults.ecc_correctable),
        ):
            yield f"gpu_ecc_{signal}_total", float(count)
            yield f"gpu_ecc_{signal}_lifetime_total", float(count)
        yield "gpu_ecc_enabled", 1.0
        # Since Ampere an uncorrectable error remaps its row at the next reset.
        failed = faults.row_remap_failed
        yield "gpu_row_remap_pending", float(faults.ecc_uncorrectable > 0 and not failed)
        yield "gpu_row_remap_failed", float(failed)
        yield "gpu_row_remap_correctable_total", 0.0
        yield "gpu_row_remap_uncorrectable_total", float(faults.ecc_uncorrectable)
        yield "gpu_row_remap_banks_exhausted", float(failed)

    def _links(self, faults: SimulatedFaults) -> Values:
        model = self._gpu.model
        lanes = faults.pcie_lanes or model.pcie_lanes
        yield "gpu_pcie_link_width", float(lanes)
        yield "gpu_pcie_link_width_max", float(model.pcie_lanes)
        yield "gpu_pcie_link_width_ratio", min(1.0, lanes / model.pcie_lanes)
        yield "gpu_pcie_link_generation", float(model.pcie_generation)
        yield "gpu_pcie_link_generation_max", float(model.pcie_generation)
        yield "gpu_pcie_replay_total", float(faults.pcie_replays)

    def _activity(self, state: Shown) -> Values:
        model = self._gpu.model
        busy = state.utilization
        yield "gpu_utilization_percent", self._noisy(100 * busy, 1.0, 0.0, 100.0)
        yield "gpu_sm_active_percent", self._noisy(82 * busy, 1.0, 0.0, 100.0)
        yield "gpu_memory_bandwidth_percent", self._noisy(55 * busy, 1.0, 0.0, 100.0)
        used = model.weights_bytes + model.cache_bytes * busy
        yield "gpu_memory_used_bytes", used
        yield "gpu_memory_total_bytes", model.memory_total_bytes
        yield "gpu_memory_used_ratio", used / model.memory_total_bytes
        yield "gpu_pcie_throughput_bytes", model.pcie_bytes_at_full_load * busy

    def _heat(self, state: Shown, faults: SimulatedFaults) -> Values:
        model = self._gpu.model
        temperature = self._noisy(state.temperature_celsius, 0.25, -20.0, 130.0)
        yield "gpu_temperature_celsius", temperature
        yield "gpu_temperature_margin_celsius", model.slowdown_celsius - temperature
        yield "gpu_temperature_slowdown_celsius", model.slowdown_celsius
        yield "gpu_temperature_shutdown_celsius", model.shutdown_celsius
        yield "gpu_memory_temperature_celsius", temperature + model.memory_above_core_celsius
        yield "gpu_power_usage_watts", self._noisy(state.power_watts, 1.5, 0.0, 2000.0)
        yield "gpu_power_limit_watts", state.limit_watts
        yield "gpu_power_limit_default_watts", model.default_limit_watts
        yield "gpu_power_limit_minimum_watts", model.minimum_limit_watts
        yield "gpu_power_limit_maximum_watts", model.default_limit_watts
        yield "gpu_energy_joules_total", state.energy_joules
        fan = 30 + 70 * (state.temperature_celsius - 40) / (model.slowdown_celsius - 40)
        wanted = 0.0 if faults.fan_failure else min(100.0, max(30.0, fan))
        yield "gpu_fan_speed_percent", self._noisy(wanted, 0.5, 0.0, 100.0)

    def _clocks(self, state: Shown) -> Values:
        model = self._gpu.model
        yield "gpu_sm_clock_mhz", round(state.sm_clock_mhz / 15) * 15.0  # clocks move in steps
        yield "gpu_sm_clock_max_mhz", model.max_sm_clock_mhz
        yield "gpu_memory_clock_mhz", model.max_memory_clock_mhz
        yield "gpu_performance_state", 0.0
        yield from throttle_signals(state.reasons)
        yield "gpu_throttle_power_seconds_total", state.power_seconds
        yield "gpu_throttle_thermal_seconds_total", state.thermal_seconds

    def _noisy(self, value: float, sigma: float, low: float, high: float) -> float:
        # An idle counter reads exactly zero on a real device, too.
        if value == 0:
            return 0.0
        return min(high, max(low, self._rng.gauss(value, sigma)))
