from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.contract import Collector, CollectorError
from collectors.gpu.control import ControlError, SimulatedGpuControl
from collectors.gpu.simulated import SimulatedGpuCollector
from collectors.gpu.simulated_device import SimulatedGpu
from collectors.gpu.throttle import ThrottleReason
from collectors.signals import catalogue


class Rig:
    """A simulated GPU under a load and a clock that the test holds."""

    def __init__(self, folder: Path) -> None:
        self.load: float | None = 0.45
        self.seconds = 0.0
        self.control = SimulatedGpuControl(folder / "simulated_gpu.json")
        self.collector = SimulatedGpuCollector(
            "box",
            lambda: self.load,
            folder / "simulated_gpu.json",
            clock=lambda: self.seconds,
            rng=random.Random(7),
        )

    def run(self, seconds: int) -> dict[str, float]:
        for _ in range(seconds):
            self.seconds += 1
            samples = self.collector.collect(1_700_000_000 + self.seconds).samples
        assert {sample.entity for sample in samples} == {"host/box", "host/box/gpu/0"}
        assert all(sample.labels["simulated"] == "true" for sample in samples)
        return {sample.signal: sample.value for sample in samples}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_it_is_a_collector_within_the_limits_of_the_catalogue(rig: Rig) -> None:
    assert isinstance(rig.collector, Collector)
    for signal, value in rig.run(30).items():
        known = catalogue()[signal]
        assert known.low is None or value >= known.low, signal
        assert known.high is None or value <= known.high, signal


@pytest.mark.parametrize(("load", "low", "high"), [(0.0, 36, 40), (0.3, 54, 60), (0.6, 62, 69)])
def test_normal_load_gives_normal_heat(rig: Rig, load: float, low: float, high: float) -> None:
    rig.load = load
    seen = rig.run(60)
    assert low < seen["gpu_temperature_celsius"] < high
    assert seen["gpu_throttle_thermal"] == 0
    assert seen["gpu_utilization_percent"] == pytest.approx(100 * load, abs=5)


@pytest.mark.parametrize("load", [0.3, 0.6, 1.0])
def test_hot_air_throttles_and_a_lower_limit_brings_it_back(rig: Rig, load: float) -> None:
    rig.load = load
    normal = rig.run(60)
    rig.control.inject(inlet_offset_celsius=35)
    hot = rig.run(30)
    assert hot["gpu_temperature_celsius"] > 87
    assert hot["gpu_temperature_margin_celsius"] < 0
    assert hot["gpu_throttle_thermal"] == 1
    assert hot["gpu_sm_clock_mhz"] < 0.95 * normal["gpu_sm_clock_mhz"]
    rig.control.set_power_limit(150)
    healed = rig.run(15)
    assert healed["gpu_temperature_celsius"] < 87
    assert healed["gpu_throttle_thermal"] == 0
    assert healed["gpu_throttle_power"] == 1
    assert healed["gpu_power_usage_watts"] < 160


def test_an_unknown_load_holds_the_last_one(rig: Rig) -> None:
    rig.run(30)
    rig.load = None
    assert rig.run(30)["gpu_utilization_percent"] == pytest.approx(45, abs=5)


def test_a_limit_that_a_fault_set_is_replaced_by_a_new_one(rig: Rig) -> None:
    rig.control.inject(power_limit_watts=150)
    assert rig.run(5)["gpu_power_limit_watts"] == 150
    rig.control.set_power_limit(400)
    assert rig.run(5)["gpu_power_limit_watts"] == 400


def test_a_gpu_off_the_bus_gives_only_that(rig: Rig) -> None:
    assert rig.run(2)["gpu_xid"] == 0
    rig.control.inject(xid=79)
    seen = rig.run(1)
    assert (seen["gpu_available"], seen["gpu_xid"]) == (0, 79)
    assert set(seen) == {
        "gpu_available",
        "gpu_state",
        "gpu_xid",
        "gpu_recommended_action",
        "gpu_count",
        "gpu_driver_state",
    }
    assert (seen["gpu_state"], seen["gpu_recommended_action"]) == (2, 4)
    rig.control.clear_faults()
    assert rig.run(1)["gpu_available"] == 1


def test_other_codes_and_memory_errors_leave_it_there(rig: Rig) -> None:
    rig.control.inject(xid=94)
    rig.control.inject(ecc_uncorrectable=2)
    seen = rig.run(1)
    assert (seen["gpu_available"], seen["gpu_state"], seen["gpu_xid"]) == (1, 0, 94)
    assert seen["gpu_recommended_action"] == 2  # restart the application
    assert (seen["gpu_ecc_uncorrectable_total"], seen["gpu_row_remap_pending"]) == (2, 1)


