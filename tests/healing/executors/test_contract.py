"""What every executor has to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from collectors.gpu.control import SimulatedGpuControl
from healing.errors import ExecutionError
from healing.executors.contract import Command, ExecutionResult, Executor, Outcome
from healing.executors.gpu import GpuExecutor, SimulatedControl
from healing.executors.nothing import NothingExecutor
from healing.executors.registry import build_executors
from healing.executors.service import ServiceExecutor
from healing.policy import Policy
from healing.settings import HealingSettings, ServiceTarget

STATE = {
    "degradation": {"level": 0},
    "draining": False,
    "limits": {"max_queue": 64, "max_slots": 8, "requests_per_second": None},
    "models": {"demo": {"version": 2}},
}
ENTITIES = {"service": "service/llm", "gpu": "host/box/gpu/0", "none": "service/llm"}
PARAMETERS = {
    "set_degradation_level": {"level": 2},
    "set_limits": {"max_queue": 8},
    "set_drain": {"drain": True},
    "lower_power_limit": {"watts": 130.0},
}
Build = Callable[[Path], Executor]


def build_service(_: Path) -> Executor:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=STATE if request.url.path == "/admin/state" else {})

    target = ServiceTarget(name="llm", url="http://service.example", model="demo")
    return ServiceExecutor([target], transport=httpx.MockTransport(handle))


def build_gpu(path: Path) -> Executor:
    control = SimulatedGpuControl(path / "simulated_gpu.json")
    return GpuExecutor({ENTITIES["gpu"]: SimulatedControl(control)})


@pytest.fixture(params=[build_service, build_gpu, lambda _: NothingExecutor()],
                ids=["service", "gpu", "none"])  # fmt: skip
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Executor:
    return request.param(tmp_path)


def commands(executor: Executor, entity: str = "") -> list[Command]:
    where = entity or ENTITIES[executor.name]
    return [
        Command(operation, where, PARAMETERS.get(operation, {}))
        for operation in sorted(executor.operations)
    ]


def test_it_is_an_executor(executor: Executor) -> None:
    assert isinstance(executor, Executor)
    assert executor.is_supported().supported


def test_each_operation_gives_a_result(executor: Executor) -> None:
    for command in commands(executor):
        assert isinstance(executor.execute(command, 1.0), ExecutionResult), command


def test_a_snapshot_is_plain_data_and_changes_nothing(executor: Executor) -> None:
    for command in commands(executor):
        first = dict(executor.snapshot(command, 1.0))
        assert dict(executor.snapshot(command, 1.0)) == first


def test_done_twice_has_the_effect_of_once(executor: Executor) -> None:
    for command in commands(executor):
        executor.execute(command, 1.0)
        state = dict(executor.snapshot(command, 1.0))
        executor.execute(command, 1.0)
        assert dict(executor.snapshot(command, 1.0)) == state


def test_it_never_raises_for_what_it_does_not_control(executor: Executor) -> None:
    for command in commands(executor, "service/unknown/gpu/9"):
        try:
            executor.snapshot(command, 1.0)
        except ExecutionError:
            assert executor.execute(command, 1.0).outcome is Outcome.NOT_DONE
            assert executor.undo(command, {}, 1.0).outcome is Outcome.NOT_DONE


def test_the_registry_has_what_the_policy_asks_for(policy: Policy) -> None:
    executors = build_executors(HealingSettings())
    assert {remedy.executor for remedy in policy.actions.values()} == executors.keys()
    assert all(name == executor.name for name, executor in executors.items())
    assert not executors["service"].is_supported().supported
    assert executors["service"].is_supported().fix
