"""From a sick driver to an incident with its cause: collectors, detection and diagnosis as they ship.

The NVML collector is the real one, with the real ``nvidia-ml-py`` in its child, on the fake library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.analyst import Analyst
from analysis.findings import Verdict
from analysis.history import History
from analysis.incident_changes import ChangeKind, IncidentChange
from analysis.journal import Journal
from analysis.settings import AnalysisSettings
from collectors.contract import Collector
from collectors.gpu.control import SimulatedGpuControl
from collectors.gpu.kernel_log import FileReader
from collectors.gpu.nvml import CHILD_COMMAND, NvmlCollector
from collectors.gpu.release import GpuRelease
from collectors.gpu.simulated import SimulatedGpuCollector
from collectors.gpu.xid_collector import XidCollector
from collectors.gpu.xid_ledger import XidLedger
from collectors.poller import Poller
from tests.collectors.gpu.fake_nvml import LOST, RESET_REQUIRED, FakeNvml, compile_library

WARM_UP, FAULTY = 60, 15


class Watch:
    """Poller and analyst as the watch loop joins them, a second a tick of a clock of their own."""

    def __init__(self, folder: Path, collectors: list[Collector]) -> None:
        self.now = 1_700_000_000.0
        self._poller = Poller(collectors, budget_seconds=30.0)
        self._journal = Journal(folder / "journal.sqlite")
        self._analyst = Analyst(AnalysisSettings(), self._journal, History(capacity_ticks=400))

    def run(self, ticks: int, each: Callable[[], object] = lambda: None) -> list[IncidentChange]:
        told: list[IncidentChange] = []
        for _ in range(ticks):
            self.now += 1.0
            each()
            samples = self._poller.tick(self.now).samples
            told += self._analyst.tick(self.now, samples).changes
        return told

    def close(self) -> None:
        self._poller.close()
        self._analyst.close()
        self._journal.close()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    made = FakeNvml(tmp_path, library)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "gpus").mkdir()
    yield made
    made.heal()


@pytest.fixture
def watch(fake: FakeNvml, tmp_path: Path) -> Iterator[Watch]:
    ledger = XidLedger("box")
    command = (
        *CHILD_COMMAND,
        "--slow-seconds=0",
        f"--devices-folder={tmp_path / 'gpus'}",
        f"--module-version-file={tmp_path / 'module_version'}",
    )
    nvml = NvmlCollector(
        "box",
        deadline_seconds=1.5,
        command=command,
        xids=ledger,
        release=GpuRelease(tmp_path / "gpu_release.json"),
    )
    (tmp_path / "kern.log").touch()
    made = Watch(tmp_path, [nvml, XidCollector("box", ledger, FileReader(tmp_path / "kern.log"))])
    yield made
    fake.heal()
    made.close()


def _index_error(error: int) -> Callable[[FakeNvml], None]:
    def change(fake: FakeNvml) -> None:
        fake.gpu().index_error = error

    return change


def _off_the_bus(fake: FakeNvml) -> None:
    fake.xid(79)
    fake.gpu().index_error = LOST


def _page_fault(fake: FakeNvml) -> None:
    fake.xid(31)


def _remap_failed(fake: FakeNvml) -> None:
    fake.gpu().remap[3] = 1


@pytest.mark.parametrize(
    ("change", "cause", "first_rung"),
    [
        (_index_error(LOST), "gpu_xid_fatal", "reset_gpu"),
        (_off_the_bus, "gpu_xid_fatal", "reset_gpu"),
        (_index_error(RESET_REQUIRED), "gpu_reset_required", "reset_gpu"),
        (lambda fake: setattr(fake.gpu(1), "present", 0), "gpu_gone", "page_human"),
        (lambda fake: fake.hang("nvmlDeviceGetPowerUsage", gpu=1), "gpu_hung", "reset_gpu"),
        (lambda fake: fake.hang("nvmlDeviceGetCount_v2"), "gpu_driver_hang", "reboot_host"),
        (lambda fake: fake.fail(18, "nvmlDeviceGetCount_v2"), "gpu_driver_mismatch", "page_human"),
        (lambda fake: fake.fail(9, "nvmlDeviceGetCount_v2"), "gpu_driver_unusable", "page_human"),
        (_remap_failed, "gpu_memory_unrepairable", "drain_service"),
        (_page_fault, "gpu_xid_application", "restart_engine"),
    ],
)
def test_each_fault_of_the_driver_opens_one_incident_with_its_cause(
    change: Callable[[FakeNvml], object],
    cause: str,
    first_rung: str,
    fake: FakeNvml,
    watch: Watch,
) -> None:
    assert watch.run(WARM_UP) == []
    change(fake)
    told = watch.run(FAULTY)
    assert told, "nothing was told"
    assert told[0].kind is ChangeKind.OPENED
    assert {each.incident.id for each in told} == {told[0].incident.id}
    leading = told[-1].incident.leading
    assert leading is not None
    assert (leading.cause, told[-1].incident.verdict) == (cause, Verdict.FAULT)
    assert leading.action == first_rung


def test_what_changes_by_itself_opens_nothing(fake: FakeNvml, watch: Watch) -> None:
    """Load comes and goes, links slow down when idle, corrected errors trickle, processes end."""
    assert watch.run(WARM_UP) == []
    gpu = fake.gpu()

    def change() -> None:
        second = int(watch.now)
        busy = second % 40 < 20
        gpu.utilization_percent, gpu.power_mw = (95, 640_000) if busy else (0, 70_000)
        gpu.temperature, gpu.margin = (74, 11) if busy else (38, 47)
        gpu.link_generation = 5 if busy else 1
        gpu.clocks[:] = [1980, 1980, 2619, 1545] if busy else [345, 345, 1593, 345]
        gpu.performance_state = 0 if busy else 8
        gpu.reasons = 0x4 if busy else 0x1
        gpu.replays += second % 10 == 0
        gpu.ecc[0][0] += second % 30 == 0

    assert watch.run(120, change) == []


def test_a_release_for_a_reset_opens_nothing(fake: FakeNvml, watch: Watch, tmp_path: Path) -> None:
    assert watch.run(WARM_UP) == []
    release = GpuRelease(tmp_path / "gpu_release.json", clock=lambda: watch.now)
    asked = release._ask("GPU-0", 30.0, "")
    assert watch.run(25) == []
    release._end(asked, reset=True)
    assert watch.run(20) == []


def test_the_simulated_gpu_tells_the_same(tmp_path: Path) -> None:
    clock = [0.0]
    control = SimulatedGpuControl(tmp_path / "simulated_gpu.json")
    simulated = SimulatedGpuCollector(
        "box", lambda: 0.4, tmp_path / "simulated_gpu.json", clock=lambda: clock[0]
    )
    watch = Watch(tmp_path, [simulated])

    def second() -> None:
        clock[0] += 1.0

    assert watch.run(WARM_UP, second) == []
    control.inject(reset_required=True)
    told = watch.run(FAULTY, second)
    watch.close()
    leading = told[-1].incident.leading
    assert leading is not None
    assert leading.cause == "gpu_reset_required"
    assert told[-1].incident.simulated
