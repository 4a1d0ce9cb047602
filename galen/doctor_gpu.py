"""What `galen doctor` says about GPUs: read in a child that is killed when the driver hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from collectors.contract import CollectorError, Sample
from collectors.entities import kind_of
from collectors.gpu.kernel_log import LogError, LogReader, open_log
from collectors.gpu.nvml import NvmlCollector
from collectors.gpu.release import GpuRelease
from collectors.gpu.states import DriverState, GpuState
from collectors.gpu.throttle import ThrottleReason
from collectors.settings import CollectorsSettings
from galen.check import Check, Level

_WHY = "NVML is where GPU numbers come from."
_DEVICE = Path("/dev/nvidiactl")
_MIG_CAPABILITIES = Path("/proc/driver/nvidia/capabilities/mig/monitor")
_POWER_TOLERANCE_WATTS = 1.0
_STATE_FIXES: Mapping[GpuState, str] = {
    GpuState.RESET_REQUIRED: "end what runs on it and reset it: sudo nvidia-smi -i {uuid} --gpu-reset",
    GpuState.LOST: "read `dmesg | grep -i xid`; a device that fell off the bus needs a reboot",
    GpuState.GONE: "compare `lspci | grep -i nvidia` with `nvidia-smi -L`",
    GpuState.UNREADABLE: "look for fields that say ERR! in `nvidia-smi -q -i {uuid}`, and reset it",
    GpuState.HUNG: "read `dmesg | grep -i xid` (119 and 120 are the firmware); drain it and reboot",
    GpuState.UNREAD: "let this user open /dev/nvidia*",
}


@dataclass(frozen=True, slots=True)
class _Gpu:
    """One GPU as it was read."""

    name: str
    uuid: str
    reason: str
    values: Mapping[str, float]

    @property
    def target(self) -> str:
        """What ``nvidia-smi -i`` takes."""
        return self.uuid or self.name.rsplit("/", 1)[-1]


@dataclass(slots=True)
class _Finding:
    """A fault or a weakness that several GPUs may share."""

    name: str
    level: Level
    what: str
    why: str
    fix: str
    """With ``{uuid}`` where a command is about one GPU."""
    gpus: list[_Gpu] = field(default_factory=list)

    def check(self) -> Check:
        """Return it as one check: the fix names the first GPU, and says where there are more."""
        names = ", ".join(gpu.name.rsplit("/", 1)[-1] for gpu in self.gpus)
        fix = self.fix.format(uuid=self.gpus[0].target)
        more = f" (and the same for {len(self.gpus) - 1} more)" if len(self.gpus) > 1 else ""
        return Check(
            name=self.name,
            level=self.level,
            found=f"GPU {names}: {self.what}",
            why=self.why,
            fix=fix + (more if "{uuid}" in self.fix else ""),
        )


def gpu_checks(
    settings: CollectorsSettings,
    release: GpuRelease,
    *,
    make: Callable[[], NvmlCollector] | None = None,
    open_kernel_log: Callable[[str], LogReader | None] = open_log,
    device: Path = _DEVICE,
    mig_capabilities: Path = _MIG_CAPABILITIES,
) -> Iterator[Check]:
    """Look at the driver, each GPU and the kernel log.

    Takes some seconds at most, whatever the driver does: it is asked in a child with a deadline.

    Args:
        settings: where XIDs are read from.
        release: a reset that is under way must not be disturbed.
        make: makes the collector that asks.
        open_kernel_log: opens the log that a name stands for.
        device: is there where the kernel module is.
        mig_capabilities: what has to be readable to see MIG instances.
    """
    standing = release.read()
    if standing is not None and standing.stands(time.time()):
        yield Check(
            name="gpu",
            level=Level.NOTE,
            found=f"not looked at: {standing.gpu} is being reset",
            why="A reset fails while anybody has a GPU open.",
            fix="Run this again in a minute.",
        )
        return
    collector = make() if make else NvmlCollector("here", deadline_seconds=5.0)
    try:
        samples = collector.collect(time.time()).samples
    except CollectorError as error:
        yield _silent(error, device)
        return
    finally:
        collector.close()
    gpus = _gpus(samples)
    yield _summary(samples, gpus)
    yield from _driver_findings(samples)
    yield from (finding.check() for finding in _device_findings(gpus))
    yield from _mig(gpus, mig_capabilities)
    if gpus:
        yield _kernel_log(settings.xid.source, open_kernel_log)


def _silent(error: CollectorError, device: Path) -> Check:
    state = next((int(s.value) for s in error.samples if s.signal == "gpu_driver_state"), None)
    none_here = {DriverState.LIBRARY_MISSING, DriverState.NOT_LOADED}
    if state in none_here and not device.exists():
        return Check(
            name="gpu",
            level=Level.NOTE,
            found=str(error),
            why=_WHY,
            fix="None needed without a GPU: a simulated one is used, and labelled so. With one, "
            "install NVIDIA's driver.",
        )
    fix = error.fix or "run `nvidia-smi` by hand, and reinstall the driver when it fails too"
    return Check(name="gpu", level=Level.FAIL, found=str(error), why=_WHY, fix=_sentence(fix))


def _gpus(samples: Sequence[Sample]) -> list[_Gpu]:
    values: dict[str, dict[str, float]] = {}
    labels: dict[str, Mapping[str, str]] = {}
    for sample in samples:
        if kind_of(sample.entity) == "gpu":
            values.setdefault(sample.entity, {})[sample.signal] = sample.value
            if sample.signal == "gpu_state":
                labels[sample.entity] = sample.labels
    return [
        _Gpu(name, label.get("uuid", ""), label.get("reason", ""), values[name])
        for name, label in labels.items()
    ]


def _summary(samples: Sequence[Sample], gpus: Sequence[_Gpu]) -> Check:
    versions = {s.signal: s for s in samples}
    driver = versions.get("gpu_driver_version")
    cuda = versions.get("gpu_cuda_driver_version")
    found = f"{len(gpus)} GPUs"
    if driver is not None:
        found += f", driver {driver.labels.get('version', '')}"
    if cuda is not None:
        found += f", CUDA {int(cuda.value) // 1000}.{int(cuda.value) % 1000 // 10}"
    return Check(
        name="gpu",
        level=Level.OK if gpus else Level.FAIL,
        found=found,
        why=_WHY,
        fix="" if gpus else "The driver sees no GPU: look at `dmesg | grep -i xid` and `lspci`.",
    )


def _driver_findings(samples: Sequence[Sample]) -> Iterator[Check]:
    for sample in samples:
        if sample.signal == "gpu_driver_library_mismatch" and sample.value:
            module, library = (sample.labels.get(key, "?") for key in ("module", "library"))
            yield Check(
                name="gpu driver",
                level=Level.FAIL,
                found=f"the kernel module is {module} and the library {library}",
                why="What runs goes on, but no process that starts now can use a GPU.",
                fix="Drain this host and reboot it; then `sudo apt-mark hold` the driver's packages.",
            )


def _device_findings(gpus: Sequence[_Gpu]) -> list[_Finding]:
    found: dict[tuple[str, str], _Finding] = {}
    for gpu in gpus:
        for finding in _findings_of(gpu):
            same = found.setdefault((finding.name, finding.what), finding)
            same.gpus.append(gpu)
    return list(found.values())


def _findings_of(gpu: _Gpu) -> Iterator[_Finding]:
    state = GpuState(int(gpu.values["gpu_state"]))
    if state is not GpuState.OK:
        words = state.name.lower().replace("_", " ")
        yield _Finding(
            "gpu state",
            Level.FAIL,
            f"{words}" + (f" ({gpu.reason})" if gpu.reason else ""),
            "A GPU in this state gives no numbers and does no work.",
            _sentence(_STATE_FIXES.get(state, "")),
        )
        return
    yield from _memory_findings(gpu)
    yield from _clock_findings(gpu)
    if gpu.values.get("gpu_persistence_mode") == 0:
        yield _Finding(
            "gpu persistence",
            Level.NOTE,
            "persistence mode is off",
            "Without it the driver unloads with its last client, and its error counters are lost.",
            "sudo systemctl enable --now nvidia-persistenced (or, until the next boot, "
            "sudo nvidia-smi -pm 1)",
        )
    ratio = gpu.values.get("gpu_pcie_link_width_ratio", 1.0)
    if ratio < 1:
        yield _Finding(
            "gpu pcie",
            Level.NOTE,
            f"its PCIe link uses {gpu.values['gpu_pcie_link_width']:.0f} of "
            f"{gpu.values['gpu_pcie_link_width_max']:.0f} lanes",
            "Models load and copies run at that share of the speed.",
            "sudo lspci -vv | grep -A60 NVIDIA | grep LnkSta; reboot, then reseat the board.",
        )


def _memory_findings(gpu: _Gpu) -> Iterator[_Finding]:
    values = gpu.values
    if values.get("gpu_ecc_enabled") == 0:
        yield _Finding(
            "gpu ecc",
            Level.NOTE,
            "ECC is off",
            "Memory errors then give wrong answers instead of an error.",
            "sudo nvidia-smi -i {uuid} -e 1, then reset the GPU or reboot",
        )
    if values.get("gpu_row_remap_failed"):
        yield _Finding(
            "gpu memory",
            Level.FAIL,
            "a memory row could not be remapped",
            "The next error in that row stays.",
            "Replace the board: sudo nvidia-bug-report.sh, and open a case with its vendor.",
        )
    elif values.get("gpu_row_remap_pending") or values.get("gpu_retired_pages_pending"):
        yield _Finding(
            "gpu memory",
            Level.NOTE,
            "a memory repair waits for a reset",
            "Until then the faulty row is in use.",
            "end what runs on it, then sudo nvidia-smi -i {uuid} --gpu-reset",
        )
    if values.get("gpu_processes_vanished"):
        yield _Finding(
            "gpu processes",
            Level.NOTE,
            f"memory of {values['gpu_processes_vanished']:.0f} processes that ended is not freed",
            "Nobody will give it back.",
            "sudo fuser -v /dev/nvidia*, end what is left over, or reset the GPU",
        )


def _clock_findings(gpu: _Gpu) -> Iterator[_Finding]:
    values = gpu.values
    reasons = ThrottleReason(int(values.get("gpu_throttle_reason", 0)))
    if ThrottleReason.APPLICATION_CLOCKS in reasons:
        yield _Finding(
            "gpu clocks",
            Level.NOTE,
            "its clocks are capped by a setting",
            "Every kernel runs slower than it could.",
            "sudo nvidia-smi -i {uuid} -rac && sudo nvidia-smi -i {uuid} -rgc, unless it is meant",
        )
    if ThrottleReason.HW_POWER_BRAKE in reasons:
        yield _Finding(
            "gpu power",
            Level.FAIL,
            "the power brake is on",
            "The supply or the rack halves its clocks; no setting of the GPU lifts that.",
            "Look at the power supplies and the rack.",
        )
    limit, usual = values.get("gpu_power_limit_watts"), values.get("gpu_power_limit_default_watts")
    if limit is not None and usual is not None and limit < usual - _POWER_TOLERANCE_WATTS:
        yield _Finding(
            "gpu power limit",
            Level.NOTE,
            f"its power limit is {limit:.0f} W of {usual:.0f} W",
            "Under load its clocks fall to stay below it.",
            f"sudo nvidia-smi -i {{uuid}} -pl {usual:.0f}, unless it is meant",
        )


def _mig(gpus: Sequence[_Gpu], capabilities: Path) -> Iterator[Check]:
    split = [gpu for gpu in gpus if gpu.values.get("gpu_mig_enabled")]
    blind = [gpu for gpu in split if not gpu.values.get("gpu_mig_instances")]
    if not split:
        return
    if blind:
        finding = _Finding(
            "gpu mig",
            Level.FAIL,
            "MIG is on and no instance can be seen",
            "Numbers of a split GPU are those of its instances.",
            "List them with sudo nvidia-smi mig -i {uuid} -lgi. None: create some, or -mig 0. Some: "
            "in a container, set NVIDIA_MIG_MONITOR_DEVICES=all and add --cap-add SYS_ADMIN",
            blind,
        )
        yield finding.check()
        return
    readable = _can_read(capabilities)
    yield Check(
        name="gpu mig",
        level=Level.OK if readable else Level.NOTE,
        found=f"{len(split)} GPUs are split, and their instances are seen"
        + ("" if readable else f"; {capabilities} cannot be read"),
        why="Without the right to monitor, the driver tells of some instances and not of others.",
        fix=""
        if readable
        else "Run as root, or in a container with NVIDIA_MIG_MONITOR_DEVICES=all and "
        "--cap-add SYS_ADMIN.",
    )


def _can_read(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def _kernel_log(source: str, open_kernel_log: Callable[[str], LogReader | None]) -> Check:
    why = "XIDs come from there; NVML's own events miss some."
    problem = "none that this user may read"
    reader = None if source == "none" else open_kernel_log(source)
    if reader is not None:
        try:
            reader.read()
        except LogError as error:
            problem = str(error)
        else:
            return Check(name="kernel log", level=Level.OK, found="can be read", why=why)
        finally:
            reader.close()
    if source == "none":
        problem = 'not read: xid.source is "none"'
    return Check(
        name="kernel log",
        level=Level.NOTE,
        found=problem,
        why=why,
        fix="On a host: sudo usermod -aG systemd-journal $USER and log in again. As a service: "
        "AmbientCapabilities=CAP_SYSLOG in its unit. In a container: --device /dev/kmsg "
        "--cap-add SYSLOG. Or set collectors.xid.source to a file.",
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
