"""Reads every GPU through NVML. Runs in the child process of :mod:`collectors.gpu.nvml`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from collectors.gpu import nvml_signals
from collectors.gpu.nvml_calls import NO_GPU, Note, NvmlCalls, code_of, text_of
from collectors.gpu.nvml_events import NvmlXids
from collectors.gpu.processes import ProcessWatch
from collectors.gpu.states import GpuState, NvmlError, gpu_state_of
from collectors.gpu.versions import MODULE_VERSION, library_version_on_disk, module_version

SLOW_SECONDS = 10.0
"""What changes only when somebody changes it is read again after this time."""


_VITAL = frozenset(
    {
        "gpu_utilization_percent",
        "gpu_memory_used_bytes",
        "gpu_temperature_celsius",
        "gpu_power_usage_watts",
    }
)
"""A device of which calls fail, and that tells none of these, is not read."""


class NvmlReader:
    """Reads the devices of one initialised NVML.

    Args:
        nvml: the module ``pynvml``; ``nvmlInit`` has been called on it.
        note: where to write which call is under way.
        monotonic: the clock that tells when slow fields are due.
        slow_seconds: how long slow fields are kept.
        module_version_file: where the kernel tells the version of the driver's module.
    """

    def __init__(
        self,
        nvml: Any,
        note: Note | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        slow_seconds: float = SLOW_SECONDS,
        module_version_file: Path = MODULE_VERSION,
    ) -> None:
        self._nvml = nvml
        self._module_version = module_version_file
        self._calls = NvmlCalls(nvml, note)
        self._monotonic = monotonic
        self._slow_seconds = slow_seconds
        self._slow: dict[str, tuple[float, dict[str, float]]] = {}
        self._versions: tuple[float, dict[str, Any]] | None = None
        self._xids = NvmlXids(self._calls)
        self._processes = ProcessWatch()

    def read(self, skip: Collection[int] = ()) -> dict[str, Any]:
        """Read every device.

        Args:
            skip: NVML indices of devices that must not be touched, because a call hung at them.

        Returns:
            ``driver`` (versions), ``xids`` (events since the last reading), ``xid_gaps`` and
            ``devices``. A device has ``index``, ``uuid``, ``name``, ``pci``, ``state`` (a
            :class:`~collectors.gpu.states.GpuState`), ``reason``, ``signals`` and ``migs``; without
            the state ``OK`` it has no signals.

        Raises:
            nvml.NVMLError: when NVML as a whole does not answer.
        """
        self._calls.begin(NO_GPU)
        count = int(self._calls.must("nvmlDeviceGetCount"))
        devices = [
            _unread(index, GpuState.HUNG, "a call about it did not return")
            if index in skip
            else self._device(index)
            for index in range(count)
        ]
        self._calls.begin(NO_GPU)
        driver = self._driver()
        return {"driver": driver, "devices": devices} | self._xids.drain()

    def _device(self, index: int) -> dict[str, Any]:
        calls = self._calls
        calls.begin(index)
        entry = _unread(index, GpuState.OK, "")
        try:
            handle = calls.must("nvmlDeviceGetHandleByIndex", index)
            entry |= self._identity(handle)
            signals = {
                signal: value for part in nvml_signals.FAST for signal, value in part(calls, handle)
            }
            signals |= self._slow_signals(entry["uuid"], handle)
            signals |= dict(nvml_signals.derived(signals))
            migs, found = self._processes_and_migs(handle, entry["uuid"])
            signals |= found
            watched = self._xids.watch(index, handle, entry)
        except calls.errors as error:
            return entry | _unread(
                index, gpu_state_of(code_of(error)), str(error), **_identity_of(entry)
            )
        if calls.failed and not _VITAL.intersection(signals):
            reason = f"{len(calls.failed)} calls failed, the last with code {calls.last_error}"
            return _unread(index, GpuState.UNREADABLE, reason, **_identity_of(entry))
        signals["gpu_driver_call_errors"] = float(len(calls.failed))
        return entry | {"signals": signals, "migs": migs, "xids_watched": watched}

    def _identity(self, handle: Any) -> dict[str, str]:
        calls = self._calls
        pci = calls.ask("nvmlDeviceGetPciInfo", handle)
        return {
            "uuid": text_of(calls.must("nvmlDeviceGetUUID", handle)),
            "name": text_of(calls.ask("nvmlDeviceGetName", handle)),
            "pci": "" if pci is None else f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}",
        }

    def _slow_signals(self, uuid: str, handle: Any) -> dict[str, float]:
        now = self._monotonic()
        read_at, values = self._slow.get(uuid, (float("-inf"), {}))
        if now - read_at >= self._slow_seconds:
            values = dict(nvml_signals.standing(self._calls, handle))
            self._slow[uuid] = (now, values)
        return values

    def _processes_and_migs(
        self, handle: Any, uuid: str
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        calls = self._calls
        mode = calls.ask("nvmlDeviceGetMigMode", handle)
        signals: dict[str, float] = {} if mode is None else {"gpu_mig_enabled": float(mode[0])}
        if mode is None or not mode[0]:
            signals |= self._processes.signals(calls, handle, uuid)
            return [], signals
        # The processes of a device in MIG mode are those of its instances.
        migs = list(self._migs(handle))
        signals["gpu_mig_instances"] = float(len(migs))
        return migs, signals

    def _migs(self, handle: Any) -> Iterator[dict[str, Any]]:
        calls = self._calls
        for place in range(int(calls.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0)):
            try:
                mig = calls.must("nvmlDeviceGetMigDeviceHandleByIndex", handle, place)
                uuid = text_of(calls.must("nvmlDeviceGetUUID", mig))
                instance = calls.must("nvmlDeviceGetGpuInstanceId", mig)
                compute = calls.must("nvmlDeviceGetComputeInstanceId", mig)
            except calls.errors as error:
                # Places are sparse, and an instance may be destroyed while it is read.
                if code_of(error) in {NvmlError.GPU_IS_LOST, NvmlError.RESET_REQUIRED}:
                    raise
                continue
            signals = dict(nvml_signals.memory(calls, mig))
            attributes = calls.ask("nvmlDeviceGetAttributes", mig)
            if attributes is not None:
                signals["gpu_mig_multiprocessors"] = float(attributes.multiprocessorCount)
            signals |= self._processes.signals(calls, mig, uuid)
            yield {"id": f"{instance}.{compute}", "uuid": uuid, "signals": signals}

    def _driver(self) -> dict[str, Any]:
        now = self._monotonic()
        if self._versions is None or now - self._versions[0] >= self._slow_seconds:
            calls = self._calls
            found = {
                "version": text_of(calls.ask("nvmlSystemGetDriverVersion")),
                "library": text_of(calls.ask("nvmlSystemGetNVMLVersion")),
                "cuda": calls.ask("nvmlSystemGetCudaDriverVersion"),
                "module": module_version(self._module_version),
                "on_disk": library_version_on_disk(),
            }
            self._versions = (now, found)
        return self._versions[1]


def _unread(
    index: int, state: GpuState, reason: str, *, uuid: str = "", name: str = "", pci: str = ""
) -> dict[str, Any]:
    return {
        "index": index,
        "uuid": uuid,
        "name": name,
        "pci": pci,
        "state": int(state),
        "reason": reason,
        "signals": {},
        "migs": [],
        "xids_watched": False,
    }


def _identity_of(entry: dict[str, Any]) -> dict[str, str]:
    return {key: entry[key] for key in ("uuid", "name", "pci")}