def test_a_hanging_driver_is_given_up_in_time_and_told(rig: Rig) -> None:
    rig.control.inject(driver_hang=True)
    with pytest.raises(CollectorError, match="did not answer") as caught:
        rig.collector.collect(0.0)
    told = {sample.signal: sample.value for sample in caught.value.samples}
    assert told == {"gpu_driver_state": 1, "gpu_state": 5}
    assert all(sample.labels["simulated"] == "true" for sample in caught.value.samples)
    rig.control.clear_faults()
    assert rig.run(1)["gpu_available"] == 1


def test_a_call_that_hangs_returns_when_the_fault_is_cleared(tmp_path: Path) -> None:
    control = SimulatedGpuControl(tmp_path / "simulated_gpu.json")
    control.inject(driver_hang=True)
    patient = SimulatedGpuCollector(
        "box", lambda: 0.5, tmp_path / "simulated_gpu.json", deadline_seconds=60.0
    )
    threading.Timer(0.3, control.clear_faults).start()
    assert patient.collect(0.0).samples


def test_a_fan_that_stands_heats_it_until_it_slows_down(rig: Rig) -> None:
    normal = rig.run(60)
    assert normal["gpu_fan_speed_percent"] > 25
    rig.control.inject(fan_failure=True)
    hot = rig.run(40)
    assert hot["gpu_fan_speed_percent"] == 0
    assert hot["gpu_throttle_thermal"] == 1
    assert hot["gpu_throttle_thermal_seconds_total"] > normal["gpu_throttle_thermal_seconds_total"]
    assert hot["gpu_sm_clock_mhz"] < normal["gpu_sm_clock_mhz"]


def test_the_brake_halves_the_clock_at_an_unchanged_limit(rig: Rig) -> None:
    normal = rig.run(30)
    rig.control.inject(power_brake=True)
    braked = rig.run(5)
    assert braked["gpu_sm_clock_mhz"] == pytest.approx(normal["gpu_sm_clock_mhz"] / 2, rel=0.02)
    assert braked["gpu_power_limit_watts"] == normal["gpu_power_limit_watts"]
    assert int(braked["gpu_throttle_reason"]) & 0x80


def test_energy_is_power_over_time(rig: Rig) -> None:
    first = rig.run(60)
    later = rig.run(100)
    spent = later["gpu_energy_joules_total"] - first["gpu_energy_joules_total"]
    assert spent == pytest.approx(100 * later["gpu_power_usage_watts"], rel=0.05)


def test_closing_frees_a_hanging_call(rig: Rig) -> None:
    rig.control.inject(driver_hang=True)
    rig.collector.close()
    with pytest.raises(CollectorError, match="did not answer"):
        rig.collector.collect(0.0)


def test_a_control_file_that_is_not_understood_is_named(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "simulated_gpu.json").write_text('{"faults": {"fire": 1}}')
    with pytest.raises(CollectorError, match=r"simulated_gpu\.json: faults\.fire"):
        rig.collector.collect(0.0)
    rig.control.clear_faults()
    assert rig.run(1)["gpu_available"] == 1


@pytest.mark.parametrize("faults", [{"fire": 1}, {"inlet_offset_celsius": 900}, {"xid": "x"}])
def test_a_fault_that_is_not_known_is_refused(rig: Rig, faults: dict[str, object]) -> None:
    with pytest.raises(ControlError):
        rig.control.inject(**faults)
    assert rig.control.read().faults.xid == 0


def test_the_same_seed_gives_the_same_noise(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        runs.append(Rig(tmp_path / name).run(20))
    assert runs[0] == runs[1]


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(100, 400), st.floats(-10, 60), st.floats(0, 30)),
        min_size=1,
        max_size=30,
    )
)
def test_the_physics_stays_physical(steps: list[tuple[float, float, float, float]]) -> None:
    gpu = SimulatedGpu()
    for load, limit, inlet, seconds in steps:
        state = gpu.step(seconds, load=load, limit_watts=limit, inlet_offset_celsius=inlet)
        assert state.power_watts <= limit + 1e-6
        assert gpu.model.idle_watts <= state.power_watts <= gpu.model.full_watts
        assert 20 <= state.temperature_celsius <= 140
        assert gpu.model.min_sm_clock_mhz <= state.sm_clock_mhz <= gpu.model.max_sm_clock_mhz
        if state.reasons & ThrottleReason.HW_THERMAL:
            assert state.temperature_celsius >= gpu.model.hardware_slowdown_celsius
