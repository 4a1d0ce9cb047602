"""Settings of detection. Every duration is in seconds; the defaults suit a cadence of 1 to 60 s."""

from __future__ import annotations

from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Self

from apscheduler.triggers.cron import CronTrigger
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from analysis.detection.zones import UTC, known_zone


class DetectionTable(BaseModel):
    """Base of the tables of detection: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaselineSettings(DetectionTable):
    """The online robust baseline that every series has."""

    level_memory_seconds: float = Field(
        20.0, ge=1, le=86400, description="Time constant of the level; load drifts over minutes."
    )
    level_memory_values: float = Field(
        12.0, ge=2, le=10000, description="Its lower bound in values, which rules at slow cadences."
    )
    scale_memory_seconds: float = Field(
        180.0, ge=5, le=864000, description="Time constant of the spread around the level."
    )
    scale_memory_values: float = Field(
        60.0, ge=5, le=10000, description="Its lower bound in values."
    )
    raise_sigmas: float = Field(
        3.5, ge=2, le=20, description="Deviation in robust standard deviations that scores 1."
    )
    quiet_values: int = Field(
        10, ge=3, le=1000, description="Values of a new series before it is scored at all."
    )
    warm_values: int = Field(
        30, ge=5, le=10000, description="Values that a baseline of its own needs."
    )
    warm_seconds: float = Field(
        60.0, ge=0, le=86400, description="Age from which the caution of the cold start fades."
    )
    cold_caution: float = Field(
        4.0, ge=1, le=20, description="Factor on all thresholds at the cold start."
    )
    tail_rate: float = Field(
        0.005, gt=0, lt=0.2, description="Share of normal values that may score above 1."
    )
    record_sigmas: float = Field(
        5.0,
        ge=2,
        le=50,
        description="For signals that are not in the catalogue: the least deviation, in robust "
        "standard deviations, that scores 1.",
    )
    record_values: int = Field(
        300,
        ge=30,
        le=100000,
        description="Values of such a series until its own record alone is the threshold.",
    )
    record_days: float = Field(
        10.0, ge=0.1, le=365, description="Time constant in which such a record fades."
    )
    timezone: str = Field(
        UTC, description="Whose wall clock days and weeks of load follow, such as Europe/Berlin."
    )

    _zone = field_validator("timezone")(known_zone)


class ForestSettings(DetectionTable):
    """The isolation forest of each entity."""

    enabled: bool = Field(True, description="Whether forests are fitted and vote.")
    trees: int = Field(40, ge=5, le=200, description="Trees of a forest.")
    rows: int = Field(
        256, ge=32, le=2048, description="Recent normal rows that are kept to fit on."
    )
    row_seconds: float = Field(
        2.0, gt=0, le=3600, description="Distance of the rows that are kept, at least one tick."
    )
    first_rows: int = Field(60, ge=16, le=2048, description="Rows before the first fit.")
    refit_seconds: float = Field(120.0, ge=5, le=86400, description="Time between two fits.")
    handover_ticks: int = Field(
        5, ge=1, le=1000, description="Ticks between the start of a fit and its earliest use."
    )
    tail_rate: float = Field(0.01, gt=0, lt=0.2, description="Share of normal ticks above 1.")
    seed: int = Field(7, ge=0, le=2**31 - 1, description="Seed of the trees.")


class CovarianceSettings(DetectionTable):
    """The Mahalanobis distance of each entity's row."""

    enabled: bool = Field(True, description="Whether the distance is computed and votes.")
    memory_seconds: float = Field(
        300.0,
        ge=10,
        le=5184000,
        description="Time constant of mean and covariance in the live path.",
    )
    memory_values: float = Field(120.0, ge=10, le=100000, description="Its lower bound in values.")
    refit_ticks: int = Field(30, ge=1, le=10000, description="Ticks between inversions, staggered.")
    warm_values: int = Field(60, ge=10, le=100000, description="Rows before it has an opinion.")
    largest_entity: int = Field(
        128,
        ge=2,
        le=512,
        description="Series of one entity that take part, in order of first sight.",
    )
    tail_rate: float = Field(0.01, gt=0, lt=0.2, description="Share of normal ticks above 1.")


class AbsenceSettings(DetectionTable):
    """When a series counts as stopped."""

    missed_values: float = Field(
        4.0, ge=1.5, le=100, description="Missed values at its own cadence."
    )
    minimum_seconds: float = Field(5.0, ge=0, le=3600, description="Never before this age.")
    warm_values: int = Field(10, ge=2, le=1000, description="Values that show a cadence.")


class DropSettings(DetectionTable):
    """When a rate counts as dropped to zero."""

    minimum_zeros: int = Field(3, ge=1, le=100, description="Zeros in a row, at least.")
    zero_share: float = Field(0.02, gt=0, le=0.5, description="Share of the level that is zero.")
    usual_zero_ratio: float = Field(
        0.05,
        gt=0,
        le=0.5,
        description="A series that is zero more often than this is never judged.",
    )
    run_factor: float = Field(
        3.0, ge=1, le=20, description="Times its longest usual run of zeros before it is a drop."
    )
    memory_seconds: float = Field(60.0, ge=5, le=86400, description="Time constant of its level.")
    warm_values: int = Field(30, ge=5, le=10000, description="Values before it has an opinion.")


