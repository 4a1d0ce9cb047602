"""The NVML collector against the real nvidia-ml-py and a fake driver's library, in its real child."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from collectors.contract import Collector, CollectorError, Sample
from collectors.gpu.nvml import NvmlCollector, nvml_library_present, version_number
from collectors.gpu.states import DriverState, GpuState
from collectors.gpu.xid_ledger import WatchedGpu
from collectors.poller import Poller
from collectors.signals import catalogue
from tests.collectors.gpu.fake_nvml import (
    LOST,
    NOT_SUPPORTED,
    UNKNOWN,
    FakeNvml,
    compile_library,
)

Make = Callable[..., NvmlCollector]
Known = dict[str, float]
GIB = 1024.0**3
SHORT_SECONDS = 1.5
"""Long enough for a busy machine to come to the call that hangs."""


def _of(samples: Sequence[Sample], entity: str) -> Known:
    found = {sample.signal: sample.value for sample in samples if sample.entity == entity}
    found.pop("gpu_driver_call_seconds", None)
    return found


def _gpu(samples: Sequence[Sample], number: int = 0) -> Known:
    return _of(samples, f"host/box/gpu/{number}")


def _broken(collector: NvmlCollector, now: float = 1000.0) -> CollectorError:
    with pytest.raises(CollectorError) as caught:
        collector.collect(now)
    return caught.value


HEALTHY: Known = {
    "gpu_available": 1.0,
    "gpu_state": 0.0,
    "gpu_driver_call_errors": 0.0,
    "gpu_utilization_percent": 73.0,
    "gpu_memory_used_bytes": 20 * GIB,
    "gpu_memory_total_bytes": 80 * GIB,
    "gpu_memory_reserved_bytes": 1 * GIB,
    "gpu_memory_used_ratio": 20 / 79,
    "gpu_temperature_celsius": 61.0,
    "gpu_temperature_margin_celsius": 24.0,
    "gpu_temperature_slowdown_celsius": 90.0,
    "gpu_temperature_shutdown_celsius": 95.0,
    "gpu_memory_temperature_celsius": 55.0,
    "gpu_power_usage_watts": 471.5,
    "gpu_power_limit_watts": 700.0,
    "gpu_power_limit_default_watts": 700.0,
    "gpu_power_limit_minimum_watts": 200.0,
    "gpu_power_limit_maximum_watts": 700.0,
    "gpu_energy_joules_total": 7000.5,
    "gpu_sm_clock_mhz": 1755.0,
    "gpu_sm_clock_max_mhz": 1980.0,
    "gpu_memory_clock_mhz": 2619.0,
    "gpu_performance_state": 0.0,
    "gpu_throttle_reason": 4.0,
    "gpu_throttle_thermal": 0.0,
    "gpu_throttle_power": 1.0,
    "gpu_throttle_power_brake": 0.0,
    "gpu_throttle_power_seconds_total": 5.0,
    "gpu_throttle_thermal_seconds_total": 2.0,
    "gpu_ecc_enabled": 1.0,
    "gpu_ecc_uncorrectable_total": 0.0,
    "gpu_ecc_correctable_total": 5.0,
    "gpu_ecc_uncorrectable_lifetime_total": 2.0,
    "gpu_ecc_correctable_lifetime_total": 50.0,
    "gpu_retired_pages_total": 0.0,
    "gpu_retired_pages_pending": 0.0,
    "gpu_row_remap_correctable_total": 0.0,
    "gpu_row_remap_uncorrectable_total": 0.0,
    "gpu_row_remap_pending": 0.0,
    "gpu_row_remap_failed": 0.0,
    "gpu_row_remap_banks_exhausted": 0.0,
    "gpu_pcie_link_width": 16.0,
    "gpu_pcie_link_width_max": 16.0,
    "gpu_pcie_link_width_ratio": 1.0,
    "gpu_pcie_link_generation": 5.0,
    "gpu_pcie_link_generation_max": 5.0,
    "gpu_pcie_replay_total": 4.0,
    "gpu_nvlink_links": 4.0,
    "gpu_nvlink_links_active": 4.0,
    "gpu_persistence_mode": 1.0,
    "gpu_recovery_action": 0.0,
    "gpu_mig_enabled": 0.0,
    "gpu_processes": 0.0,
    "gpu_process_memory_bytes": 0.0,
}


def test_a_healthy_device_in_the_units_of_the_catalogue(
    fake: FakeNvml, make_collector: Make
) -> None:
    collector = make_collector()
    assert isinstance(collector, Collector)
    samples = collector.collect(1000.0).samples
    found = _gpu(samples)
    found.pop("gpu_processes_vanished", None)  # only where process ids are those of the kernel
    assert found == HEALTHY
    assert {sample.signal for sample in samples} <= set(catalogue())
    for sample in samples:
        low, high = catalogue()[sample.signal].low, catalogue()[sample.signal].high
        assert low is None or sample.value >= low, sample
        assert high is None or sample.value <= high, sample
    labels = next(s.labels for s in samples if s.entity == "host/box/gpu/1")
    assert labels["uuid"] == "GPU-1"
    assert labels["name"] == "NVIDIA H100 80GB HBM3"
    assert labels["pci"] == "0000:19:00"
    assert _of(samples, "host/box") == {
        "gpu_count": 2.0,
        "gpu_driver_state": 0.0,
        "gpu_xid_event_gaps_total": 0.0,
        "gpu_driver_version": 580.065006,
        "gpu_cuda_driver_version": 13000.0,
    }


def test_what_the_library_prints_is_no_answer(
    fake: FakeNvml, make_collector: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GALEN_FAKE_NVML_CHATTY", "1")
    assert _gpu(make_collector().collect(1000.0).samples)["gpu_state"] == 0


def test_what_changes_while_it_runs(fake: FakeNvml, make_collector: Make) -> None:
    collector = make_collector()
    collector.collect(1000.0)
    gpu = fake.gpu()
    gpu.ecc[1][0], gpu.remap[1], gpu.remap[2], gpu.remap[3] = 3, 1, 1, 1
    gpu.reasons, gpu.enforced_limit_mw, gpu.replays = 0x40 | 0x80, 350_000, 900
    gpu.retired[0], gpu.retired[1], gpu.retired_pending = 3, 2, 1
    gpu.link_width, gpu.link_generation, gpu.links[2].active = 8, 1, 0
    gpu.remap_histogram[4], gpu.fan_percent, gpu.margin = 1, 45, -2
    gpu.field(230, 1)
    for number, value in ((38, 1), (45, 2), (52, 3), (59, 4)):
        gpu.field(number, value, kind=3)
    found = _gpu(collector.collect(1001.0).samples)
    changed = {name: value for name, value in found.items() if HEALTHY.get(name) != value}
    changed.pop("gpu_processes_vanished", None)
    assert changed == {
        "gpu_ecc_uncorrectable_total": 3.0,
        "gpu_row_remap_uncorrectable_total": 1.0,
        "gpu_row_remap_pending": 1.0,
        "gpu_row_remap_failed": 1.0,
        "gpu_row_remap_banks_exhausted": 1.0,
        "gpu_retired_pages_total": 5.0,
        "gpu_retired_pages_pending": 1.0,
        "gpu_throttle_reason": 192.0,
        "gpu_throttle_thermal": 1.0,
        "gpu_throttle_power": 0.0,
        "gpu_throttle_power_brake": 1.0,
        "gpu_power_limit_watts": 350.0,
        "gpu_pcie_replay_total": 900.0,
        "gpu_pcie_link_width": 8.0,
        "gpu_pcie_link_width_ratio": 0.5,
        "gpu_pcie_link_generation": 1.0,
        "gpu_nvlink_links_active": 3.0,
        "gpu_nvlink_errors_total": 10.0,
        "gpu_fan_speed_percent": 45.0,
        "gpu_temperature_margin_celsius": -2.0,
        "gpu_recovery_action": 1.0,
        "gpu_processes_ended": 0.0,
    }


def test_what_a_device_does_not_support_is_absent_and_not_zero(
    fake: FakeNvml, make_collector: Make
) -> None:
    gpu = fake.gpu()
    gpu.ecc_current = gpu.nvlinks = gpu.field_count = gpu.slowdown = 0
    gpu.performance_state = 32
    for function in (
        "nvmlDeviceGetMarginTemperature",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetRemappedRows",
        "nvmlDeviceGetRetiredPages",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetComputeRunningProcesses_v2",
    ):
        fake.fail(NOT_SUPPORTED, function, gpu=0)
    found = _gpu(make_collector().collect(1000.0).samples)
    assert found["gpu_driver_call_errors"] == 0
    missing = set(HEALTHY) - set(found)
    assert missing == {
        "gpu_temperature_margin_celsius",
        "gpu_temperature_slowdown_celsius",
        "gpu_memory_temperature_celsius",
        "gpu_power_usage_watts",
        "gpu_performance_state",
        "gpu_ecc_uncorrectable_total",
        "gpu_ecc_correctable_total",
        "gpu_ecc_uncorrectable_lifetime_total",
        "gpu_ecc_correctable_lifetime_total",
        "gpu_retired_pages_total",
        "gpu_row_remap_correctable_total",
        "gpu_row_remap_uncorrectable_total",
        "gpu_row_remap_pending",
        "gpu_row_remap_failed",
        "gpu_nvlink_links",
        "gpu_nvlink_links_active",
        "gpu_recovery_action",
        "gpu_mig_enabled",
        "gpu_processes",
        "gpu_process_memory_bytes",
    }


def test_blank_values_are_absent(fake: FakeNvml, make_collector: Make) -> None:
    gpu = fake.gpu()
    gpu.power_mw = gpu.clocks[1] = gpu.utilization_percent = 2**32 - 1
    gpu.field(230, 2**32 - 1)
    gpu.field(82, 0)  # how a board without the sensor says so
    found = _gpu(make_collector().collect(1000.0).samples)
    assert set(HEALTHY) - set(found) == {
        "gpu_power_usage_watts",
        "gpu_sm_clock_mhz",
        "gpu_utilization_percent",
        "gpu_recovery_action",
        "gpu_memory_temperature_celsius",
    }


def test_an_old_driver_lacks_functions(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, fake: FakeNvml, make_collector: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    library = compile_library(tmp_path_factory.mktemp("old"), "OLD_DRIVER")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    fake.gpu().processes_are((os.getpid(), 1 << 30))
    found = _gpu(make_collector().collect(1000.0).samples)
    assert found["gpu_temperature_margin_celsius"] == 90 - 61
    assert found["gpu_throttle_reason"] == 4
    # Without the second version of the call, what the driver keeps for itself counts as used.
    assert found["gpu_memory_used_bytes"] == 21 * GIB
    assert "gpu_memory_reserved_bytes" not in found
    assert found["gpu_processes"] == 1


@pytest.mark.parametrize(
    ("error", "state"),
    [(15, GpuState.LOST), (16, GpuState.RESET_REQUIRED), (999, GpuState.UNREADABLE)],
)
@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID", ""], ids=str
)
def test_a_device_that_does_not_answer_has_its_state_and_nothing_else(
    fake: FakeNvml, make_collector: Make, error: int, state: GpuState, function: str
) -> None:
    collector = make_collector()
    collector.collect(1000.0)
    fake.fail(error, function, gpu=1)
    samples = collector.collect(1001.0).samples
    assert _gpu(samples, 1) == {"gpu_state": float(state), "gpu_available": 0.0}
    said = next(s for s in samples if s.signal == "gpu_state" and s.entity.endswith("/1"))
    assert said.labels["state"] == state.name.lower()
    assert said.labels["uuid"] == "GPU-1"
    assert said.labels["reason"]
    assert _gpu(samples, 0)["gpu_state"] == 0
    assert _of(samples, "host/box")["gpu_count"] == 1
    fake.heal()
    assert _gpu(collector.collect(1002.0).samples, 1)["gpu_state"] == 0


def test_calls_that_fail_are_counted(fake: FakeNvml, make_collector: Make) -> None:
    collector = make_collector()
    collector.collect(1000.0)
    for function in ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature"):
        fake.fail(UNKNOWN, function, gpu=0)
    found = _gpu(collector.collect(1001.0).samples)
    assert found["gpu_state"] == 0
    assert found["gpu_driver_call_errors"] == 2


def test_a_device_that_tells_nothing_vital_is_not_healthy(
    fake: FakeNvml, make_collector: Make
) -> None:
    for function in (
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetMemoryInfo_v2",
    ):
        fake.fail(UNKNOWN, function, gpu=0)
    samples = make_collector().collect(1000.0).samples
    assert _gpu(samples) == {"gpu_state": float(GpuState.UNREADABLE), "gpu_available": 0.0}


def test_a_device_that_this_user_may_not_ask_is_not_lost(
    fake: FakeNvml, make_collector: Make
) -> None:
    fake.gpu(1).index_error = 4
    samples = make_collector().collect(1000.0).samples
    assert _gpu(samples, 1) == {"gpu_state": float(GpuState.UNREAD)}
    assert _of(samples, "host/box")["gpu_count"] == 1


def test_a_device_that_is_gone_keeps_its_number_and_others_keep_theirs(
    fake: FakeNvml, make_collector: Make, tmp_path: Path
) -> None:
    fake.state.latch = 1  # as NVML does: devices are those of its start
    for name in ("0000:18:00.0", "0000:19:00.0"):
        (tmp_path / "gpus" / name).touch()
    collector = make_collector()
    collector.collect(1000.0)
    fake.gpu(0).present = 0
    assert _gpu(collector.collect(1001.0).samples, 0)["gpu_state"] == GpuState.LOST
    (tmp_path / "gpus" / "0000:18:00.0").unlink()
    samples = collector.collect(1002.0).samples
    assert fake.state.inits == 2
    assert _gpu(samples, 0) == {"gpu_state": float(GpuState.GONE), "gpu_available": 0.0}
    labels = {s.entity: s.labels["uuid"] for s in samples if "uuid" in s.labels}
    assert labels == {"host/box/gpu/0": "GPU-0", "host/box/gpu/1": "GPU-1"}
    assert _gpu(samples, 1)["gpu_state"] == 0
    assert _of(samples, "host/box")["gpu_count"] == 1


def test_a_device_that_is_plugged_in_appears(
    fake: FakeNvml, make_collector: Make, tmp_path: Path
) -> None:
    fake.state.latch = 1
    collector = make_collector()
    collector.collect(1000.0)
    fake.plug(5, uuid="GPU-new")
    assert "host/box/gpu/2" not in {s.entity for s in collector.collect(1001.0).samples}
    (tmp_path / "gpus" / "0000:1d:00.0").touch()
    samples = collector.collect(1002.0).samples
    assert _gpu(samples, 2)["gpu_state"] == 0
    assert _of(samples, "host/box")["gpu_count"] == 3


def test_a_replaced_device_takes_the_number_of_its_slot(
    fake: FakeNvml, make_collector: Make
) -> None:
    collector = make_collector()
    collector.collect(1000.0)
    fake.plug(0, uuid="GPU-replacement")
    samples = collector.collect(1001.0).samples
    uuids = {s.entity: s.labels["uuid"] for s in samples if s.signal == "gpu_state"}
    assert uuids == {"host/box/gpu/0": "GPU-replacement", "host/box/gpu/1": "GPU-1"}


def test_no_device_at_all_is_a_count_of_zero(fake: FakeNvml, make_collector: Make) -> None:
    fake.gpu(0).present = fake.gpu(1).present = 0
    samples = make_collector().collect(1000.0).samples
    assert _of(samples, "host/box")["gpu_count"] == 0


def test_processes_and_those_that_vanished(
    fake: FakeNvml, make_collector: Make, tmp_path: Path
) -> None:
    collector = make_collector()
    fake.gpu().processes_are((os.getpid(), 3 << 30), (4_194_303, 1 << 30))
    found = _gpu(collector.collect(1000.0).samples)
    assert found["gpu_processes"] == 2
    assert found["gpu_process_memory_bytes"] == 4 * GIB
    assert "gpu_processes_ended" not in found
    # 4194303 is the largest process id there can be; where ids are the kernel's own it does not live.
    assert found.get("gpu_processes_vanished", 1.0) == 1.0
    fake.gpu().processes_are((os.getpid(), 3 << 30))
    found = _gpu(collector.collect(1001.0).samples)
    assert found["gpu_processes_ended"] == 1
    assert found.get("gpu_processes_vanished", 0.0) == 0.0


def test_memory_of_a_process_that_the_driver_does_not_tell_is_absent(
    fake: FakeNvml, make_collector: Make
) -> None:
    fake.gpu().processes_are((os.getpid(), 2**64 - 1))
    found = _gpu(make_collector().collect(1000.0).samples)
    assert found["gpu_processes"] == 1
    assert "gpu_process_memory_bytes" not in found


def test_mig_instances_are_entities_below_their_device(
    fake: FakeNvml, make_collector: Make
) -> None:
    fake.split(0, uuid="MIG-a", place=1, instance=3)
    fake.split(0, uuid="MIG-b", place=4, instance=5)
    gpu = fake.gpu()
    gpu.processes_are((os.getpid(), 2 << 30))
    gpu.processes[0].gpu_instance = 5
    collector = make_collector()
    samples = collector.collect(1000.0).samples
    device = _gpu(samples)
    assert (device["gpu_mig_enabled"], device["gpu_mig_instances"]) == (1.0, 2.0)
    assert "gpu_utilization_percent" not in device
    first, second = (_of(samples, f"host/box/gpu/0/mig/{i}.0") for i in (3, 5))
    assert first["gpu_memory_used_ratio"] == 0.4
    labels = {sample.entity: dict(sample.labels) for sample in samples}
    assert labels["host/box/gpu/0/mig/3.0"] == {"uuid": "MIG-a", "gpu_uuid": "GPU-0"}
    assert first["gpu_mig_multiprocessors"] == 16
    assert (first["gpu_processes"], second["gpu_processes"]) == (0.0, 1.0)
    assert second["gpu_process_memory_bytes"] == 2 * GIB
    gpu.migs[1].present = 0
    samples = collector.collect(1001.0).samples
    assert _of(samples, "host/box/gpu/0/mig/3.0") == {}
    assert _gpu(samples)["gpu_mig_instances"] == 1


@pytest.mark.parametrize(
    ("code", "state", "fix"),
    [
        (9, DriverState.NOT_LOADED, "modprobe"),
        (18, DriverState.VERSION_MISMATCH, "reboot"),
        (4, DriverState.NO_PERMISSION, "nvidiactl"),
        (999, DriverState.FAILED, "nvidia-smi"),
    ],
)
def test_a_driver_that_refuses_says_why(
    fake: FakeNvml, make_collector: Make, code: int, state: DriverState, fix: str
) -> None:
    fake.fail(code, "nvmlInitWithFlags")
    error = _broken(make_collector())
    assert fix in error.fix
    assert [(s.entity, s.signal, s.value, s.labels["state"]) for s in error.samples] == [
        ("host/box", "gpu_driver_state", float(state), state.name.lower())
    ]


def test_a_library_that_was_upgraded_under_the_module_is_seen_before_anything_fails(
    fake: FakeNvml, make_collector: Make, tmp_path: Path, nvml_library: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "module_version").write_text("580.65.06\n")
    folder = tmp_path / "lib"
    folder.mkdir()
    old, new, name = (
        folder / f"libnvidia-ml.so.{version}" for version in ("580.65.06", "590.44.01", "1")
    )
    old.write_bytes(nvml_library.read_bytes())
    name.symlink_to(old)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    collector = make_collector()
    host = _of(collector.collect(1000.0).samples, "host/box")
    assert host["gpu_driver_library_mismatch"] == 0
    new.write_bytes(old.read_bytes())
    name.unlink()
    name.symlink_to(new)
    old.unlink()
    host = _of(collector.collect(1001.0).samples, "host/box")
    assert (host["gpu_driver_library_mismatch"], host["gpu_driver_state"]) == (1, 0)


def test_a_driver_that_fails_later_leaves_devices_unread_and_none_healthy(
    fake: FakeNvml, make_collector: Make
) -> None:
    now = [0.0]
    collector = make_collector(monotonic=lambda: now[0])
    collector.collect(1000.0)
    fake.fail(9, "nvmlDeviceGetCount_v2")
    for _ in range(2):  # the second call is in the pause and says the same
        error = _broken(collector)
        assert _gpu(error.samples) == {"gpu_state": float(GpuState.UNREAD)}
        assert _of(error.samples, "host/box") == {"gpu_driver_state": float(DriverState.NOT_LOADED)}
    fake.heal()
    now[0] = 2.0
    assert _gpu(collector.collect(1002.0).samples)["gpu_state"] == 0


def test_a_hang_at_one_device_names_it_and_does_not_hide_the_others(
    fake: FakeNvml, make_collector: Make
) -> None:
    now = [0.0]
    collector = make_collector(deadline_seconds=10.0, monotonic=lambda: now[0])
    collector.collect(1000.0)
    child = collector._child.process_id
    collector._deadline_seconds = SHORT_SECONDS
    fake.hang("nvmlDeviceGetPowerUsage", gpu=1)
    error = _broken(collector)
    assert "nvmlDeviceGetPowerUsage of GPU 1" in str(error)
    assert _gpu(error.samples, 0) == {"gpu_state": float(GpuState.UNREAD)}
    assert _gpu(error.samples, 1) == {"gpu_state": float(GpuState.HUNG)}
    assert _of(error.samples, "host/box") == {"gpu_driver_state": float(DriverState.HUNG)}
    assert child is not None
    assert not Path(f"/proc/{child}").exists()

    assert "next try" in str(_broken(collector))
    now[0] = 2.0  # a new child, which leaves the sick device alone
    samples = collector.collect(1002.0).samples
    assert _gpu(samples, 0)["gpu_state"] == 0
    assert _gpu(samples, 1) == {"gpu_state": float(GpuState.HUNG), "gpu_available": 0.0}
    assert _of(samples, "host/box")["gpu_count"] == 1

    fake.heal()
    now[0] = 30.0
    assert _gpu(collector.collect(1030.0).samples, 1)["gpu_state"] == GpuState.HUNG
    now[0] = 100.0  # after its time the device is tried again
    assert _gpu(collector.collect(1100.0).samples, 1)["gpu_state"] == 0


def test_a_device_that_hangs_again_is_left_out_for_longer(
    fake: FakeNvml, make_collector: Make
) -> None:
    now = [0.0]
    collector = make_collector(monotonic=lambda: now[0])

    def left_out_seconds() -> float:
        """Let it hang and return how long it is left alone then."""
        collector._deadline_seconds = 10.0
        collector.collect(1000.0)
        collector._deadline_seconds = SHORT_SECONDS
        fake.hang("nvmlDeviceGetPowerUsage", gpu=1)
        _broken(collector)
        fake.heal()
        began = now[0]
        collector._deadline_seconds = 10.0
        while True:
            now[0] += 5.0
            if _gpu(collector.collect(1000.0).samples, 1)["gpu_state"] == GpuState.OK:
                return now[0] - began

    assert left_out_seconds() == 60
    assert left_out_seconds() == 60  # it was well in between


def test_the_time_of_leaving_out_doubles_up_to_ten_minutes() -> None:
    collector = NvmlCollector("box")
    seen = []
    for _ in range(6):
        collector._quarantine(1, 0.0)
        seen.append(collector._quarantined[1].until)
    assert seen == [60, 120, 240, 480, 600, 600]


def test_a_hang_of_the_whole_driver_blames_no_device(
    fake: FakeNvml, make_collector: Make, tmp_path: Path
) -> None:
    collector = make_collector()
    collector.collect(1000.0)
    collector._deadline_seconds = SHORT_SECONDS
    fake.hang("nvmlInitWithFlags")
    (tmp_path / "gpus" / "0000:1d:00.0").touch()  # NVML is started anew
    error = _broken(collector)
    assert "in nvmlInitWithFlags;" in str(error)
    assert _of(error.samples, "host/box") == {"gpu_driver_state": float(DriverState.HUNG)}
    assert _gpu(error.samples, 0) == _gpu(error.samples, 1) == {"gpu_state": float(GpuState.UNREAD)}


def test_when_every_device_hangs_the_collection_fails(fake: FakeNvml, make_collector: Make) -> None:
    fake.gpu(1).present = 0
    now = [0.0]
    collector = make_collector(monotonic=lambda: now[0])
    collector.collect(1000.0)
    collector._deadline_seconds = SHORT_SECONDS
    fake.hang("nvmlDeviceGetPowerUsage", gpu=0)
    _broken(collector)
    now[0] = 2.0
    error = _broken(collector)
    assert "every GPU" in str(error)
    assert _of(error.samples, "host/box") == {"gpu_driver_state": float(DriverState.HUNG)}


def test_a_killed_child_is_replaced(fake: FakeNvml, make_collector: Make) -> None:
    now = [0.0]
    collector = make_collector(monotonic=lambda: now[0])
    collector.collect(1000.0)
    child = collector._child._process
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert len(_gpu(collector.collect(1001.0).samples)) > 40


def test_the_poller_keeps_what_a_failed_call_knows(fake: FakeNvml, make_collector: Make) -> None:
    poller = Poller([make_collector()], budget_seconds=15.0)
    try:
        poller.tick(1000.0)
        fake.fail(9, "nvmlDeviceGetCount_v2")
        samples = poller.tick(1001.0).samples
    finally:
        poller.close()
    assert _gpu(samples) == {"gpu_state": float(GpuState.UNREAD)}
    assert _of(samples, "collector/gpu-nvml")["scrape_success"] == 0


def test_a_power_limit_that_somebody_sets_shows(
    fake: FakeNvml, make_collector: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = make_collector()
    collector.collect(1000.0)
    body = (
        "import pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByUUID('GPU-1');"
        "n.nvmlDeviceSetPowerManagementLimit(h, 350000)"
    )
    assert os.spawnle(os.P_WAIT, sys.executable, sys.executable, "-c", body, fake.environment) == 0
    assert _gpu(collector.collect(1001.0).samples, 1)["gpu_power_limit_watts"] == 350


class _Sink:
    def __init__(self) -> None:
        self.devices: dict[str, tuple[str, bool]] = {}
        self.xids: list[tuple[str, str, int]] = []

    def device(self, gpu: WatchedGpu, now_seconds: float) -> None:
        self.devices[gpu.name] = (gpu.pci, gpu.watched)

    def from_nvml(self, uuid: str, pci: str, code: int, now_seconds: float) -> None:
        self.xids.append((uuid, pci, code))


def test_xid_events_are_handed_over_once(fake: FakeNvml, make_collector: Make) -> None:
    sink = _Sink()
    collector = make_collector(xids=sink)
    fake.xid(13)  # before anybody watched: lost, as with the real one
    collector.collect(1000.0)
    assert sink.devices == {
        "host/box/gpu/0": ("0000:18:00", True),
        "host/box/gpu/1": ("0000:19:00", True),
    }
    sink.xids.clear()
    fake.xid(31, gpu=1)
    fake.xid(94)
    collector.collect(1001.0)
    collector.collect(1002.0)
    assert sink.xids == [("GPU-1", "0000:19:00", 31), ("GPU-0", "0000:18:00", 94)]


def test_xid_events_go_on_after_a_device_is_lost(fake: FakeNvml, make_collector: Make) -> None:
    sink = _Sink()
    collector = make_collector(xids=sink)
    collector.collect(1000.0)
    fake.fail(LOST, "nvmlEventSetWait_v2")
    collector.collect(1001.0)
    fake.heal()
    collector.collect(1002.0)
    sink.xids.clear()
    fake.xid(79)
    collector.collect(1003.0)
    assert sink.xids == [("GPU-0", "0000:18:00", 79)]


def test_where_events_may_be_lost_it_is_counted(fake: FakeNvml, make_collector: Make) -> None:
    collector = make_collector()

    def gaps(now: float) -> float:
        samples = collector.collect(now).samples
        return _of(samples, "host/box")["gpu_xid_event_gaps_total"]

    assert gaps(1000.0) == 0
    assert gaps(1001.0) == 0
    fake.fail(LOST, "nvmlEventSetWait_v2")  # a set in which a device was lost is not used again
    assert gaps(1002.0) == 1
    fake.heal()
    assert gaps(1003.0) == 1
    assert collector._child.process_id is not None
    os.kill(collector._child.process_id, signal.SIGKILL)
    with pytest.raises(CollectorError):
        collector.collect(1004.0)
    collector._paused_until = 0.0
    assert gaps(1005.0) == 2


def test_where_xids_cannot_be_watched_it_is_said(fake: FakeNvml, make_collector: Make) -> None:
    sink = _Sink()
    fake.fail(NOT_SUPPORTED, "nvmlDeviceRegisterEvents", gpu=0)
    make_collector(xids=sink).collect(1000.0)
    assert sink.devices["host/box/gpu/0"] == ("0000:18:00", False)
    assert sink.devices["host/box/gpu/1"] == ("0000:19:00", True)


# --- without a driver at all -------------------------------------------------------------------------

ONE_GPU = json.dumps(
    {
        "devices": [
            {"index": 0, "uuid": "GPU-1", "name": "L4", "signals": {"gpu_temperature_celsius": 40}}
        ]
    }
)


def _child(body: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import sys, time\nfor line in sys.stdin:\n {body}")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("sys.exit(3)", "ended with status"),
        ("print('what?', flush=True)", "answered"),
        ("print('[]', flush=True)", "answered"),
        ("print('x' * 3_000_000, flush=True)", "no end"),
    ],
)
def test_a_broken_child_is_a_collector_error(body: str, says: str) -> None:
    collector = NvmlCollector("box", command=_child(body))
    try:
        error = _broken(collector)
    finally:
        collector.close()
    assert says in str(error)
    assert _of(error.samples, "host/box") == {"gpu_driver_state": float(DriverState.FAILED)}


def test_failures_are_retried_after_a_pause_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    collector = NvmlCollector("box", monotonic=lambda: now[0])
    asked: list[float] = []

    def ask(line: bytes, deadline_seconds: float) -> bytes:
        asked.append(now[0])
        if now[0] < 60:
            raise CollectorError("no driver")
        return ONE_GPU.encode()

    monkeypatch.setattr(collector._child, "ask", ask)
    for second in range(100):
        now[0] = float(second)
        try:
            collector.collect(now[0])
        except CollectorError:
            continue
    assert asked[:6] == [0, 1, 3, 7, 15, 31]
    assert asked[6:] == [float(second) for second in range(61, 100)]


def test_without_a_driver_it_says_so() -> None:
    support = NvmlCollector("box", library_present=lambda: False).is_supported()
    assert not support.supported
    assert "libnvidia-ml" in support.reason
    assert "simulated" in support.fix


@pytest.mark.skipif(nvml_library_present(), reason="this machine has an NVIDIA driver")
def test_the_real_child_reports_the_missing_library() -> None:
    collector = NvmlCollector("box")
    assert not collector.is_supported().supported
    try:
        error = _broken(collector)
    finally:
        collector.close()
    assert _of(error.samples, "host/box") == {
        "gpu_driver_state": float(DriverState.LIBRARY_MISSING)
    }


@pytest.mark.parametrize(
    ("text", "number"),
    [("580.65.06", 580.065006), ("470.82", 470.082), ("535", 535.0), ("", None), ("N/A", None)],
)
def test_versions_as_numbers(text: str, number: Any) -> None:
    found = version_number(text)
    assert found == number or (found is not None and math.isclose(found, number))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_no_sick_device_looks_healthy_and_no_healthy_one_sick(
    fake: FakeNvml, make_collector: Make, tmp_path: Path, seed: int
) -> None:
    """A random walk over faults of single devices; what the fake knows is what must be told."""
    rng = random.Random(seed)
    listed = [tmp_path / "gpus" / f"0000:{0x18 + slot:02x}:00.0" for slot in range(5)]
    for slot in range(5):
        fake.plug(slot)
        listed[slot].touch()
    collector = make_collector()
    collector.collect(1000.0)
    sick: dict[int, GpuState] = {}
    for step in range(25):
        slot = rng.randrange(5)
        fault = rng.choice(["gone", "lost", "reset", "unreadable", "forbidden", "well", "well"])
        if fault == "gone":
            fake.gpu(slot).present, sick[slot] = 0, GpuState.GONE
            listed[slot].unlink(missing_ok=True)
        else:
            if not fake.gpu(slot).present:
                fake.plug(slot)
            listed[slot].touch()
            error, state = {
                "lost": (15, GpuState.LOST),
                "reset": (16, GpuState.RESET_REQUIRED),
                "unreadable": (rng.choice([8, 10, 11, 17, 999]), GpuState.UNREADABLE),
                "forbidden": (4, GpuState.UNREAD),
                "well": (0, GpuState.OK),
            }[fault]
            fake.gpu(slot).index_error, sick[slot] = error, state
        samples = collector.collect(1001.0 + step).samples
        for number in range(5):
            state = sick.get(number, GpuState.OK)
            told = _gpu(samples, number)
            assert told["gpu_state"] == state, (step, number)
            assert (len(told) > 40) == (state is GpuState.OK)
        well = sum(sick.get(slot, GpuState.OK) is GpuState.OK for slot in range(5))
        assert _of(samples, "host/box")["gpu_count"] == well
