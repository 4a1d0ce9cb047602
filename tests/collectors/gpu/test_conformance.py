"""The simulated GPU against the NVML collector: one fault, the same samples.

The NVML collector is the real one, with the real ``nvidia-ml-py`` in its child, on the fake library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from collectors.contract import Collector, CollectorError, Sample
from collectors.gpu.control import SimulatedGpuControl
from collectors.gpu.nvml import NvmlCollector
from collectors.gpu.simulated import SimulatedGpuCollector
from collectors.gpu.xid_collector import XidCollector
from collectors.gpu.xid_ledger import XidLedger
from tests.collectors.gpu.fake_nvml import LOST, RESET_REQUIRED, FakeNvml

Make = Callable[..., NvmlCollector]
Known = dict[tuple[str, str], float]
HOST, GPU = "host/box", "host/box/gpu/0"

ONLY_REAL = {
    "gpu_driver_version", "gpu_cuda_driver_version",  # there is no driver
    "gpu_memory_reserved_bytes",  # a simulated driver keeps nothing for itself
    "gpu_processes", "gpu_process_memory_bytes", "gpu_processes_ended",  # nor has it processes
    "gpu_processes_vanished",
    "gpu_nvlink_links", "gpu_nvlink_links_active", "gpu_nvlink_errors_total",  # a card alone
    "gpu_retired_pages_total", "gpu_retired_pages_pending",  # of boards before Ampere
    "gpu_xid_event_gaps_total",  # nothing is missed
    "gpu_xid_sources", "gpu_xid_lines_lost_total", "gpu_xid_events_total",  # of the kernel log
}  # fmt: skip
ONLY_SIMULATED = {
    "gpu_sm_active_percent", "gpu_memory_bandwidth_percent",  # of DCGM's profiling
    "gpu_pcie_throughput_bytes",  # NVML sleeps to measure it
    "gpu_fan_speed_percent",  # the fake board is passively cooled
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One fault on both sides, and the samples that tell of it."""

    simulate: Mapping[str, object]
    fake: Callable[[FakeNvml], object]
    told: Mapping[str, float]
    fails: bool = False
    host: Mapping[str, float] = field(default_factory=dict)


def _index_error(error: int) -> Callable[[FakeNvml], object]:
    return lambda fake: setattr(fake.gpu(), "index_error", error)


def _off_the_bus(fake: FakeNvml) -> None:
    fake.xid(79)
    fake.gpu().index_error = LOST


def _ecc(fake: FakeNvml) -> None:
    fake.gpu().ecc[1][0] = 2
    fake.gpu().remap[2] = 1
    fake.xid(48)


def _remap_failed(fake: FakeNvml) -> None:
    fake.gpu().remap[3] = 1


def _hot(fake: FakeNvml) -> None:
    fake.gpu().reasons = 0x20


def _limit(fake: FakeNvml) -> None:
    fake.gpu().enforced_limit_mw = 150_000
    fake.gpu().reasons = 0x4


def _set(**fields: int) -> Callable[[FakeNvml], object]:
    def change(fake: FakeNvml) -> None:
        for name, value in fields.items():
            setattr(fake.gpu(), name, value)

    return change


