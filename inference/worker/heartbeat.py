"""The worker's heartbeat: progress in shared memory, readable while the worker hangs.

The worker writes one fixed record around every step; the front's supervisor, its health layers and
``/metrics`` read it without asking the worker. A sequence lock keeps a reader from mixing two
records: the writer makes the version odd, writes, and makes it even. A writer that was killed half
way leaves it odd for ever; the reader then takes what is there, which is still good enough to say
that nothing moves.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field, fields
from enum import IntEnum
from operator import attrgetter

_VERSION = struct.Struct("<Q")
_RECORD = struct.Struct("<qqqqqqqqqddddddd")
_IDS = struct.Struct("<64Q")
_DETAIL_BYTES = 480
_IDS_AT = _VERSION.size + _RECORD.size
_DETAIL_AT = _IDS_AT + _IDS.size
SIZE_BYTES = _DETAIL_AT + _DETAIL_BYTES
MAX_IDS = 64
_READ_ATTEMPTS = 8


class WorkerState(IntEnum):
    """What the worker itself says that it does."""

    SPAWNED = 0
    LOADING = 1
    IDLE = 2
    BUSY = 3
    DRAINING = 4
    LOAD_FAILED = 5
    DEVICE_LOST = 6
    """The process ends because it cannot use its device any more."""


class LoadPhase(IntEnum):
    """Where a load is; none of these is a hang before the load budget is spent."""

    NONE = 0
    READ = 1
    DESERIALIZE = 2
    COMPILE = 3
    """Making a context: TensorRT for RTX compiles for the GPU then."""
    WARM_UP = 4


@dataclass(slots=True)
class Heartbeat:
    """One record. Times are CLOCK_MONOTONIC seconds, which all processes of a host share."""

    state: int = WorkerState.SPAWNED
    pid: int = 0
    steps: int = 0
    """Finished engine executions, prefill and decode."""
    batch_size: int = 0
    """Sequences that hold a slot now."""
    invalid_outputs: int = 0
    """Executions whose logits were not finite."""
    cache_hit_tokens: int = 0
    """Prompt tokens whose keys and values came from the prefix cache."""
    cache_query_tokens: int = 0
    """Prompt tokens looked up in the prefix cache."""
    cache_bytes: int = 0
    load_phase: int = LoadPhase.NONE
    started_at: float = 0.0
    """When the process started."""
    ready_at: float = 0.0
    """When the model was loaded; 0 before."""
    step_started_at: float = 0.0
    """Start of the newest execution."""
    last_step_at: float = 0.0
    """End of the newest finished execution."""
    busy_seconds: float = 0.0
    """Total time inside executions."""
    deadline: float = 0.0
    """Earliest deadline in the running batch; 0 without one."""
    load_phase_at: float = 0.0
    """When the phase of the load began."""
    running_ids: tuple[int, ...] = field(default=())
    """Numbers of the requests in the running batch, at most 64."""
    detail: str = ""
    """Why the last load failed, or the device was lost."""

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self.state in {WorkerState.IDLE, WorkerState.BUSY, WorkerState.DRAINING}


_NUMBERS = tuple(item.name for item in fields(Heartbeat))[:16]
_numbers_of = attrgetter(*_NUMBERS)
_NO_IDS = (0,) * MAX_IDS


class HeartbeatWriter:
    """The worker's end of the record."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._version = 0
        self._written_ids: tuple[int, ...] | None = None
        self.record = Heartbeat()

    @classmethod
    def private(cls) -> HeartbeatWriter:
        """Return a writer that nobody reads, for work that is not service."""
        return cls(mmap.mmap(-1, SIZE_BYTES))

    def write(self) -> None:
        """Publish `record`."""
        self._version += 1
        _VERSION.pack_into(self._memory, 0, self._version)
        record = self.record
        _RECORD.pack_into(self._memory, _VERSION.size, *_numbers_of(record))
        if record.running_ids != self._written_ids:
            ids = self._written_ids = record.running_ids
            _IDS.pack_into(self._memory, _IDS_AT, *(*ids, *_NO_IDS)[:MAX_IDS])
        self._version += 1
        _VERSION.pack_into(self._memory, 0, self._version)

    def enter(self, phase: LoadPhase, now: float) -> None:
        """Publish where the load is."""
        self.record.load_phase, self.record.load_phase_at = phase, now
        self.write()

    def write_detail(self, detail: str) -> None:
        """Publish `record` together with a text, cut to fit."""
        encoded = detail.encode()[:_DETAIL_BYTES].decode(errors="ignore").encode()
        start = _DETAIL_AT
        self._memory[start : start + _DETAIL_BYTES] = encoded.ljust(_DETAIL_BYTES, b"\0")
        self.write()


class HeartbeatReader:
    """The front's end; never blocks."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def read(self) -> Heartbeat:
        """Return the newest whole record, or what is there if its writer died half way."""
        for _ in range(_READ_ATTEMPTS):
            (before,) = _VERSION.unpack_from(self._memory, 0)
            record = self._unpack()
            (after,) = _VERSION.unpack_from(self._memory, 0)
            if before == after and before % 2 == 0:
                break
        return record

    def _unpack(self) -> Heartbeat:
        numbers = _RECORD.unpack_from(self._memory, _VERSION.size)
        ids = tuple(number for number in _IDS.unpack_from(self._memory, _IDS_AT) if number)
        raw = self._memory[_DETAIL_AT : _DETAIL_AT + _DETAIL_BYTES]
        detail = raw.rstrip(b"\0").decode(errors="replace")
        record = Heartbeat(running_ids=ids, detail=detail)
        for name, number in zip(_NUMBERS, numbers, strict=True):
            setattr(record, name, number)
        return record
