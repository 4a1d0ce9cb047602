"""Which faults a fake device shows, and when."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path


class FaultKind(StrEnum):
    """What goes wrong."""

    DESERIALIZE_NONE = "deserialize_none"
    """`deserialize_cuda_engine` returns None."""
    DEVICE_MISSING = "device_missing"
    """No device answers when a model is loaded."""
    EXECUTE_FALSE = "execute_false"
    """`execute_async_v3` returns False."""
    OUT_OF_MEMORY = "out_of_memory"
    """The same, for lack of device memory."""
    ASYNC_ERROR = "async_error"
    """What was queued fails, and `cudaStreamSynchronize` says so; the device goes on."""
    DEVICE_LOST = "device_lost"
    """The same, and every later call fails too."""
    HANG = "hang"
    """`cudaStreamSynchronize` never returns."""
    SEGFAULT = "segfault"
    """The process dies of SIGSEGV in `execute_async_v3`."""
    NAN_OUTPUT = "nan_output"
    """The first output is not a number."""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault to come."""

    kind: FaultKind
    after: int = 0
    """Occasions to let pass first."""
    times: int = 1
    """Occasions to fail."""
    message: str = ""
    """What the library says."""


class FaultProgram:
    """Faults in the order in which they were planned.

    Args:
        path: File that they are kept in, read at every occasion and written before a fault shows, so
            that another process can plan one, and a process that died of one does not die of it
            again. None keeps them in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._planned: list[PlannedFault] = []

    def plan(self, *faults: PlannedFault) -> None:
        """Replace the plan."""
        self._write(list(faults))

    def take(self, *kinds: FaultKind) -> PlannedFault | None:
        """Return the fault that shows now, among those that can show at this place."""
        planned = self._read()
        for number, fault in enumerate(planned):
            if fault.kind not in kinds:
                continue
            if fault.after > 0:
                planned[number] = replace(fault, after=fault.after - 1)
                shown = None
            else:
                shown = fault
                planned[number] = replace(fault, times=fault.times - 1)
            self._write([one for one in planned if one.times > 0])
            return shown
        return None

    def _read(self) -> list[PlannedFault]:
        if self._path is None:
            return list(self._planned)
        try:
            items = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return []
        return [PlannedFault(**{**item, "kind": FaultKind(item["kind"])}) for item in items]

    def _write(self, planned: list[PlannedFault]) -> None:
        self._planned = planned
        if self._path is not None:
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps([asdict(fault) for fault in planned]), encoding="utf-8")
            part.replace(self._path)