class TrendSettings(DetectionTable):
    """When growth of memory and the like counts as a leak."""

    fast_points: int = Field(8, ge=5, le=60, description="Newest values in the fast window.")
    fast_seconds: float = Field(7.0, ge=3, le=3600, description="Least length of the fast window.")
    slow_points: int = Field(30, ge=10, le=120, description="Points in the slow window.")
    slow_seconds: float = Field(240.0, ge=30, le=86400, description="Length of the slow window.")
    settle_seconds: float = Field(
        45.0, ge=0, le=86400, description="Growth of a new or restarted process that is warm-up."
    )
    least_share: float = Field(
        0.25,
        gt=0,
        le=10,
        description="Growth over a window that matters, in least deviations of the signal.",
    )
    slow_share: float = Field(
        0.03, gt=0, le=1, description="Growth over the slow window that matters, as a share."
    )


class ExhaustionSettings(DetectionTable):
    """When a resource that runs out evenly counts as nearly run out."""

    short_seconds: float = Field(
        30.0, ge=5, le=3600, description="Length of the window that only forecasts."
    )
    middle_seconds: float = Field(
        240.0, ge=30, le=86400, description="Length of the window for fast growth."
    )
    long_seconds: float = Field(
        3600.0, ge=60, le=864000, description="Length of the window for slow growth."
    )
    reach: float = Field(
        4.0, ge=1, le=100, description="Times its own length that a window looks ahead."
    )
    horizon_seconds: float = Field(
        14400.0, ge=60, le=864000, description="Time to the limit that is worth an alarm."
    )


class PeerSettings(DetectionTable):
    """When one of several siblings counts as unlike the others."""

    enabled: bool = Field(True, description="Whether siblings are compared.")
    least_peers: int = Field(3, ge=2, le=100, description="Others that have to be there.")
    raise_sigmas: float = Field(
        5.0, ge=2, le=20, description="Distance from their median in robust standard deviations."
    )
    floor_share: float = Field(
        0.6,
        gt=0,
        le=10,
        description="The least distance, in least deviations of the signal over time.",
    )
    minimum_values: int = Field(6, ge=1, le=1000, description="Values that it has to last.")
    minimum_seconds: float = Field(20.0, ge=0, le=86400, description="And seconds.")
    load_share: float = Field(
        0.3, gt=0, le=10, description="Siblings are equally busy within this share of the median."
    )
    memory_seconds: float = Field(
        3600.0, ge=60, le=864000, description="Time constant of a sibling's own usual distance."
    )
    absorb_seconds: float = Field(
        3600.0, ge=60, le=864000, description="A distance older than this is usual."
    )


class FlatLineSettings(DetectionTable):
    """When a series that always moved counts as standing still."""

    enabled: bool = Field(True, description="Whether standing still is looked for.")
    warm_values: int = Field(60, ge=10, le=10000, description="Moves that show how it moves.")
    minimum_values: int = Field(20, ge=3, le=1000, description="Equal values in a row, at least.")
    minimum_seconds: float = Field(60.0, ge=0, le=86400, description="And seconds.")
    run_factor: float = Field(
        6.0, ge=2, le=100, description="Times its usual number of equal values."
    )
    irregularity: float = Field(
        0.3,
        gt=0,
        le=2,
        description="A series whose runs vary by more than this share is never judged.",
    )
    absorb_seconds: float = Field(
        3600.0, ge=60, le=864000, description="What has stood still for longer is at rest."
    )


class ShiftSettings(DetectionTable):
    """When a deviation is a new level that stays."""

    values: int = Field(
        20, ge=5, le=1000, description="Values on one side beyond which a level has shifted."
    )
    rebase_seconds: float = Field(
        120.0,
        ge=10,
        le=864000,
        description="Load at a steady new level is taken for normal after this time.",
    )
    remember_seconds: float = Field(
        86400.0, ge=0, le=864000, description="How long a return to the old level is no surprise."
    )


