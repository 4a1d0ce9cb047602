"""A GPU that is not there: it follows the real load of the inference service.

For demos and drills on machines without a GPU. Every sample carries the label ``simulated="true"``.
The model is first order on purpose; it behaves in the ways that matter to a watcher: power follows
utilisation, temperature follows power with a lag, heat and power caps lower the clocks, and faults do
what they do to a real device.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.entities import entity, parent_of
from collectors.gpu import states
from collectors.gpu.control import ControlError, SimulatedFaults, SimulatedGpuControl
from collectors.gpu.throttle import ThrottleReason, throttle_signals
from collectors.gpu.xid import FALLEN_OFF_THE_BUS, RecommendedAction, describe_xid

LABELS = {"simulated": "true"}

Values = Iterator[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class GpuModel:
    """The constants of the simulated device.

    They sit in the range of a data-centre card of the 350 to 400 W class under forced air. The thermal
    time constant is shorter than a real heat sink's (half a minute or more), so that a demo is
    watchable.
    """

    idle_watts: float = 60.0
    full_watts: float = 350.0
    default_limit_watts: float = 400.0
    minimum_limit_watts: float = 100.0
    # Power rises faster than utilisation: a kernel that is resident half of the time draws well over
    # half of the dynamic power.
    power_exponent: float = 0.55
    inlet_celsius: float = 30.0
    kelvin_per_watt: float = 0.13
    time_constant_seconds: float = 6.0
    slowdown_celsius: float = 87.0
    hardware_slowdown_celsius: float = 91.0
    hysteresis_celsius: float = 1.0
    max_sm_clock_mhz: float = 1980.0
    min_sm_clock_mhz: float = 345.0
    memory_total_bytes: float = 80 * 1024**3
    weights_bytes: float = 16 * 1024**3
    cache_bytes: float = 40 * 1024**3
    pcie_bytes_at_full_load: float = 6e9


@dataclass(frozen=True, slots=True)
class GpuState:
    """What the device shows at one moment, before measurement noise."""

    utilization: float
    power_watts: float
    temperature_celsius: float
    limit_watts: float
    sm_clock_mhz: float
    reasons: ThrottleReason


@dataclass(slots=True)
class SimulatedGpu:
    """The physics: feed it load and time, and read its state.

    Args:
        model: the device's constants.
    """

    model: GpuModel = field(default_factory=GpuModel)
    _temperature: float = field(init=False)
    _hot: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        model = self.model
        self._temperature = model.inlet_celsius + model.kelvin_per_watt * model.idle_watts

    def step(
        self,
        seconds: float,
        *,
        load: float,
        limit_watts: float,
        inlet_offset_celsius: float = 0.0,
    ) -> GpuState:
        """Advance by a time step under constant load and return the state at its end.

        Args:
            seconds: the time that passed; any length is stable.
            load: share of the time in which kernels run, 0 to 1; values outside are clipped.
            limit_watts: the enforced power limit.
            inlet_offset_celsius: how much warmer than usual the air comes in.
        """
        load = min(1.0, max(0.0, load))
        remaining = max(0.0, seconds)
        state = self._shine(load, limit_watts)
        # Throttling depends on the temperature that it changes, so long steps are cut into short ones.
        while remaining > 0:
            part = min(remaining, 0.5)
            target = (
                self.model.inlet_celsius
                + inlet_offset_celsius
                + self.model.kelvin_per_watt * state.power_watts
            )
            share = 1 - math.exp(-part / self.model.time_constant_seconds)
            self._temperature += (target - self._temperature) * share
            state = self._shine(load, limit_watts)
            remaining -= part
        return state

    def _shine(self, load: float, limit_watts: float) -> GpuState:
        model = self.model
        dynamic = (model.full_watts - model.idle_watts) * load**model.power_exponent
        clock, reasons = self._thermal_clock()
        power = model.idle_watts + dynamic * clock**2
        if power > limit_watts:
            # Dynamic power goes with the clock times the voltage squared; over the usual range of a
            # governor that is close to the clock squared.
            room = max(0.0, limit_watts - model.idle_watts)
            clock = math.sqrt(room / dynamic) if dynamic > 0 else clock
            power = min(power, max(limit_watts, model.idle_watts))
            reasons |= ThrottleReason.SW_POWER_CAP
        if load == 0:
            reasons |= ThrottleReason.IDLE
        megahertz = model.max_sm_clock_mhz * clock if load > 0 else model.min_sm_clock_mhz
        return GpuState(
            utilization=load,
            power_watts=power,
            temperature_celsius=self._temperature,
            limit_watts=limit_watts,
            sm_clock_mhz=max(model.min_sm_clock_mhz, megahertz),
            reasons=reasons,
        )

    def _thermal_clock(self) -> tuple[float, ThrottleReason]:
        model, temperature = self.model, self._temperature
        threshold = model.slowdown_celsius - (model.hysteresis_celsius if self._hot else 0.0)
        self._hot = temperature >= threshold
        if not self._hot:
            return 1.0, ThrottleReason.NONE
        reasons = ThrottleReason.SW_THERMAL
        if temperature >= model.hardware_slowdown_celsius:
            reasons |= ThrottleReason.HW_THERMAL | ThrottleReason.HW_SLOWDOWN
        # Five percent of clock for each degree over the threshold, down to two fifths: the device
        # settles a few degrees above it instead of swinging around it.
        return min(1.0, max(0.4, 1 - 0.05 * (temperature - threshold))), reasons


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
        """Advance the device to now and read it. Blocks while the fault ``driver_hang`` stands.

        Raises:
            CollectorError: when the driver hung, or the control file cannot be understood.
        """
        started = self._clock()
        faults = self._hang_while_told()
        state = self._advance(faults)
        signals = dict(self._read(state, faults))
        if signals["gpu_available"]:
            signals["gpu_driver_call_seconds"] = self._clock() - started
        samples = [
            Sample(now_seconds, self._entity, signal, value, LABELS)
            for signal, value in signals.items()
        ]
        host = parent_of(self._entity)
        samples.append(Sample(now_seconds, host, "gpu_count", signals["gpu_available"], LABELS))
        return Collection(samples=samples)

    def close(self) -> None:
        """Let a hanging call return."""
        self._closed.set()

    def _hang_while_told(self) -> SimulatedFaults:
        try:
            faults = self._control.read().faults
            if not faults.driver_hang:
                return faults
            while self._control.read().faults.driver_hang and not self._closed.wait(0.1):
                continue
        except ControlError as error:
            raise CollectorError(str(error), retryable=False, fix="delete the file") from error
        raise CollectorError("the driver did not answer for a while and the call was given up")

    def _advance(self, faults: SimulatedFaults) -> GpuState:
        load = self._load()
        # A device that fell off the bus computes nothing, whatever the service says.
        self._last_load = self._last_load if load is None else load
        now = self._clock()
        seconds = 0.0 if self._last_time is None else now - self._last_time
        self._last_time = now
        return self._gpu.step(
            seconds,
            load=0.0 if faults.xid == FALLEN_OFF_THE_BUS else self._last_load,
            limit_watts=self._limit_watts(faults),
            inlet_offset_celsius=faults.inlet_offset_celsius,
        )

    def _limit_watts(self, faults: SimulatedFaults) -> float:
        model = self._gpu.model
        chosen = faults.power_limit_watts or self._control.read().power_limit_watts
        return (
            model.default_limit_watts if chosen is None else max(model.minimum_limit_watts, chosen)
        )

    def _read(self, state: GpuState, faults: SimulatedFaults) -> Values:
        yield "gpu_xid", float(faults.xid)
        lost = faults.xid == FALLEN_OFF_THE_BUS
        yield "gpu_available", 0.0 if lost else 1.0
        yield "gpu_state", float(states.GpuState.LOST if lost else states.GpuState.OK)
        # A simulated driver has no verdict of its own; the catalogue's stands while the code does.
        action = describe_xid(faults.xid).action if faults.xid else RecommendedAction.IGNORE
        yield "gpu_recommended_action", float(tuple(RecommendedAction).index(action))
        if lost:
            return
        yield from self._activity(state)
        yield from self._heat(state)
        yield from throttle_signals(state.reasons)
        yield "gpu_ecc_uncorrectable_total", float(faults.ecc_uncorrectable)
        yield "gpu_ecc_correctable_total", 0.0
        # Since Ampere an uncorrectable error remaps its row at the next reset.
        yield "gpu_row_remap_pending", float(faults.ecc_uncorrectable > 0)
        yield "gpu_pcie_replay_total", 0.0
        yield "gpu_pcie_link_width", 16.0

    def _activity(self, state: GpuState) -> Values:
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

    def _heat(self, state: GpuState) -> Values:
        model = self._gpu.model
        temperature = self._noisy(state.temperature_celsius, 0.25, -20.0, 130.0)
        yield "gpu_temperature_celsius", temperature
        yield "gpu_temperature_margin_celsius", model.slowdown_celsius - temperature
        yield "gpu_power_usage_watts", self._noisy(state.power_watts, 1.5, 0.0, 2000.0)
        yield "gpu_power_limit_watts", state.limit_watts
        yield "gpu_sm_clock_mhz", round(state.sm_clock_mhz / 15) * 15.0  # clocks move in steps
        yield "gpu_sm_clock_max_mhz", model.max_sm_clock_mhz
        fan = 30 + 70 * (state.temperature_celsius - 40) / (model.slowdown_celsius - 40)
        yield "gpu_fan_speed_percent", self._noisy(fan, 0.5, 30.0, 100.0)

    def _noisy(self, value: float, sigma: float, low: float, high: float) -> float:
        # An idle counter reads exactly zero on a real device, too.
        if value == 0:
            return 0.0
        return min(high, max(low, self._rng.gauss(value, sigma)))
