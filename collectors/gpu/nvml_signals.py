"""What NVML says about one device, as canonical signals. A field that it does not offer is absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from collectors.gpu.nvml_calls import NvmlCalls
from collectors.gpu.throttle import throttle_signals

Values = Iterator[tuple[str, float]]
Part = Callable[[NvmlCalls, Any], Values]

_NVLINK_ERRORS = (
    "NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
)
# nvml.h, nvmlPstates_t: P0 is the fastest, P15 the slowest, 32 is unknown.
_SLOWEST_STATE = 15
_PERF_POLICY_POWER, _PERF_POLICY_THERMAL = 0, 1


def memory(calls: NvmlCalls, handle: Any) -> Values:
    """Yield memory of a device or of a MIG instance.

    The second version of the call tells what the driver keeps for itself from what is used; the first
    counts both as used.
    """
    version = calls.constant("nvmlMemory_v2")
    info = version and calls.ask("nvmlDeviceGetMemoryInfo", handle, version=version)
    reserved = info.reserved if info else 0
    if not info:
        info = calls.ask("nvmlDeviceGetMemoryInfo", handle)
    if not info or info.total <= reserved:
        return
    yield "gpu_memory_used_bytes", float(info.used)
    yield "gpu_memory_total_bytes", float(info.total)
    yield "gpu_memory_used_ratio", min(1.0, info.used / (info.total - reserved))
    if reserved:
        yield "gpu_memory_reserved_bytes", float(reserved)


def activity(calls: NvmlCalls, handle: Any) -> Values:
    """Yield utilisation; a device in MIG mode has none as a whole."""
    rates = calls.ask("nvmlDeviceGetUtilizationRates", handle)
    if rates is not None and rates.gpu <= 100:
        yield "gpu_utilization_percent", float(rates.gpu)


def heat(calls: NvmlCalls, handle: Any) -> Values:
    """Yield temperatures and the fan; passively cooled boards have none."""
    temperature = calls.ask(
        "nvmlDeviceGetTemperature", handle, calls.constant("NVML_TEMPERATURE_GPU")
    )
    if temperature is not None:
        yield "gpu_temperature_celsius", float(temperature)
    # The driver's own margin knows the limits of the card; a fixed slowdown threshold is what older
    # drivers offer, and newer cards offer no longer.
    margin = calls.ask("nvmlDeviceGetMarginTemperature", handle)
    thresholds = dict(_thresholds(calls, handle))
    slowdown = thresholds.get("gpu_temperature_slowdown_celsius")
    if margin is None and temperature is not None and slowdown is not None:
        margin = slowdown - temperature
    if margin is not None:
        yield "gpu_temperature_margin_celsius", float(margin)
    yield from thresholds.items()
    fan = calls.ask("nvmlDeviceGetFanSpeed", handle)
    if fan is not None:
        yield "gpu_fan_speed_percent", float(fan)


def _thresholds(calls: NvmlCalls, handle: Any) -> Values:
    for signal, kind in (
        ("gpu_temperature_slowdown_celsius", "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN"),
        ("gpu_temperature_shutdown_celsius", "NVML_TEMPERATURE_THRESHOLD_SHUTDOWN"),
    ):
        celsius = calls.ask("nvmlDeviceGetTemperatureThreshold", handle, calls.constant(kind))
        if celsius:
            yield signal, float(celsius)


def power(calls: NvmlCalls, handle: Any) -> Values:
    """Yield power, its cap and the energy since the driver was loaded."""
    for signal, function in (
        ("gpu_power_usage_watts", "nvmlDeviceGetPowerUsage"),
        ("gpu_power_limit_watts", "nvmlDeviceGetEnforcedPowerLimit"),
        ("gpu_energy_joules_total", "nvmlDeviceGetTotalEnergyConsumption"),
    ):
        thousandths = calls.ask(function, handle)
        if thousandths is not None:
            yield signal, thousandths / 1000


def clocks(calls: NvmlCalls, handle: Any) -> Values:
    """Yield clocks, the performance state, and why the clocks are held down."""
    for signal, function, kind in (
        ("gpu_sm_clock_mhz", "nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
        ("gpu_sm_clock_max_mhz", "nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM"),
        ("gpu_memory_clock_mhz", "nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
    ):
        megahertz = calls.ask(function, handle, calls.constant(kind))
        if megahertz is not None:
            yield signal, float(megahertz)
    state = calls.ask("nvmlDeviceGetPerformanceState", handle)
    if state is not None and state <= _SLOWEST_STATE:
        yield "gpu_performance_state", float(state)
    reasons = calls.ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # the name before driver R535
        reasons = calls.ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    if reasons is not None:
        yield from throttle_signals(int(reasons))
    # These accumulate in the driver and so see what happens between two readings. The numbers of the
    # newer field values for the same times differ between releases of NVML, so they are not used.
    for signal, policy in (
        ("gpu_throttle_power_seconds_total", _PERF_POLICY_POWER),
        ("gpu_throttle_thermal_seconds_total", _PERF_POLICY_THERMAL),
    ):
        spent = calls.ask("nvmlDeviceGetViolationStatus", handle, policy)
        if spent is not None:
            yield signal, spent.violationTime / 1e9


def errors(calls: NvmlCalls, handle: Any) -> Values:
    """Yield ECC errors since the driver was loaded and over the board's life."""
    for signal, kind, counter in (
        ("gpu_ecc_uncorrectable_total", "UNCORRECTED", "NVML_VOLATILE_ECC"),
        ("gpu_ecc_correctable_total", "CORRECTED", "NVML_VOLATILE_ECC"),
        ("gpu_ecc_uncorrectable_lifetime_total", "UNCORRECTED", "NVML_AGGREGATE_ECC"),
        ("gpu_ecc_correctable_lifetime_total", "CORRECTED", "NVML_AGGREGATE_ECC"),
    ):
        count = calls.ask(
            "nvmlDeviceGetTotalEccErrors",
            handle,
            calls.constant(f"NVML_MEMORY_ERROR_TYPE_{kind}"),
            calls.constant(counter),
        )
        if count is not None:
            yield signal, float(count)
    remapped = calls.ask("nvmlDeviceGetRemappedRows", handle)
    if remapped is not None:
        correctable, uncorrectable, pending, failed = remapped
        yield "gpu_row_remap_correctable_total", float(correctable)
        yield "gpu_row_remap_uncorrectable_total", float(uncorrectable)
        yield "gpu_row_remap_pending", float(bool(pending))
        yield "gpu_row_remap_failed", float(bool(failed))