class AlertSettings(DetectionTable):
    """From scores to anomalies."""

    clear_level: float = Field(
        0.7, gt=0, le=1, description="Score below which a deviation is over."
    )
    clear_seconds: float = Field(5.0, ge=0, le=3600, description="Time below it before it clears.")
    hold_seconds: float = Field(
        5.0, ge=0, le=3600, description="An anomaly lives at least this long."
    )
    rearm_seconds: float = Field(
        30.0,
        ge=0,
        le=86400,
        description="After clearing, the minimum duration is doubled this long.",
    )
    absorb_seconds: float = Field(
        600.0,
        ge=10,
        le=864000,
        description="A statistical anomaly older than this is a new normal.",
    )
    absorb_values: int = Field(
        12,
        ge=1,
        le=10000,
        description="And not before so many values, which rules at slow cadences.",
    )


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Say whether a name fits one of the patterns, in which ``*`` is any text."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class MaintenanceWindow(DetectionTable):
    """A time in which some series neither alarm nor teach. One of three ways says when."""

    name: str = Field(min_length=1, max_length=80, description="Shown in the log.")
    entities: tuple[str, ...] = Field(
        ("*",), min_length=1, description="Patterns of entities, such as host/gpu-*; * is any text."
    )
    signals: tuple[str, ...] = Field(
        ("*",), min_length=1, description="Patterns of signals, such as gpu_*."
    )
    cron: str | None = Field(
        None, description="When it begins: minute hour day month weekday; with duration_seconds."
    )
    duration_seconds: float | None = Field(
        None, gt=0, le=1209600, description="How long it lasts after each beginning."
    )
    start: datetime | None = Field(None, description="When it begins, once; with end.")
    end: datetime | None = Field(None, description="When it ends.")
    calendar: Path | None = Field(
        None, description="An iCalendar file (.ics); it is open during each event of it."
    )
    timezone: str = Field("UTC", description="Of cron, and of times that name none.")

    def covers(self, entity: str, signal: str) -> bool:
        """Say whether a series is meant."""
        return matches(self.entities, entity) and matches(self.signals, signal)

    _zone = field_validator("timezone")(known_zone)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [
            self.cron is not None or self.duration_seconds is not None,
            self.start is not None or self.end is not None,
            self.calendar is not None,
        ]
        if sum(ways) != 1:
            raise ValueError(
                "say when by cron and duration_seconds, by start and end, or by calendar"
            )
        if ways[0] and (self.cron is None or self.duration_seconds is None):
            raise ValueError("cron and duration_seconds go together")
        if self.cron is not None:
            try:
                CronTrigger.from_crontab(self.cron)
            except ValueError as error:
                raise ValueError(f"cron {self.cron!r}: {error}") from error
        if ways[1] and (self.start is None or self.end is None):
            raise ValueError("start and end go together")
        if (
            self.start
            and self.end
            and self.start.replace(tzinfo=None) >= self.end.replace(tzinfo=None)
        ):
            raise ValueError("end must be after start")
        return self


class SignalOverride(DetectionTable):
    """What is different for some series. What is left out stays as the bundled profiles say."""

    entities: tuple[str, ...] = Field(("*",), min_length=1, description="Patterns of entities.")
    signals: tuple[str, ...] = Field(min_length=1, description="Patterns of signals.")
    enabled: bool = Field(
        True, description="False: these series are measured and shown, and never raised."
    )
    least: float | None = Field(
        None, ge=0, description="Least deviation that can matter, in the unit of the signal."
    )
    minimum_values: int | None = Field(
        None, ge=1, le=1000, description="Values that a deviation has to last."
    )
    minimum_seconds: float | None = Field(
        None, ge=0, le=86400, description="Or seconds, for slow series."
    )
    bad_direction: Literal["up", "down", "both", "none"] | None = Field(
        None, description="The side on which a deviation is raised."
    )

    def covers(self, entity: str, signal: str) -> bool:
        """Say whether a series is meant."""
        return matches(self.entities, entity) and matches(self.signals, signal)


class DetectionSettings(DetectionTable):
    """All of detection."""

    baseline: BaselineSettings = Field(
        default_factory=BaselineSettings, description="The online baseline."
    )
    forest: ForestSettings = Field(default_factory=ForestSettings, description="Isolation forests.")
    covariance: CovarianceSettings = Field(
        default_factory=CovarianceSettings, description="Mahalanobis distance."
    )
    absence: AbsenceSettings = Field(default_factory=AbsenceSettings, description="Absence.")
    drop: DropSettings = Field(default_factory=DropSettings, description="Drop to zero.")
    trend: TrendSettings = Field(default_factory=TrendSettings, description="Leaks.")
    exhaustion: ExhaustionSettings = Field(
        default_factory=ExhaustionSettings, description="Time to a physical limit."
    )
    peers: PeerSettings = Field(
        default_factory=PeerSettings, description="Comparison with siblings."
    )
    flat_line: FlatLineSettings = Field(
        default_factory=FlatLineSettings, description="Series that stand still."
    )
    shift: ShiftSettings = Field(default_factory=ShiftSettings, description="Shifts of level.")
    alerts: AlertSettings = Field(default_factory=AlertSettings, description="Alert policy.")
    maintenance: tuple[MaintenanceWindow, ...] = Field(
        (), description="Times in which some series neither alarm nor teach."
    )
    overrides: tuple[SignalOverride, ...] = Field(
        (), description="What is different for some series; of several that match the last wins."
    )
    retire_after_seconds: float = Field(
        129_600.0,
        ge=60,
        le=31_622_400,
        description="A series without a value for so long is forgotten; a day and a half keeps what "
        "runs once a day.",
    )
    vote_lift: float = Field(
        1.25,
        ge=1,
        le=3,
        description="Factor on the score of a series that leads a multivariate vote above 1.",
    )
