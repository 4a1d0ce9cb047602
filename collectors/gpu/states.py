"""What can be wrong with a GPU or its driver, each as a state of its own."""

from __future__ import annotations

from enum import IntEnum


class GpuState(IntEnum):
    """The signal ``gpu_state``. Only ``OK`` comes with readings."""

    OK = 0
    RESET_REQUIRED = 1
    """The driver refuses the device until it is reset."""
    LOST = 2
    """The driver has the device and cannot reach it: it fell off the bus."""
    GONE = 3
    """It was there before and is listed no more: unplugged, drained or removed by the driver."""
    UNREADABLE = 4
    """It is listed, but calls about it fail."""
    HUNG = 5
    """A call about it did not return; it is left out for a while so that the others can be read."""
    UNREAD = 6
    """Nothing is known about it: the driver as a whole is silent, or does not let this user ask."""
    RELEASED = 7
    """Galen itself has let go of it, so that it can be reset."""


class DriverState(IntEnum):
    """The signal ``gpu_driver_state``: the driver of a host as a whole."""

    OK = 0
    HUNG = 1
    """A call did not return; the process that made it was killed."""
    NOT_LOADED = 2
    LIBRARY_MISSING = 3
    VERSION_MISMATCH = 4
    """The kernel module and the library are of different versions, usually after an upgrade."""
    NO_PERMISSION = 5
    FAILED = 6
    """NVML itself, or the process that calls it, failed in another way."""
    RELEASED = 7
    """Galen itself asks nothing, so that a GPU can be reset."""


class NvmlError(IntEnum):
    """Return codes of NVML that are told apart here (nvml.h, ``nvmlReturn_t``)."""

    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    LIB_RM_VERSION_MISMATCH = 18
    NO_DATA = 21
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26


ABSENT = frozenset(
    {
        NvmlError.NOT_SUPPORTED,
        NvmlError.NO_PERMISSION,
        NvmlError.NOT_FOUND,
        NvmlError.FUNCTION_NOT_FOUND,
        NvmlError.NO_DATA,
        NvmlError.ARGUMENT_VERSION_MISMATCH,
        NvmlError.DEPRECATED,
    }
)
"""Codes that mean that device or driver does not offer a field. Any other is a fault."""

_DRIVER_STATES = {
    NvmlError.DRIVER_NOT_LOADED: DriverState.NOT_LOADED,
    NvmlError.LIBRARY_NOT_FOUND: DriverState.LIBRARY_MISSING,
    NvmlError.LIB_RM_VERSION_MISMATCH: DriverState.VERSION_MISMATCH,
    NvmlError.NO_PERMISSION: DriverState.NO_PERMISSION,
}
_GPU_STATES = {
    NvmlError.GPU_IS_LOST: GpuState.LOST,
    NvmlError.RESET_REQUIRED: GpuState.RESET_REQUIRED,
    NvmlError.NO_PERMISSION: GpuState.UNREAD,
}
_FIXES = {
    DriverState.HUNG: "look for tasks in state D and for XIDs in the kernel log; a reboot may be due",
    DriverState.NOT_LOADED: "load the kernel module (modprobe nvidia) and check `dmesg`",
    DriverState.LIBRARY_MISSING: "install the driver, or pass it into the container (--gpus all)",
    DriverState.VERSION_MISMATCH: (
        "the driver was upgraded under the running module: reload the module or reboot"
    ),
    DriverState.NO_PERMISSION: "let this user open /dev/nvidiactl",
    DriverState.FAILED: "check `nvidia-smi`; the driver may need a reload",
}


def driver_state_of(code: int | None) -> DriverState:
    """Return the state that an error of NVML as a whole means."""
    return next((s for e, s in _DRIVER_STATES.items() if e == code), DriverState.FAILED)


def fix_of(state: DriverState) -> str:
    """Return what would help."""
    return _FIXES.get(state, "")


def gpu_state_of(code: int | None) -> GpuState:
    """Return the state of a device whose calls end with an error."""
    return next((s for e, s in _GPU_STATES.items() if e == code), GpuState.UNREADABLE)
