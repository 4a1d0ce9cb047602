"""The control file of the simulated GPU: its power limit and the faults injected into it.

Executors and drills write it from their own processes and the simulated GPU reads it, as tools and a
driver would meet at a real device. The file is replaced whole, so that a reader never sees half of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from collectors.gpu.shared_file import locked, replace_text


class ControlError(ValueError):
    """The control file cannot be understood, or a fault is not known; the message names the place."""


class SimulatedFaults(BaseModel):
    """Faults that stand until they are cleared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inlet_offset_celsius: float = Field(
        0.0, ge=-30, le=60, description="how much warmer the air is"
    )
    xid: int = Field(0, ge=0, le=1000, description="a standing XID; 79 takes the GPU off the bus")
    driver_hang: bool = Field(default=False, description="calls into the driver do not return")
    lost: bool = Field(default=False, description="the driver cannot reach it, without an XID")
    gone: bool = Field(default=False, description="the driver lists it no more")
    reset_required: bool = Field(default=False, description="the driver refuses it until a reset")
    ecc_uncorrectable: int = Field(0, ge=0, description="uncorrectable memory errors so far")
    ecc_correctable: int = Field(0, ge=0, description="corrected memory errors so far")
    row_remap_failed: bool = Field(default=False, description="a row cannot be remapped any more")
    fan_failure: bool = Field(default=False, description="the fan stands still")
    power_brake: bool = Field(default=False, description="the supply asserts the power brake")
    pcie_lanes: int | None = Field(None, ge=1, le=16, description="lanes left of 16")
    pcie_replays: int = Field(0, ge=0, description="PCIe packets repeated so far")
    power_limit_watts: float | None = Field(
        None, gt=0, le=2000, description="a limit that somebody set; a new limit replaces it"
    )


class SimulatedGpuSettings(BaseModel):
    """The whole control file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    power_limit_watts: float | None = Field(
        None, gt=0, le=2000, description="the limit in watts; null is the device's default"
    )
    faults: SimulatedFaults = SimulatedFaults()


class SimulatedGpuControl:
    """Reads and changes the control file; any number of processes may hold one.

    Args:
        path: the file, usually ``simulated_gpu.json`` in the state directory. Absent means defaults.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._settings = SimulatedGpuSettings()

    def read(self) -> SimulatedGpuSettings:
        """Return what the file says now; it is parsed only when it has changed.

        Raises:
            ControlError: when the file is not valid; the message names the fields.
        """
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                self._settings = SimulatedGpuSettings.model_validate_json(self._path.read_bytes())
                self._seen = seen
        except FileNotFoundError:
            self._settings, self._seen = SimulatedGpuSettings(), None
        except ValidationError as error:
            raise ControlError(f"{self._path}: {_reasons(error)}") from error
        return self._settings

    def set_power_limit(self, watts: float) -> None:
        """Set the power limit; it replaces a limit that a fault had set.

        Raises:
            ControlError: when the limit is not positive or over 2000 W.
        """
        self._change(
            lambda old: {
                "power_limit_watts": watts,
                "faults": old.faults.model_dump() | {"power_limit_watts": None},
            }
        )

    def inject(self, **faults: object) -> None:
        """Add faults to those that stand, by the field names of :class:`SimulatedFaults`.

        Raises:
            ControlError: when a fault is not known or its value is out of bounds.
        """
        self._change(
            lambda old: {
                "power_limit_watts": old.power_limit_watts,
                "faults": old.faults.model_dump() | faults,
            }
        )

    def clear_faults(self) -> None:
        """Remove every fault and keep the power limit."""
        self._change(lambda old: {"power_limit_watts": old.power_limit_watts})

    def _change(self, make: Callable[[SimulatedGpuSettings], dict[str, object]]) -> None:
        with locked(self._path):
            try:
                old = self.read()
            except ControlError:
                # A file that nobody can read would otherwise block every repair of itself.
                old = SimulatedGpuSettings()
            try:
                new = SimulatedGpuSettings.model_validate(make(old))
            except ValidationError as error:
                raise ControlError(f"simulated GPU: {_reasons(error)}") from error
            replace_text(self._path, new.model_dump_json(exclude_defaults=True))


def _reasons(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'the file'}: {fault['msg']}"
        for fault in error.errors()
    )
