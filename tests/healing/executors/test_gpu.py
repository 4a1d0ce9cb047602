from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from collectors.gpu.control import SimulatedGpuControl
from healing.errors import ExecutionError
from healing.executors.contract import Command, Outcome
from healing.executors.gpu import GpuExecutor, PowerLimits, SimulatedControl
from healing.executors.nvidia_smi import NvidiaSmiControl, run_program

GPU = "host/box/gpu/0"


@pytest.fixture
def control(tmp_path: Path) -> SimulatedGpuControl:
    return SimulatedGpuControl(tmp_path / "simulated_gpu.json")


@pytest.fixture
def executor(control: SimulatedGpuControl) -> GpuExecutor:
    return GpuExecutor({GPU: SimulatedControl(control)})


def lower(watts: float) -> Command:
    return Command("lower_power_limit", GPU, {"watts": watts})


def test_a_limit_is_lowered_and_restored(
    executor: GpuExecutor, control: SimulatedGpuControl
) -> None:
    undo = executor.snapshot(lower(130), 1.0)
    assert undo == {"power_limit_watts": 400.0}
    assert executor.execute(lower(130), 1.0).outcome is Outcome.DONE
    assert control.read().power_limit_watts == 130
    assert executor.undo(lower(130), undo, 1.0).outcome is Outcome.DONE
    assert control.read().power_limit_watts == 400


def test_a_limit_stays_inside_the_range_of_the_device(
    executor: GpuExecutor, control: SimulatedGpuControl
) -> None:
    executor.execute(lower(10), 1.0)
    assert control.read().power_limit_watts == 100


def test_a_limit_is_never_raised_by_lowering(
    executor: GpuExecutor, control: SimulatedGpuControl
) -> None:
    control.set_power_limit(120)
    result = executor.execute(lower(200), 1.0)
    assert (result.outcome, control.read().power_limit_watts) == (Outcome.NOT_DONE, 120)
    assert "120 W already" in result.detail


def test_what_somebody_changed_since_is_left_alone(
    executor: GpuExecutor, control: SimulatedGpuControl
) -> None:
    executor.execute(lower(130), 1.0)
    control.set_power_limit(250)
    result = executor.undo(lower(130), {"power_limit_watts": 400.0}, 1.0)
    assert (result.outcome, control.read().power_limit_watts) == (Outcome.DONE, 250)


def test_a_cap_is_lifted(executor: GpuExecutor, control: SimulatedGpuControl) -> None:
    control.inject(power_limit_watts=150)
    restore = Command("restore_power_limit", GPU)
    assert executor.snapshot(restore, 1.0) == {"power_limit_watts": 150}
    assert executor.execute(restore, 1.0).outcome is Outcome.DONE
    assert control.read().faults.power_limit_watts is None
    assert executor.execute(restore, 1.0).outcome is Outcome.NOT_DONE


def test_a_reset_clears_errors_and_not_the_heat(
    executor: GpuExecutor, control: SimulatedGpuControl
) -> None:
    control.inject(xid=95, reset_required=True, ecc_uncorrectable=2, inlet_offset_celsius=30)
    reset = Command("reset_gpu", GPU)
    assert executor.snapshot(reset, 1.0) == {}
    assert executor.execute(reset, 1.0).outcome is Outcome.DONE
    faults = control.read().faults
    assert (faults.xid, faults.ecc_uncorrectable, faults.inlet_offset_celsius) == (0, 0, 30)
    assert not faults.reset_required
    assert executor.undo(reset, {}, 1.0).outcome is Outcome.NOT_DONE


@pytest.mark.parametrize("fault", [{"xid": 79}, {"lost": True}, {"gone": True}])
def test_what_cannot_be_reached_cannot_be_reset(
    executor: GpuExecutor, control: SimulatedGpuControl, fault: dict[str, object]
) -> None:
    control.inject(**fault)
    result = executor.execute(Command("reset_gpu", GPU), 1.0)
    assert result.outcome is Outcome.NOT_DONE
    assert "reboot" in result.detail
    assert control.read().faults.model_dump(exclude_defaults=True) == fault


def test_a_broken_control_file_is_told(executor: GpuExecutor, tmp_path: Path) -> None:
    (tmp_path / "simulated_gpu.json").write_text("{", "utf-8")
    assert executor.execute(lower(130), 1.0).outcome is Outcome.NOT_DONE
    with pytest.raises(ExecutionError):
        executor.snapshot(lower(130), 1.0)


def test_a_gpu_without_control_is_left_alone(executor: GpuExecutor) -> None:
    assert executor.controls("host/box/gpu/1") is None
    assert executor.execute(Command("reset_gpu", "host/box/gpu/1"), 1.0).outcome is Outcome.NOT_DONE
    assert not GpuExecutor({}).is_supported().supported


class FakeSmi:
    """What ``nvidia-smi`` printed for an A100 (driver 550); records what was asked."""

    def __init__(self, printed: str = "400.00, 400.00, 100.00, 400.00\n") -> None:
        self.printed = printed
        self.asked: list[Sequence[str]] = []

    def __call__(self, arguments: Sequence[str], deadline_seconds: float) -> str:
        self.asked.append(arguments)
        return self.printed


def test_nvidia_smi_is_asked_and_told() -> None:
    smi = FakeSmi()
    control = NvidiaSmiControl("GPU-1", run=smi)
    assert control.power_limits(1.0) == PowerLimits(400, 400, 100, 400)
    control.set_power_limit(280.4, 1.0)
    control.reset(1.0)
    assert smi.asked[1:] == [
        ["nvidia-smi", "-i", "GPU-1", "--power-limit=280"],
        ["nvidia-smi", "-i", "GPU-1", "--gpu-reset"],
    ]


@pytest.mark.parametrize("printed", ["[N/A], [N/A], [N/A], [N/A]\n", "", "No devices were found\n"])
def test_a_gpu_that_does_not_tell_its_limits_is_left_alone(printed: str) -> None:
    smi = FakeSmi(printed)
    executor = GpuExecutor({GPU: NvidiaSmiControl("0", run=smi)})
    assert executor.execute(lower(100), 1.0).outcome is Outcome.NOT_DONE
    assert len(smi.asked) == 1


def test_a_program_that_hangs_is_given_up_and_its_effect_is_unknown() -> None:
    class Hanging(FakeSmi):
        def __call__(self, arguments: Sequence[str], deadline_seconds: float) -> str:
            if "--gpu-reset" in arguments:
                script = [sys.executable, "-c", "import time; time.sleep(60)"]
                return run_program(script, 0.2)
            return super().__call__(arguments, deadline_seconds)

    executor = GpuExecutor({GPU: NvidiaSmiControl("0", run=Hanging())})
    assert executor.execute(Command("reset_gpu", GPU), 0.2).outcome is Outcome.UNKNOWN


def test_a_program_that_fails_or_is_missing_is_told() -> None:
    with pytest.raises(ExecutionError, match="cannot be run"):
        run_program(["no-such-program-anywhere"], 1.0)
    script = "import sys; print('Insufficient Permissions'); sys.exit(4)"
    with pytest.raises(ExecutionError, match="Insufficient Permissions"):
        run_program([sys.executable, "-c", script], 10.0)
    assert run_program([sys.executable, "-c", "print(7)"], 10.0) == "7\n"
