"""Controls the fake ``libnvidia-ml.so.1`` of ``fake_nvml.c`` from outside the process that loaded it.

The structures mirror those of the C file; both sides check the size.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
NO_FAN = 0xFFFFFFFF
LOST, NOT_SUPPORTED, UNKNOWN = 15, 3, 999
RESET_REQUIRED = 16
_RECOVERY_ACTION = 230

_u32, _i32, _u64 = ctypes.c_uint32, ctypes.c_int32, ctypes.c_uint64


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", _u32),
        ("gpu_instance", _u32),
        ("compute_instance", _u32),
        ("graphics", _u32),
        ("bytes", _u64),
    ]


class _Mig(ctypes.Structure):
    _fields_ = [
        ("present", _u32),
        ("gpu_instance", _u32),
        ("compute_instance", _u32),
        ("multiprocessors", _u32),
        ("total_bytes", _u64),
        ("used_bytes", _u64),
        ("uuid", ctypes.c_char * 64),
    ]


class _Link(ctypes.Structure):
    _fields_ = [("active", _u32), ("padding", _u32), ("errors", _u64 * 4)]


class _Field(ctypes.Structure):
    _fields_ = [
        ("id", _u32),
        ("type", _u32),
        ("error", _i32),
        ("padding", _u32),
        ("value", _u64),
    ]


class FakeGpu(ctypes.Structure):
    """One GPU; assign its fields while the library runs."""

    _fields_ = [
        ("present", _i32),
        ("index_error", _i32),
        ("name", ctypes.c_char * 64),
        ("uuid", ctypes.c_char * 64),
        ("domain", _u32),
        ("bus", _u32),
        ("device", _u32),
        ("device_id", _u32),
        ("utilization_percent", _u32),
        ("memory_utilization_percent", _u32),
        ("total_bytes", _u64),
        ("reserved_bytes", _u64),
        ("used_bytes", _u64),
        ("temperature", _i32),
        ("margin", _i32),
        ("slowdown", _u32),
        ("shutdown", _u32),
        ("power_mw", _u32),
        ("limit_mw", _u32),
        ("enforced_limit_mw", _u32),
        ("default_limit_mw", _u32),
        ("min_limit_mw", _u32),
        ("max_limit_mw", _u32),
        ("energy_mj", _u64),
        ("clocks", _u32 * 4),
        ("max_clocks", _u32 * 4),
        ("reasons", _u64),
        ("violation_ns", _u64 * 6),
        ("performance_state", _u32),
        ("persistence", _u32),
        ("ecc_current", _u32),
        ("ecc_pending", _u32),
        ("ecc", (_u64 * 2) * 2),
        ("remap", _u32 * 4),
        ("remap_histogram", _u32 * 5),
        ("retired", _u32 * 2),
        ("retired_pending", _u32),
        ("link_generation", _u32),
        ("max_link_generation", _u32),
        ("link_width", _u32),
        ("max_link_width", _u32),
        ("replays", _u32),
        ("fan_percent", _u32),
        ("nvlinks", _u32),
        ("mig_current", _u32),
        ("mig_pending", _u32),
        ("process_count", _u32),
        ("field_count", _u32),
        ("processes", _Process * 16),
        ("fields", _Field * 16),
        ("links", _Link * 18),
        ("migs", _Mig * 7),
    ]

    def field(self, number: int, value: int, *, kind: int = 1, error: int = 0) -> None:
        """Set what ``nvmlDeviceGetFieldValues`` answers for one field."""
        known = [one for one in self.fields[: self.field_count] if one.id == number]
        if not known:
            known = [self.fields[self.field_count]]
            self.field_count += 1
        known[0].id, known[0].type, known[0].error, known[0].value = number, kind, error, value

    def processes_are(self, *processes: tuple[int, int]) -> None:
        """Set the running compute processes, as pairs of process id and bytes."""
        for place, (pid, size) in zip(self.processes, processes, strict=False):
            place.pid, place.bytes, place.graphics = pid, size, 0
        self.process_count = len(processes)


class _Rule(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_char * 64),
        ("gpu", _i32),
        ("error", _i32),
        ("hang", _u32),
        ("used", _u32),
    ]


class _Xid(ctypes.Structure):
    _fields_ = [
        ("gpu", _u32),
        ("code", _u32),
        ("gpu_instance", _u32),
        ("compute_instance", _u32),
    ]


class _State(ctypes.Structure):
    _fields_ = [
        ("magic", _u32),
        ("size", _u32),
        ("latch", _u32),
        ("inits", _u32),
        ("calls", _u32),
        ("cuda_version", _u32),
        ("xid_head", _u32),
        ("xid_tail", _u32),
        ("driver_version", ctypes.c_char * 80),
        ("nvml_version", ctypes.c_char * 80),
        ("rules", _Rule * 32),
        ("xids", _Xid * 64),
        ("gpus", FakeGpu * 16),
    ]


class FakeNvml:
    """The state of one fake NVML; processes started with :attr:`environment` meet it.

    Args:
        folder: where the state's file goes.
        library: the compiled library.
        count: GPUs at the start.
    """

    def __init__(self, folder: Path, library: Path, count: int = 2) -> None:
        self._path = folder / "fake_nvml.state"
        self._library = library
        self._path.write_bytes(bytes(ctypes.sizeof(_State)))
        with self._path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.state: Any = _State.from_buffer(self._memory)
        self.state.size = ctypes.sizeof(_State)
        self.state.driver_version, self.state.nvml_version = b"580.65.06", b"13.580.65.06"
        self.state.cuda_version = 13000
        for slot in range(count):
            self.plug(slot)
        self.state.magic = 0x4C4D564E

    @property
    def file(self) -> Path:
        """What a process that has the fake open holds, as others hold ``/dev/nvidia0``."""
        return self._path

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which ``libnvidia-ml.so.1`` is the fake."""
        return os.environ | {
            "LD_LIBRARY_PATH": str(self._library.parent),
            "GALEN_FAKE_NVML": str(self._path),
        }

    def gpu(self, slot: int = 0) -> FakeGpu:
        """Return the GPU of a slot."""
        gpu: FakeGpu = self.state.gpus[slot]
        return gpu

    def plug(self, slot: int, *, uuid: str = "") -> FakeGpu:
        """Put a healthy, half busy H100 into a slot."""
        ctypes.memset(ctypes.addressof(self.state.gpus[slot]), 0, ctypes.sizeof(FakeGpu))
        gpu = self.gpu(slot)
        gpu.name, gpu.uuid = b"NVIDIA H100 80GB HBM3", (uuid or f"GPU-{slot}").encode()
        gpu.bus, gpu.device_id = 0x18 + slot, 0x233010DE
        gpu.utilization_percent, gpu.memory_utilization_percent = 73, 20
        gpu.total_bytes, gpu.reserved_bytes, gpu.used_bytes = 80 << 30, 1 << 30, 20 << 30
        gpu.temperature, gpu.margin, gpu.slowdown, gpu.shutdown = 61, 24, 90, 95
        gpu.power_mw, gpu.energy_mj = 471_500, 7_000_500
        gpu.limit_mw = gpu.enforced_limit_mw = gpu.default_limit_mw = gpu.max_limit_mw = 700_000
        gpu.min_limit_mw = 200_000
        gpu.clocks[:], gpu.max_clocks[:] = [1755, 1755, 2619, 1545], [1980, 1980, 2619, 1545]
        gpu.reasons, gpu.persistence = 0x4, 1
        gpu.violation_ns[0], gpu.violation_ns[1] = 5_000_000_000, 2_000_000_000
        gpu.ecc_current = gpu.ecc_pending = 1
        gpu.ecc[0][0], gpu.ecc[0][1], gpu.ecc[1][1] = 5, 50, 2
        gpu.remap_histogram[0] = 640
        gpu.link_generation = gpu.max_link_generation = 5
        gpu.link_width = gpu.max_link_width = 16
        gpu.replays, gpu.fan_percent, gpu.nvlinks = 4, NO_FAN, 4
        for link in gpu.links[:4]:
            link.active = 1
        gpu.field(82, 55)  # memory temperature
        gpu.field(230, 0)  # recovery action
        gpu.present = 1
        return gpu

    def split(self, slot: int, *, uuid: str = "MIG-a", place: int = 0, instance: int = 1) -> Any:
        """Turn MIG on and make one instance of 10 GiB."""
        gpu = self.gpu(slot)
        gpu.mig_current = gpu.mig_pending = 1
        mig = gpu.migs[place]
        mig.gpu_instance, mig.compute_instance, mig.multiprocessors = instance, 0, 16
        mig.total_bytes, mig.used_bytes, mig.uuid = 10 << 30, 4 << 30, uuid.encode()
        mig.present = 1
        return mig

    def fail(self, error: int, function: str = "", gpu: int = -1) -> None:
        """Let a function (all when empty) of a GPU (all when -1) return an error."""
        self._rule(function, gpu, error, 0)

    def hang(self, function: str = "", gpu: int = -1) -> None:
        """Let a function of a GPU not return until :meth:`heal`."""
        self._rule(function, gpu, 0, 1)

    def heal(self) -> None:
        """Remove every rule; what hangs returns."""
        for rule in self.state.rules:
            rule.used = rule.hang = 0

    def xid(self, code: int, gpu: int = 0) -> None:
        """Queue an XID event."""
        place = self.state.xids[self.state.xid_head % 64]
        place.gpu, place.code = gpu, code
        place.gpu_instance = place.compute_instance = 0xFFFFFFFF
        self.state.xid_head += 1

    def _rule(self, function: str, gpu: int, error: int, hang: int) -> None:
        rule = next(rule for rule in self.state.rules if not rule.used)
        rule.function, rule.gpu, rule.error, rule.hang = function.encode(), gpu, error, hang
        rule.used = 1