def links(calls: NvmlCalls, handle: Any) -> Values:
    """Yield the PCIe link, NVLink errors over all links, and the driver's verdict on the device."""
    # Throughput is left out: NVML measures it by sleeping 20 ms in each direction for each device.
    for signal, function in (
        ("gpu_pcie_link_width", "nvmlDeviceGetCurrPcieLinkWidth"),
        ("gpu_pcie_link_generation", "nvmlDeviceGetCurrPcieLinkGeneration"),
        ("gpu_pcie_replay_total", "nvmlDeviceGetPcieReplayCounter"),
    ):
        value = calls.ask(function, handle)
        if value is not None:
            yield signal, float(value)
    fields = calls.fields(
        handle,
        "NVML_FI_DEV_MEMORY_TEMP",
        "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION",
        *_NVLINK_ERRORS,
    )
    # A memory temperature of zero is how boards without the sensor say so.
    if celsius := fields.get("NVML_FI_DEV_MEMORY_TEMP"):
        yield "gpu_memory_temperature_celsius", celsius
    if (action := fields.get("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION")) is not None:
        yield "gpu_recovery_action", action
    counted = [fields[name] for name in _NVLINK_ERRORS if name in fields]
    if counted:
        yield "gpu_nvlink_errors_total", sum(counted)


def standing(calls: NvmlCalls, handle: Any) -> Values:
    """Yield what changes only when somebody changes it, or wears out slowly."""
    for signal, function in (
        ("gpu_power_limit_default_watts", "nvmlDeviceGetPowerManagementDefaultLimit"),
        ("gpu_pcie_link_width_max", "nvmlDeviceGetMaxPcieLinkWidth"),
        ("gpu_pcie_link_generation_max", "nvmlDeviceGetMaxPcieLinkGeneration"),
        ("gpu_persistence_mode", "nvmlDeviceGetPersistenceMode"),
        ("gpu_retired_pages_pending", "nvmlDeviceGetRetiredPagesPendingStatus"),
    ):
        value = calls.ask(function, handle)
        if value is not None:
            yield signal, value / 1000 if signal.endswith("_watts") else float(value)
    limits = calls.ask("nvmlDeviceGetPowerManagementLimitConstraints", handle)
    if limits is not None:
        yield "gpu_power_limit_minimum_watts", limits[0] / 1000
        yield "gpu_power_limit_maximum_watts", limits[1] / 1000
    ecc = calls.ask("nvmlDeviceGetEccMode", handle)
    if ecc is not None:
        yield "gpu_ecc_enabled", float(ecc[0])
    retired = [calls.ask("nvmlDeviceGetRetiredPages", handle, cause) for cause in (0, 1)]
    if None not in retired:
        yield "gpu_retired_pages_total", float(sum(map(len, retired)))
    banks = calls.ask("nvmlDeviceGetRowRemapperHistogram", handle)
    if banks is not None:
        yield "gpu_row_remap_banks_exhausted", float(banks.none)
    yield from _nvlinks(calls, handle)


def _nvlinks(calls: NvmlCalls, handle: Any) -> Values:
    states: list[int] = []
    for link in range(calls.constant("NVML_NVLINK_MAX_LINKS") or 0):
        state = None
        # A link number that the device does not have is an invalid argument, which ends the list.
        try:
            state = calls.must("nvmlDeviceGetNvLinkState", handle, link)
        except calls.errors:
            break
        states.append(int(state))
    if states:
        yield "gpu_nvlink_links", float(len(states))
        yield "gpu_nvlink_links_active", float(sum(state == 1 for state in states))


def derived(signals: Mapping[str, float]) -> Values:
    """Yield what follows from two readings of different pace."""
    width, widest = signals.get("gpu_pcie_link_width"), signals.get("gpu_pcie_link_width_max")
    if width is not None and widest:
        yield "gpu_pcie_link_width_ratio", min(1.0, width / widest)


FAST: tuple[Part, ...] = (activity, memory, heat, power, clocks, errors, links)
"""What is read every time."""
