"""Reads every GPU through NVML. Runs in the child process of :mod:`collectors.gpu.nvml`.

``nvml`` is the module ``pynvml`` or anything of its shape; this is the one place that calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from collectors.gpu.throttle import throttle_signals

Values = Iterator[tuple[str, float]]

XID_HOLD_SECONDS = 30.0
"""NVML reports an XID once, as an event; it is shown for this long so that no tick misses it."""


class NvmlReader:
    """Reads the devices of one initialised NVML.

    Args:
        nvml: the module; ``nvmlInit`` has been called on it.
        monotonic: the clock that XIDs are held with.
    """

    def __init__(self, nvml: Any, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._nvml = nvml
        self._monotonic = monotonic
        self._events: Any = None
        self._watched: set[int] = set()
        self._xids: dict[int, tuple[int, float]] = {}

    def read(self) -> list[dict[str, Any]]:
        """Read every device.

        Returns:
            One entry a device: ``index``, ``uuid``, ``name`` and ``signals`` (canonical name to value).
            A field that the device does not support is absent. A lost device has only
            ``gpu_available`` 0.

        Raises:
            nvml.NVMLError: when NVML as a whole does not answer.
        """
        devices = [self._device(index) for index in range(int(self._nvml.nvmlDeviceGetCount()))]
        self._drain_xids()
        for device in devices:
            device["signals"]["gpu_xid"] = float(self._xid_of(device["index"]))
        return devices

    def _device(self, index: int) -> dict[str, Any]:
        nvml = self._nvml
        entry: dict[str, Any] = {"index": index, "uuid": "", "name": ""}
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            entry["uuid"] = _text(nvml.nvmlDeviceGetUUID(handle))
            entry["name"] = _text(nvml.nvmlDeviceGetName(handle))
            signals = dict(self._signals(handle))
            self._watch_xids(index, handle)
        except nvml.NVMLError as error:
            if not self._is_lost(error):
                raise
            signals = {"gpu_available": 0.0}
        else:
            signals["gpu_available"] = 1.0
        return entry | {"signals": signals}

    def _is_lost(self, error: Exception) -> bool:
        return getattr(error, "value", None) in {
            self._nvml.NVML_ERROR_GPU_IS_LOST,
            self._nvml.NVML_ERROR_RESET_REQUIRED,
        }

    def _signals(self, handle: Any) -> Values:
        for part in (
            self._activity,
            self._heat,
            self._power,
            self._clocks,
            self._errors,
            self._pcie,
        ):
            yield from part(handle)

    def _optional(self, function: str, *arguments: Any) -> Any:
        """Call an NVML function; None when device, driver or binding does not have it."""
        nvml = self._nvml
        call = getattr(nvml, function, None)
        if call is None:
            return None
        try:
            return call(*arguments)
        except nvml.NVMLError as error:
            if self._is_lost(error):
                raise
            return None

    def _activity(self, handle: Any) -> Values:
        rates = self._optional("nvmlDeviceGetUtilizationRates", handle)
        if rates is not None:
            yield "gpu_utilization_percent", float(rates.gpu)
        memory = self._optional("nvmlDeviceGetMemoryInfo", handle)
        if memory is not None and memory.total > 0:
            yield "gpu_memory_used_bytes", float(memory.used)
            yield "gpu_memory_total_bytes", float(memory.total)
            yield "gpu_memory_used_ratio", memory.used / memory.total

    def _heat(self, handle: Any) -> Values:
        nvml = self._nvml
        temperature = self._optional("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU)
        if temperature is not None:
            yield "gpu_temperature_celsius", float(temperature)
        # The driver's own margin knows the limits of the card; a fixed slowdown threshold is what older
        # drivers offer.
        margin = self._optional("nvmlDeviceGetMarginTemperature", handle)
        if margin is None and temperature is not None:
            slowdown = self._optional(
                "nvmlDeviceGetTemperatureThreshold",
                handle,
                nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
            )
            margin = slowdown - temperature if slowdown else None
        if margin is not None:
            yield "gpu_temperature_margin_celsius", float(margin)
        fan = self._optional("nvmlDeviceGetFanSpeed", handle)
        if fan is not None:
            yield "gpu_fan_speed_percent", float(fan)

    def _power(self, handle: Any) -> Values:
        for signal, function in (
            ("gpu_power_usage_watts", "nvmlDeviceGetPowerUsage"),
            ("gpu_power_limit_watts", "nvmlDeviceGetEnforcedPowerLimit"),
        ):
            milliwatts = self._optional(function, handle)
            if milliwatts is not None:
                yield signal, milliwatts / 1000

    def _clocks(self, handle: Any) -> Values:
        kind = self._nvml.NVML_CLOCK_SM
        for signal, function in (
            ("gpu_sm_clock_mhz", "nvmlDeviceGetClockInfo"),
            ("gpu_sm_clock_max_mhz", "nvmlDeviceGetMaxClockInfo"),
        ):
            megahertz = self._optional(function, handle, kind)
            if megahertz is not None:
                yield signal, float(megahertz)
        reasons = self._optional("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:  # the name before driver R535
            reasons = self._optional("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        if reasons is not None:
            yield from throttle_signals(int(reasons))

    def _errors(self, handle: Any) -> Values:
        nvml = self._nvml
        for signal, kind in (
            ("gpu_ecc_uncorrectable_total", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            ("gpu_ecc_correctable_total", nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
        ):
            count = self._optional(
                "nvmlDeviceGetTotalEccErrors", handle, kind, nvml.NVML_VOLATILE_ECC
            )
            if count is not None:
                yield signal, float(count)
        remapped = self._optional("nvmlDeviceGetRemappedRows", handle)
        if remapped is not None:
            yield "gpu_row_remap_pending", float(bool(remapped[2]))

    def _pcie(self, handle: Any) -> Values:
        # Throughput is left out: NVML measures it by sleeping 20 ms in each direction for each device.
        width = self._optional("nvmlDeviceGetCurrPcieLinkWidth", handle)
        if width is not None:
            yield "gpu_pcie_link_width", float(width)
        replays = self._optional("nvmlDeviceGetPcieReplayCounter", handle)
        if replays is not None:
            yield "gpu_pcie_replay_total", float(replays)

    def _watch_xids(self, index: int, handle: Any) -> None:
        if index in self._watched:
            return
        if self._events is None:
            self._events = self._optional("nvmlEventSetCreate")
        if self._events is not None:
            kind = self._nvml.nvmlEventTypeXidCriticalError
            self._optional("nvmlDeviceRegisterEvents", handle, kind, self._events)
        self._watched.add(index)

    def _drain_xids(self) -> None:
        nvml = self._nvml
        try:
            while self._events is not None:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
                index = int(nvml.nvmlDeviceGetIndex(event.device))
                self._xids[index] = (int(event.eventData), self._monotonic())
        except nvml.NVMLError:
            # The usual end is NVML's time-out, which says that no event is left.
            return

    def _xid_of(self, index: int) -> int:
        code, reported = self._xids.get(index, (0, 0.0))
        return code if self._monotonic() - reported < XID_HOLD_SECONDS else 0


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
