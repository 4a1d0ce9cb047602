"""XID events from NVML: registers every device and drains what has come."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

from collectors.gpu.nvml_calls import NvmlCalls, code_of
from collectors.gpu.states import NvmlError

# The driver can report thousands of codes in a moment; the rest waits for the next reading.
_MOST_EVENTS = 256


class NvmlXids:
    """The event set of one NVML.

    Args:
        calls: how NVML is called.
    """

    def __init__(self, calls: NvmlCalls) -> None:
        self._calls = calls
        self._set: Any = None
        self._watched: dict[str, bool] = {}
        self._names: dict[int, dict[str, str]] = {}
        self._gaps = 0

    def watch(self, index: int, handle: Any, identity: dict[str, Any]) -> bool:
        """Register a device unless it is; return whether its XIDs are seen."""
        uuid = str(identity["uuid"])
        address = ctypes.cast(handle, ctypes.c_void_p).value or 0
        self._names[address] = {"uuid": uuid, "pci": str(identity["pci"]), "index": str(index)}
        if uuid not in self._watched:
            self._watched[uuid] = self._register(handle)
        return self._watched[uuid]

    def drain(self) -> dict[str, Any]:
        """Return ``xids``, the events since the last call, and ``xid_gaps``, how often some may be lost.

        What is more than fits one answer waits in the driver for the next.
        """
        found: list[dict[str, Any]] = []
        calls = self._calls
        if self._set is None:
            return {"xids": found, "xid_gaps": self._gaps}
        try:
            while len(found) < _MOST_EVENTS:
                event = calls.must("nvmlEventSetWait_v2", self._set, 0)
                address = ctypes.cast(event.device, ctypes.c_void_p).value or 0
                found.append({"code": int(event.eventData)} | self._names.get(address, {}))
        except calls.errors as error:
            if code_of(error) != NvmlError.TIMEOUT:  # the time-out says that no event is left
                # A set in which a device was lost gives errors for ever; the rest needs a new one.
                self._renew()
        return {"xids": found, "xid_gaps": self._gaps}

    def _register(self, handle: Any) -> bool:
        calls = self._calls
        kind = calls.constant("nvmlEventTypeXidCriticalError")
        try:
            if self._set is None:
                self._set = calls.must("nvmlEventSetCreate")
            calls.must("nvmlDeviceRegisterEvents", handle, kind, self._set)
        except calls.errors:
            return False
        return True

    def _renew(self) -> None:
        calls, self._watched = self._calls, {}
        self._gaps += 1
        with suppress(*calls.errors):  # NVML keeps a few bytes; the set is not used again
            calls.must("nvmlEventSetFree", self._set)
        self._set = None