LOST_SAMPLES = {"gpu_state": 2.0, "gpu_available": 0.0}
FAULTS: Mapping[str, Fault] = {
    "lost": Fault({"lost": True}, _index_error(LOST), LOST_SAMPLES),
    "off_the_bus": Fault(
        {"xid": 79},
        _off_the_bus,
        {**LOST_SAMPLES, "gpu_xid": 79.0, "gpu_recommended_action": 4.0},
    ),
    "gone": Fault(
        {"gone": True}, _set(present=0), {"gpu_state": 3.0, "gpu_available": 0.0},
    ),
    "reset_required": Fault(
        {"reset_required": True},
        _index_error(RESET_REQUIRED),
        {"gpu_state": 1.0, "gpu_available": 0.0, "gpu_recommended_action": 3.0},
    ),
    "hang": Fault(
        {"driver_hang": True},
        lambda fake: fake.hang("nvmlDeviceGetPowerUsage"),
        {"gpu_state": 5.0},
        fails=True,
        host={"gpu_driver_state": 1.0},
    ),
    "ecc": Fault(
        {"ecc_uncorrectable": 2, "xid": 48},
        _ecc,
        {"gpu_state": 0.0, "gpu_ecc_uncorrectable_total": 2.0, "gpu_row_remap_pending": 1.0,
         "gpu_xid": 48.0, "gpu_recommended_action": 3.0},
    ),
    "remap_failed": Fault(
        {"row_remap_failed": True},
        _remap_failed,
        {"gpu_state": 0.0, "gpu_row_remap_failed": 1.0, "gpu_row_remap_pending": 0.0},
    ),
    "throttle": Fault(
        {"inlet_offset_celsius": 45}, _hot, {"gpu_state": 0.0, "gpu_throttle_thermal": 1.0}
    ),
    "fan_failure": Fault({"fan_failure": True}, _hot, {"gpu_throttle_thermal": 1.0}),
    "power_cap": Fault(
        {"power_limit_watts": 150},
        _limit,
        {"gpu_power_limit_watts": 150.0, "gpu_throttle_power": 1.0, "gpu_throttle_thermal": 0.0},
    ),
    "power_brake": Fault(
        {"power_brake": True}, _set(reasons=0x88), {"gpu_throttle_power_brake": 1.0}
    ),
    "narrow_link": Fault(
        {"pcie_lanes": 8}, _set(link_width=8),
        {"gpu_pcie_link_width": 8.0, "gpu_pcie_link_width_ratio": 0.5},
    ),
}  # fmt: skip


class Simulated:
    """The simulated GPU, at full load."""

    def __init__(self, folder: Path) -> None:
        self.seconds = 0.0
        self.control = SimulatedGpuControl(folder / "simulated_gpu.json")
        self.collector = SimulatedGpuCollector(
            "box", lambda: 1.0, folder / "simulated_gpu.json", clock=lambda: self.seconds
        )

    def look(self) -> tuple[list[Sample], bool]:
        self.seconds += 60
        return _collect(self.collector, 1_000_000 + self.seconds)


def _collect(collector: Collector, now: float) -> tuple[list[Sample], bool]:
    try:
        return list(collector.collect(now).samples), False
    except CollectorError as error:
        return list(error.samples), True


class Real:
    """The NVML and the XID collector on a machine with one GPU, as the registry builds them."""

    def __init__(self, make: Make) -> None:
        self.ledger = XidLedger("box")
        self.nvml = make(deadline_seconds=1.5, xids=self.ledger)
        self.xids = XidCollector("box", self.ledger, None)

    def look(self) -> tuple[list[Sample], bool]:
        samples, failed = _collect(self.nvml, 1_000_000.0)
        return samples + _collect(self.xids, 1_000_000.0)[0], failed


@pytest.fixture
def real(fake: FakeNvml, make_collector: Make) -> Real:
    fake.gpu(1).present = 0
    return Real(make_collector)


def _known(samples: list[Sample]) -> Known:
    return {(one.entity, one.signal): one.value for one in samples}


def test_a_healthy_gpu_gives_the_same_signals(real: Real, tmp_path: Path) -> None:
    of_real = {signal for _, signal in _known(real.look()[0])} - ONLY_REAL
    of_simulated = {signal for _, signal in _known(Simulated(tmp_path).look()[0])} - ONLY_SIMULATED
    assert of_simulated == of_real


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_fault_gives_the_same_samples(
    name: str, fake: FakeNvml, real: Real, tmp_path: Path
) -> None:
    fault = FAULTS[name]
    simulated = Simulated(tmp_path)
    real.look(), simulated.look()  # both have seen it healthy
    fault.fake(fake)
    simulated.control.inject(**fault.simulate)
    answers = [real.look(), simulated.look()]
    fake.heal()
    for samples, failed in answers:
        known = _known(samples)
        assert failed is fault.fails
        assert {signal: known.get((GPU, signal)) for signal in fault.told} == fault.told
        assert {signal: known.get((HOST, signal)) for signal in fault.host} == fault.host
    of_real, of_simulated = (_known(samples) for samples, _ in answers)
    # What one does not read the other does not make up.
    assert {key for key in of_simulated if key[1] not in ONLY_SIMULATED | {"gpu_xid"}} <= {
        *of_real, (GPU, "gpu_recommended_action"),
    }  # fmt: skip
    assert all(one.labels.get("simulated") == "true" for one in answers[1][0])
    assert not any("simulated" in one.labels for one in answers[0][0])
