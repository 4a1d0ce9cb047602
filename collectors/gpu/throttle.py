"""Why a GPU's clocks are held down: NVML's clocks event reasons as bits, and as signals."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag


class ThrottleReason(IntFlag):
    """Bits of ``nvmlClocksEventReason*`` (nvml.h); the power cap alone is normal under load."""

    NONE = 0x0
    IDLE = 0x1
    APPLICATION_CLOCKS = 0x2
    SW_POWER_CAP = 0x4
    HW_SLOWDOWN = 0x8
    SYNC_BOOST = 0x10
    SW_THERMAL = 0x20
    HW_THERMAL = 0x40
    HW_POWER_BRAKE = 0x80
    DISPLAY_CLOCK = 0x100


def throttle_signals(reasons: int) -> Iterator[tuple[str, float]]:
    """Yield the bitmask and its three faults as canonical signals."""
    yield "gpu_throttle_reason", float(reasons)
    thermal = ThrottleReason.SW_THERMAL | ThrottleReason.HW_THERMAL
    yield "gpu_throttle_thermal", float(bool(reasons & thermal))
    yield "gpu_throttle_power", float(bool(reasons & ThrottleReason.SW_POWER_CAP))
    yield "gpu_throttle_power_brake", float(bool(reasons & ThrottleReason.HW_POWER_BRAKE))