def reset_gpu(path: Path, uuid: str) -> bool:
    """Reset one GPU of the fake, from any process; return whether there is one of that UUID."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        state = _State.from_buffer(memory)
        found = [gpu for gpu in state.gpus if gpu.uuid == uuid.encode()]
        for gpu in found:
            gpu.index_error = 0
            gpu.field(_RECOVERY_ACTION, 0)
        exists = bool(found)
        del state, found
        with suppress(UnboundLocalError):
            del gpu
    return exists


def compile_library(folder: Path, *defines: str) -> Path:
    """Compile the fake into a folder of its own and return its path; skip without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        reason = "there is no C compiler (cc) to build the fake NVML with"
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail(f"GALEN_REQUIRE_SERVICES=1 and {reason}")
        pytest.skip(reason)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-shared",
         "-fPIC", *(f"-D{name}" for name in defines), "-o", str(library), str(SOURCE)],
        check=True,
    )  # fmt: skip
    size = ctypes.CDLL(str(library)).fake_nvml_state_size()
    assert size == ctypes.sizeof(_State), "fake_nvml.py and fake_nvml.c disagree on the layout"
    return library


@contextmanager
def loadable(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let children of this process load the fake: they inherit its environment."""
    with monkeypatch.context() as patch:
        for name, value in fake.environment.items():
            patch.setenv(name, value)
        yield
