"""Settings of the generated rules: what the services promise."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Bounds that the bundled service and vLLM (0.33) both have: a threshold between two bounds of a
# histogram could only be guessed at.
LATENCY_BOUNDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
FIRST_TOKEN_BOUNDS = (0.001, 0.005, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0)


class ObjectiveSettings(BaseModel):
    """Objectives of the services in the generated rules for Prometheus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_days: int = Field(30, ge=7, le=90, description="Days that an error budget covers.")
    availability_ratio: float = Field(
        0.999, ge=0.9, le=0.99999, description="Requests to answer, of all that count."
    )
    latency_seconds: float = Field(
        5.0, gt=0, le=60, description="Time for a whole answer; a bound of the histograms."
    )
    latency_ratio: float = Field(
        0.99, ge=0.9, le=0.9999, description="Successful requests to answer within that time."
    )
    first_token_seconds: float = Field(
        1.0, gt=0, le=40, description="Time to the first token; a bound of the histograms."
    )
    first_token_ratio: float = Field(
        0.95, ge=0.9, le=0.9999, description="Requests whose first token comes within that time."
    )
    minimum_requests: int = Field(
        50, ge=1, le=1_000_000,
        description="Requests in an alert's long window below which it says nothing.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _on_bounds(self) -> Self:
        for name, bounds in (
            ("latency_seconds", LATENCY_BOUNDS),
            ("first_token_seconds", FIRST_TOKEN_BOUNDS),
        ):
            if getattr(self, name) not in bounds:
                raise ValueError(f"{name} must be one of {', '.join(map(str, bounds))}")
        return self
