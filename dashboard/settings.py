"""What the dashboard lets people set, and how it travels to Streamlit's process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator

STATE_DIR_OPTION = "--state-dir="
STATE_DIR_VARIABLE = "GALEN_STATE_DIR"
HEALING_MODE_VARIABLE = "GALEN_HEALING__MODE"
_PREFIX = "GALEN_DASHBOARD__"


class DashboardSettings(BaseModel):
    """Settings of the table ``[dashboard]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on. The dashboard can approve actions and has no sign-in of its "
        "own: put a proxy that signs people in before any address but the local one.",
    )
    port: int = Field(default=8501, ge=1, le=65535, description="TCP port to listen on.")
    refresh_seconds: float = Field(
        default=2.0, ge=0.5, le=300, description="How often live panels read the stores again."
    )
    stale_after_seconds: float = Field(
        default=30.0, ge=2, le=86400, description="Age at which a reading counts as unknown."
    )
    title: str = Field(
        default="Galen",
        min_length=1,
        max_length=60,
        description="Name of the environment, shown on every page and in the browser's tab.",
    )
    timezone: str = Field(
        default="UTC", description="IANA name of the time zone in which times are shown."
    )

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(
                f"{value!r} is not a time zone; use an IANA name such as 'Europe/Berlin'"
            ) from error
        return value

    def to_environment(self) -> dict[str, str]:
        """Return the settings as environment variables, one a field."""
        return {_PREFIX + name.upper(): str(value) for name, value in self.model_dump().items()}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the settings back from ``GALEN_DASHBOARD__<FIELD>`` variables.

        Raises:
            pydantic.ValidationError: naming the field whose value is not acceptable.
        """
        given = os.environ if environment is None else environment
        found = {
            name: given[_PREFIX + name.upper()]
            for name in cls.model_fields
            if _PREFIX + name.upper() in given
        }
        return cls.model_validate(found)


def state_directory(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> Path:
    """Return the state directory: ``--state-dir=`` before ``GALEN_STATE_DIR`` before ``./var``."""
    for argument in sys.argv[1:] if arguments is None else arguments:
        if argument.startswith(STATE_DIR_OPTION):
            return Path(argument.removeprefix(STATE_DIR_OPTION)).resolve()
    given = os.environ if environment is None else environment
    return Path(given.get(STATE_DIR_VARIABLE, "var")).resolve()
