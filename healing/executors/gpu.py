"""Acts on GPUs: power limits and resets, each through a control of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from collectors.contract import Support
from collectors.entities import ancestors
from collectors.gpu.control import ControlError, SimulatedGpuControl
from collectors.gpu.simulated import state_of
from collectors.gpu.simulated_device import GpuModel
from collectors.gpu.states import GpuState
from healing.errors import ExecutionError
from healing.executors.contract import Command, ExecutionResult, Outcome

# A limit that comes back within this of what was asked is that limit: drivers round.
_TOLERANCE_WATTS = 1.0
_KILL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class PowerLimits:
    """The power limit of a GPU and the range that it may take, in watts."""

    limit_watts: float
    default_watts: float
    minimum_watts: float
    maximum_watts: float


class GpuControl(Protocol):
    """What can be changed on one GPU. Each call ends within its deadline."""

    def power_limits(self, deadline_seconds: float) -> PowerLimits:
        """Read the limits.

        Raises:
            ExecutionError: when they cannot be read.
        """

    def set_power_limit(self, watts: float, deadline_seconds: float) -> None:
        """Set the limit.

        Raises:
            ExecutionError: when it was refused.
            TimeoutError: when there was no answer in time.
        """

    def reset(self, deadline_seconds: float) -> None:
        """Reset the device.

        Raises:
            ExecutionError: when it was refused.
            TimeoutError: when there was no answer in time.
        """


class GpuExecutor:
    """Sets power limits and resets GPUs, each through its own control."""

    name = "gpu"
    operations = frozenset({"lower_power_limit", "restore_power_limit", "reset_gpu"})

    def __init__(self, controls: Mapping[str, GpuControl]) -> None:
        """Act through ``controls``, by entity; they may become more as GPUs are seen."""
        self._controls = controls

    @property
    def entities(self) -> Sequence[str]:
        """The GPUs that it holds a control of."""
        return tuple(self._controls)

    def is_supported(self) -> Support:
        """Say whether there is a GPU to act on."""
        if self._controls:
            return Support(supported=True)
        return Support(
            supported=False,
            reason="no GPU on this machine can be acted on",
            fix="Run the watch loop on the machine of the GPU, with the rights to set power limits.",
        )

    def controls(self, entity: str) -> str | None:
        """Return the GPU that an entity is or belongs to."""
        return next((e for e in (entity, *ancestors(entity)) if e in self._controls), None)

    def snapshot(self, command: Command, deadline_seconds: float) -> Mapping[str, Any]:
        """Read the present power limit.

        Raises:
            ExecutionError: when it cannot be read.
        """
        if command.operation == "reset_gpu":
            return {}
        try:
            limits = self._control(command).power_limits(deadline_seconds)
        except TimeoutError as error:
            raise ExecutionError(str(error), retryable=True) from error
        return {"power_limit_watts": limits.limit_watts}

    def execute(self, command: Command, deadline_seconds: float) -> ExecutionResult:
        """Set the limit or reset the device."""

        def act() -> ExecutionResult:
            control = self._control(command)
            if command.operation == "reset_gpu":
                control.reset(deadline_seconds)
                return ExecutionResult(Outcome.DONE)
            limits = control.power_limits(deadline_seconds)
            wanted = _wanted_watts(command, limits)
            lowers = command.operation == "lower_power_limit"
            there = abs(wanted - limits.limit_watts) <= _TOLERANCE_WATTS
            if there or (lowers and limits.limit_watts < wanted):
                return ExecutionResult(
                    Outcome.NOT_DONE, f"the power limit is {limits.limit_watts:.0f} W already"
                )
            control.set_power_limit(wanted, deadline_seconds)
            return ExecutionResult(Outcome.DONE, f"power limit {wanted:.0f} W")

        return _attempt(act)

    def undo(
        self, command: Command, undo: Mapping[str, Any], deadline_seconds: float
    ) -> ExecutionResult:
        """Restore the limit from before, unless somebody has changed it since the command."""

        def act() -> ExecutionResult:
            if "power_limit_watts" not in undo:
                raise ExecutionError(f"{command.operation} cannot be taken back")
            control = self._control(command)
            limits = control.power_limits(deadline_seconds)
            if abs(limits.limit_watts - _wanted_watts(command, limits)) > _TOLERANCE_WATTS:
                return ExecutionResult(
                    Outcome.DONE, "somebody has changed it since; it was left as it is"
                )
            control.set_power_limit(float(undo["power_limit_watts"]), deadline_seconds)
            return ExecutionResult(Outcome.DONE)

        return _attempt(act)

    def close(self) -> None:
        """Do nothing: controls hold nothing open."""

    def _control(self, command: Command) -> GpuControl:
        entity = self.controls(command.entity)
        if entity is None:
            raise ExecutionError(f"{command.entity} is no GPU that can be acted on")
        return self._controls[entity]


def _wanted_watts(command: Command, limits: PowerLimits) -> float:
    if command.operation == "restore_power_limit":
        return limits.default_watts
    wanted = float(command.parameters["watts"])
    return min(max(wanted, limits.minimum_watts), limits.maximum_watts)


def _attempt(act: Callable[[], ExecutionResult]) -> ExecutionResult:
    try:
        return act()
    except ExecutionError as error:
        return ExecutionResult(Outcome.NOT_DONE, f"{error} {error.fix}".strip())
    except TimeoutError as error:
        return ExecutionResult(Outcome.UNKNOWN, str(error))


class SimulatedControl:
    """The simulated GPU, through its control file."""

    def __init__(self, control: SimulatedGpuControl, model: GpuModel | None = None) -> None:
        """Act on the device that reads ``control``, with the constants of ``model``."""
        self._control = control
        self._model = model or GpuModel()

    def power_limits(self, deadline_seconds: float) -> PowerLimits:
        """Read the limit in force, which a fault may have set."""
        del deadline_seconds
        try:
            state = self._control.read()
        except ControlError as error:
            raise ExecutionError(str(error)) from error
        model = self._model
        chosen = state.faults.power_limit_watts or state.power_limit_watts
        return PowerLimits(
            limit_watts=chosen or model.default_limit_watts,
            default_watts=model.default_limit_watts,
            minimum_watts=model.minimum_limit_watts,
            maximum_watts=model.default_limit_watts,
        )

    def set_power_limit(self, watts: float, deadline_seconds: float) -> None:
        """Write the limit."""
        del deadline_seconds
        try:
            self._control.set_power_limit(watts)
        except (ControlError, OSError) as error:
            raise ExecutionError(str(error)) from error

    def reset(self, deadline_seconds: float) -> None:
        """Clear what a reset clears: errors and the driver's state, not the heat of the air.

        As a real one, it fails where the device cannot be reached.
        """
        del deadline_seconds
        try:
            if state_of(self._control.read().faults) in {GpuState.LOST, GpuState.GONE}:
                raise ExecutionError(
                    "the device cannot be reached, so only a reboot brings it back"
                )
            self._control.inject(
                xid=0,
                driver_hang=False,
                reset_required=False,
                ecc_uncorrectable=0,
                ecc_correctable=0,
            )
        except (ControlError, OSError) as error:
            raise ExecutionError(str(error)) from error
