"""Settings of detection over a fleet: the ``[analysis.fleet]`` table."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class FleetSettings(BaseModel):
    """How `galen detect` and `galen backtest` divide a fleet among workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_series: int = Field(
        2000,
        ge=1,
        le=1_000_000,
        description="Series that one worker takes at a time; more only where they belong together.",
    )
    chunk_samples: int = Field(
        1_000_000,
        ge=1000,
        le=100_000_000,
        description="Samples that a worker reads at a time, about; bounds its memory.",
    )
    shard_deadline_seconds: float = Field(
        3600.0, ge=1, le=7 * 86400, description="The longest that one shard may take."
    )
    connect_seconds: float = Field(
        10.0, ge=0.1, le=600, description="The longest that the scheduler may take to answer."
    )
    worker_wait_seconds: float = Field(
        60.0, ge=0.1, le=86400, description="How long to wait while there is no worker at all."
    )
    read_attempts: int = Field(
        4, ge=1, le=100, description="Reads that may fail in a row before a shard is given up."
    )
