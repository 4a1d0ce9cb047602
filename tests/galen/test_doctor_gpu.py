"""`galen doctor` about GPUs, against the fake driver in the real child."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collectors.gpu.kernel_log import LogBatch, LogError, LogReader
from collectors.gpu.nvml import CHILD_COMMAND, NvmlCollector
from collectors.gpu.release import GpuRelease
from collectors.settings import CollectorsSettings
from galen.check import Check, Level
from galen.doctor_gpu import gpu_checks
from tests.collectors.gpu.fake_nvml import LOST, RESET_REQUIRED, FakeNvml, compile_library


class Log:
    """A kernel log that can be read, or not."""

    def __init__(self, problem: str = "") -> None:
        self._problem = problem

    def read(self) -> LogBatch:
        if self._problem:
            raise LogError(self._problem)
        return LogBatch()

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    made = FakeNvml(tmp_path, library)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.heal()


def look(tmp_path: Path, *, deadline: float = 10.0, log: LogReader | None = None) -> list[Check]:
    def make() -> NvmlCollector:
        command = (
            *CHILD_COMMAND,
            f"--devices-folder={tmp_path / 'gpus'}",
            f"--module-version-file={tmp_path / 'module_version'}",
        )
        return NvmlCollector("here", deadline_seconds=deadline, command=command)

    return list(
        gpu_checks(
            CollectorsSettings(),
            GpuRelease(tmp_path / "gpu_release.json"),
            make=make,
            open_kernel_log=lambda _: log if log is not None else Log(),
            device=tmp_path / "nvidiactl",
            mig_capabilities=tmp_path / "mig_monitor",
        )
    )


def only(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def test_healthy_gpus(fake: FakeNvml, tmp_path: Path) -> None:
    checks = look(tmp_path)
    assert [(check.name, check.level) for check in checks] == [
        ("gpu", Level.OK),
        ("kernel log", Level.OK),
    ]
    assert checks[0].found == "2 GPUs, driver 580.65.06, CUDA 13.0"


def test_a_hung_driver_is_a_finding_and_no_hang(
    fake: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collectors.gpu.nvml._START_SECONDS", 1.5)
    fake.hang("nvmlDeviceGetCount_v2")
    (found,) = look(tmp_path)
    assert (found.name, found.level) == ("gpu", Level.FAIL)
    assert "no answer" in found.found
    assert "state D" in found.fix


@pytest.mark.parametrize(
    ("error", "device", "level", "words"),
    [
        (9, False, Level.NOTE, "None needed"),
        (9, True, Level.FAIL, "modprobe nvidia"),
        (18, True, Level.FAIL, "reload the module or reboot"),
        (4, True, Level.FAIL, "/dev/nvidiactl"),
    ],
)
def test_a_driver_that_refuses(
    fake: FakeNvml, tmp_path: Path, error: int, device: bool, level: Level, words: str
) -> None:
    if device:
        (tmp_path / "nvidiactl").touch()
    fake.fail(error, "nvmlInitWithFlags")
    (found,) = look(tmp_path)
    assert (found.name, found.level) == ("gpu", level)
    assert words in found.fix


def test_each_state_has_its_fix(fake: FakeNvml, tmp_path: Path) -> None:
    fake.gpu(0).index_error, fake.gpu(1).index_error = RESET_REQUIRED, LOST
    found = [check for check in look(tmp_path) if check.name == "gpu state"]
    assert [check.level for check in found] == [Level.FAIL, Level.FAIL]
    assert "--gpu-reset" in found[0].fix
    assert "reboot" in found[1].fix


def test_weaknesses_have_a_command_each(fake: FakeNvml, tmp_path: Path) -> None:
    first, second = fake.gpu(0), fake.gpu(1)
    first.persistence = second.persistence = 0
    first.ecc_current = 0
    first.reasons = 0x2
    first.enforced_limit_mw = 400_000
    second.link_width = 8
    second.remap[2] = 1
    checks = look(tmp_path)
    assert only(checks, "gpu persistence").found == "GPU 0, 1: persistence mode is off"
    fixes = {check.name: check.fix for check in checks if check.level is Level.NOTE}
    assert "nvidia-persistenced" in fixes["gpu persistence"]
    assert "nvidia-smi -i GPU-0 -e 1" in fixes["gpu ecc"]
    assert "nvidia-smi -i GPU-0 -rac" in fixes["gpu clocks"]
    assert "nvidia-smi -i GPU-0 -pl 700" in fixes["gpu power limit"]
    assert "LnkSta" in fixes["gpu pcie"]
    assert "nvidia-smi -i GPU-1 --gpu-reset" in fixes["gpu memory"]
    assert all(check.why and check.fix for check in checks if check.level is not Level.OK)


def test_a_failed_repair_and_the_power_brake_are_failures(fake: FakeNvml, tmp_path: Path) -> None:
    fake.gpu(0).remap[3] = 1
    fake.gpu(1).reasons = 0x80
    checks = look(tmp_path)
    assert only(checks, "gpu memory").level is Level.FAIL
    assert "Replace the board" in only(checks, "gpu memory").fix
    assert only(checks, "gpu power").level is Level.FAIL


def test_a_library_that_was_upgraded(fake: FakeNvml, tmp_path: Path) -> None:
    (tmp_path / "module_version").write_text("570.10.01\n")
    versioned = Path(fake.environment["LD_LIBRARY_PATH"])
    renamed = versioned / "libnvidia-ml.so.580.65.06"
    library = versioned / "libnvidia-ml.so.1"
    library.rename(renamed)
    library.symlink_to(renamed.name)
    try:
        found = only(look(tmp_path), "gpu driver")
    finally:
        library.unlink()
        renamed.rename(library)
    assert found.level is Level.FAIL
    assert "570.10.01" in found.found
    assert "reboot" in found.fix


def test_mig_without_the_right_to_see_instances(fake: FakeNvml, tmp_path: Path) -> None:
    fake.gpu(0).mig_current = fake.gpu(0).mig_pending = 1
    found = only(look(tmp_path), "gpu mig")
    assert (found.level, "NVIDIA_MIG_MONITOR_DEVICES" in found.fix) == (Level.FAIL, True)
    fake.split(0)
    assert only(look(tmp_path), "gpu mig").level is Level.NOTE
    (tmp_path / "mig_monitor").touch()
    assert only(look(tmp_path), "gpu mig").level is Level.OK


def test_a_kernel_log_that_may_not_be_read(fake: FakeNvml, tmp_path: Path) -> None:
    found = only(look(tmp_path, log=Log("/dev/kmsg: permission denied")), "kernel log")
    assert found.level is Level.NOTE
    assert "permission denied" in found.found
    assert "CAP_SYSLOG" in found.fix


def test_a_reset_under_way_is_not_disturbed(fake: FakeNvml, tmp_path: Path) -> None:
    calls = fake.state.calls
    GpuRelease(tmp_path / "gpu_release.json", clock=time.time)._ask("GPU-0", 60.0, "")
    (found,) = look(tmp_path)
    assert "being reset" in found.found
    assert fake.state.calls == calls
