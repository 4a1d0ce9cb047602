"""The physics of a GPU that is not there: load and air in; power, heat, clocks and throttling out.

First order on purpose; it behaves in the ways that matter to a watcher: power follows utilisation,
temperature follows power with a lag, heat and power caps lower the clocks, and faults do what they do to
a real device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from collectors.gpu.throttle import ThrottleReason

_THERMAL = ThrottleReason.SW_THERMAL | ThrottleReason.HW_THERMAL


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
    # With a fan that stands still only convection and the neighbours' air are left.
    kelvin_per_watt_without_fan: float = 0.30
    time_constant_seconds: float = 6.0
    slowdown_celsius: float = 87.0
    hardware_slowdown_celsius: float = 91.0
    hysteresis_celsius: float = 1.0
    shutdown_celsius: float = 95.0
    # The brake divides the clock by two or more (nvml.h, nvmlClocksEventReasonHwPowerBrakeSlowdown).
    brake_clock_share: float = 0.5
    memory_above_core_celsius: float = 8.0
    max_memory_clock_mhz: float = 2619.0
    max_sm_clock_mhz: float = 1980.0
    min_sm_clock_mhz: float = 345.0
    memory_total_bytes: float = 80 * 1024**3
    weights_bytes: float = 16 * 1024**3
    cache_bytes: float = 40 * 1024**3
    pcie_bytes_at_full_load: float = 6e9
    pcie_lanes: int = 16
    pcie_generation: int = 5


@dataclass(frozen=True, slots=True)
class Shown:
    """What the device shows at one moment, before measurement noise."""

    utilization: float
    power_watts: float
    temperature_celsius: float
    limit_watts: float
    sm_clock_mhz: float
    reasons: ThrottleReason
    energy_joules: float
    thermal_seconds: float
    """How long heat has held the clocks down so far."""
    power_seconds: float
    """The same for the power cap."""


@dataclass(slots=True)
class SimulatedGpu:
    """The physics: feed it load and time, and read its state.

    Args:
        model: the device's constants.
    """

    model: GpuModel = field(default_factory=GpuModel)
    _temperature: float = field(init=False)
    _hot: bool = field(init=False, default=False)
    _energy: float = field(init=False, default=0.0)
    _thermal_seconds: float = field(init=False, default=0.0)
    _power_seconds: float = field(init=False, default=0.0)

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
        fan_stands: bool = False,
        power_brake: bool = False,
    ) -> Shown:
        """Advance by a time step under constant load and return the state at its end.

        Args:
            seconds: the time that passed; any length is stable.
            load: share of the time in which kernels run, 0 to 1; values outside are clipped.
            limit_watts: the enforced power limit.
            inlet_offset_celsius: how much warmer than usual the air comes in.
            fan_stands: no air is moved.
            power_brake: the supply asserts the brake.
        """
        load = min(1.0, max(0.0, load))
        remaining = max(0.0, seconds)
        model = self.model
        resistance = model.kelvin_per_watt_without_fan if fan_stands else model.kelvin_per_watt
        state = self._shine(load, limit_watts, power_brake=power_brake)
        # Throttling depends on the temperature that it changes, so long steps are cut into short ones.
        while remaining > 0:
            part = min(remaining, 0.5)
            target = model.inlet_celsius + inlet_offset_celsius + resistance * state.power_watts
            share = 1 - math.exp(-part / self.model.time_constant_seconds)
            self._temperature += (target - self._temperature) * share
            self._energy += state.power_watts * part
            self._thermal_seconds += part * bool(state.reasons & _THERMAL)
            self._power_seconds += part * bool(state.reasons & ThrottleReason.SW_POWER_CAP)
            state = self._shine(load, limit_watts, power_brake=power_brake)
            remaining -= part
        return state

    def _shine(self, load: float, limit_watts: float, *, power_brake: bool) -> Shown:
        model = self.model
        dynamic = (model.full_watts - model.idle_watts) * load**model.power_exponent
        clock, reasons = self._thermal_clock()
        if power_brake:
            clock = min(clock, model.brake_clock_share)
            reasons |= ThrottleReason.HW_POWER_BRAKE | ThrottleReason.HW_SLOWDOWN
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
        return Shown(
            utilization=load,
            power_watts=power,
            temperature_celsius=self._temperature,
            limit_watts=limit_watts,
            sm_clock_mhz=max(model.min_sm_clock_mhz, megahertz),
            reasons=reasons,
            energy_joules=self._energy,
            thermal_seconds=self._thermal_seconds,
            power_seconds=self._power_seconds,
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
