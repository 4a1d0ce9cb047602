"""Letting go of the GPUs for a reset: the real child, a fake driver, and an nvidia-smi that refuses."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from collectors.contract import Sample
from collectors.gpu.nvml import NvmlCollector
from collectors.gpu.release import LONGEST_RELEASE_SECONDS, GpuRelease, Release, ReleaseError
from collectors.gpu.xid_collector import XidCollector
from collectors.gpu.xid_ledger import XidLedger
from healing.executors.contract import Command, ExecutionResult, Outcome
from healing.executors.gpu import GpuExecutor
from healing.executors.nvidia_smi import LocalGpus, NvidiaSmiControl, run_program
from tests.collectors.gpu.fake_nvml import RESET_REQUIRED, FakeNvml

Make = Callable[..., NvmlCollector]
SMI = Path(__file__).with_name("fake_nvidia_smi.py")
GPU = "host/box/gpu/0"
RESET = Command("reset_gpu", GPU)


def run_fake_smi(arguments: Sequence[str], deadline_seconds: float) -> str:
    return run_program([sys.executable, str(SMI), *arguments[1:]], deadline_seconds)


def states(samples: Sequence[Sample]) -> dict[str, float]:
    return {s.entity: s.value for s in samples if s.signal in {"gpu_state", "gpu_driver_state"}}


@pytest.fixture
def release(tmp_path: Path) -> GpuRelease:
    return GpuRelease(tmp_path / "state" / "gpu_release.json")


def executor(collector: NvmlCollector, release: GpuRelease | None) -> GpuExecutor:
    return GpuExecutor(
        LocalGpus(
            lambda: collector.uuids,
            lambda uuid: NvidiaSmiControl(uuid, run=run_fake_smi, release=release),
        )
    )


class Polling:
    """Collects in a thread, as the watch loop does."""

    def __init__(self, collector: NvmlCollector) -> None:
        self.seen: list[dict[str, float]] = []
        self._collector = collector
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.seen.append(states(self._collector.collect(time.time()).samples))

    def __enter__(self) -> Polling:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)


def test_a_reset_fails_while_the_collector_has_the_gpu_open(
    fake: FakeNvml, make_collector: Make
) -> None:
    """Without a release: this is what happened before."""
    fake.gpu(1).index_error = RESET_REQUIRED
    collector = make_collector()
    collector.collect(time.time())
    result = executor(collector, None).execute(RESET, 30.0)
    assert result.outcome is Outcome.NOT_DONE
    assert "In use by another client" in result.detail


def test_the_collector_lets_go_for_the_reset_and_reads_again_after_it(
    fake: FakeNvml, make_collector: Make, release: GpuRelease
) -> None:
    collector = make_collector(release=release)
    collector.collect(time.time())
    fake.gpu(0).index_error = RESET_REQUIRED
    assert states(collector.collect(time.time()).samples)[GPU] == 1
    with Polling(collector) as polling:
        result = executor(collector, release).execute(RESET, 30.0)
        end = time.monotonic() + 60
        while not (polling.seen and polling.seen[-1].get(GPU) == 0) and time.monotonic() < end:
            time.sleep(0.02)
    assert result == ExecutionResult(Outcome.DONE)
    told = {tuple(sorted(one.items())) for one in polling.seen}
    # Both GPUs and the driver say that they were released; never did one look healthy meanwhile.
    assert (("host/box", 7), (GPU, 7), ("host/box/gpu/1", 7)) in told
    assert polling.seen[-1] == {"host/box": 0, GPU: 0, "host/box/gpu/1": 0}
    assert release.read() is None


def test_what_galen_does_not_hold_is_told_and_reading_goes_on(
    fake: FakeNvml, make_collector: Make, release: GpuRelease
) -> None:
    collector = make_collector(release=release)
    collector.collect(time.time())
    with fake.file.open("rb") as opened, Polling(collector) as polling:
        command = [sys.executable, "-c", "input()"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=(opened.fileno(),)
        ) as another_monitor:
            result = executor(collector, release).execute(RESET, 30.0)
            another_monitor.kill()
        assert result.outcome is Outcome.NOT_DONE
        assert "In use by another client" in result.detail
        end = time.monotonic() + 60
        while not (polling.seen and polling.seen[-1].get(GPU) == 0) and time.monotonic() < end:
            time.sleep(0.02)
    assert polling.seen[-1][GPU] == 0


def test_a_release_whose_owner_died_runs_out(
    fake: FakeNvml, make_collector: Make, release: GpuRelease
) -> None:
    collector = make_collector(release=release)
    now = time.time()
    collector.collect(now)
    asked = release._ask("GPU-0", 60.0, "a crash follows")
    released = collector.collect(asked.asked_seconds + 1)
    assert states(released.samples)[GPU] == 7
    assert {s.signal for s in released.samples} == {"gpu_state", "gpu_driver_state"}
    assert release.is_acknowledged(asked)
    assert states(collector.collect(asked.until_seconds + 0.1).samples)[GPU] == 0
    assert release.read() is None


def test_a_collector_that_restarts_in_between_does_not_open_the_gpu(
    fake: FakeNvml, make_collector: Make, release: GpuRelease
) -> None:
    asked = release._ask("GPU-0", 60.0, "")
    calls = fake.state.calls
    collector = make_collector(release=release)
    assert states(collector.collect(asked.asked_seconds + 1).samples) == {"host/box": 7}
    assert fake.state.calls == calls


@pytest.mark.parametrize("text", ["", "{", '{"token": 1}', "[]", "\x00"])
def test_a_damaged_request_blinds_nobody(
    fake: FakeNvml, make_collector: Make, release: GpuRelease, tmp_path: Path, text: str
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "gpu_release.json").write_text(text)
    assert states(make_collector(release=release).collect(time.time()).samples)[GPU] == 0


def test_a_clock_that_jumps_ends_a_release(release: GpuRelease) -> None:
    asked = release._ask("GPU-0", 60.0, "")
    assert asked.stands(asked.asked_seconds)
    assert not asked.stands(asked.asked_seconds - 2 * LONGEST_RELEASE_SECONDS)
    assert not asked.stands(asked.until_seconds)


def test_one_reset_at_a_time(release: GpuRelease, tmp_path: Path) -> None:
    other = GpuRelease(tmp_path / "state" / "gpu_release.json", sleep=lambda _: None)
    release._ask("GPU-0", 60.0, "")
    with pytest.raises(ReleaseError, match="GPU-0 is under way"), other.held("GPU-1", 5.0):
        pass


def test_where_nothing_reads_gpus_the_reset_goes_on_unanswered(tmp_path: Path) -> None:
    now = [1000.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    alone = GpuRelease(tmp_path / "gpu_release.json", clock=lambda: now[0], sleep=sleep)
    with alone.held("GPU-0", 5.0) as answered:
        assert not answered
    left = alone.read()
    assert left is not None
    assert (left.reset, left.ended_seconds) == (True, now[0])


def test_after_a_reset_the_codes_from_before_say_nothing(
    fake: FakeNvml, make_collector: Make, release: GpuRelease
) -> None:
    ledger = XidLedger("box")
    collector = make_collector(release=release, xids=ledger)
    collector.collect(1000.0)
    ledger.from_nvml("GPU-0", "", 48, 1001.0)
    fake.gpu(0).index_error = RESET_REQUIRED
    collector.collect(1002.0)
    device = next(one for one in ledger.devices(1002.0) if one.name == GPU)
    # The driver that refuses the device until its reset has given its verdict.
    assert (device.advice.action, device.advice.source) == ("reset_gpu", "driver")
    fake.gpu(0).index_error = 0
    done = Release(token="t", gpu="GPU-0", asked_seconds=1003.0, until_seconds=1063.0,
                   ended_seconds=1004.0, reset=True)  # fmt: skip
    release._path.parent.mkdir(parents=True, exist_ok=True)
    release._path.write_text(done.model_dump_json())
    collector.collect(1005.0)
    device = next(one for one in ledger.devices(1005.0) if one.name == GPU)
    assert (device.standing, device.advice.source) == (None, "none")
    ledger.from_nvml("GPU-0", "0000:18:00", 48, 1006.0)
    again = next(one for one in ledger.devices(1006.0) if one.name == GPU)
    assert again.standing is not None
    assert XidCollector("box", ledger, None).collect(1006.0).samples
