"""What `galen doctor` says about one thing that it looked at."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    NOTE = "note"
    """Not a fault; Galen works, with less."""
    FAIL = "fail"


class Check(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True)

    name: str
    level: Level
    found: str
    why: str
    fix: str = ""
