"""Settings of collecting: one table ``[collectors]`` in the configuration file."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from collectors.access import HttpAccess
from collectors.gpu.xid import RecommendedAction, Severity
from collectors.presets import presets
from collectors.scraping.targets import target_of

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.@+-]{1,64}$")]
LabelName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]{0,63}$")]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=2048)]


class GpuMode(StrEnum):
    """Where GPU numbers come from."""

    AUTO = "auto"
    """NVML where there is a driver, else the simulated GPU where a load is known, else none."""
    NVML = "nvml"
    SIMULATED = "simulated"
    NONE = "none"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CanarySettings(_Frozen):
    """Galen's own request to a service."""

    enabled: bool = Field(default=True, description="whether to ask")
    prompt: str = Field(
        "hello",
        min_length=1,
        max_length=4096,
        description="the golden prompt, asked at temperature 0",
    )
    expected: str | None = Field(
        None, max_length=65536, description="the answer of a healthy model; null compares nothing"
    )
    max_tokens: int = Field(8, ge=1, le=256, description="length of the answer in tokens")
    model: str | None = Field(
        None, max_length=256, description="the model to ask; null leaves it out"
    )
    every_seconds: float = Field(2.0, ge=0.5, le=3600, description="time between two questions")
    deadline_seconds: float = Field(
        1.5, gt=0, le=60, description="a later answer counts as none; keep it below every_seconds"
    )


class ServiceTarget(_Frozen):
    """One inference service to watch."""

    name: Name = Field(description="the service's name; its entity is service/<name>")
    url: Url = Field(description="where it listens, such as http://127.0.0.1:8000")
    deadline_seconds: float = Field(
        0.6, gt=0, le=30, description="the longest that a scrape may take"
    )
    window_seconds: float = Field(
        10.0, ge=2, le=600, description="sliding window of ratios and latency quantiles"
    )
    wide_window_seconds: float = Field(
        60.0, ge=2, le=3600, description="window used when the first holds too few requests"
    )
    minimum_events: int = Field(
        5, ge=1, le=10_000, description="requests that a ratio or a quantile needs"
    )
    canary: CanarySettings = Field(CanarySettings(), description="the golden prompt from outside")


class ReadingSettings(_Frozen):
    """How the scrapes of a target are read."""

    kind: str = Field(
        "auto",
        max_length=32,
        description="dcgm, node, vllm, triton, tgi, kserve, galen, ... or auto: what its metrics say",
    )
    window_seconds: float = Field(
        60.0, ge=1, le=3600, description="sliding window of ratios and quantiles"
    )
    minimum_events: int = Field(
        5, ge=1, le=10_000, description="requests that a ratio or a quantile needs"
    )
    hold_seconds: float = Field(
        60.0, ge=1, le=3600, description="how long an event stands that the target repeats for ever"
    )
    max_series: int = Field(
        50_000, ge=1, le=1_000_000, description="a scrape with more series is refused"
    )
    max_series_per_name: int = Field(
        10_000, ge=1, le=1_000_000, description="more series of one name are left out"
    )
    max_entities: int = Field(
        2_000, ge=1, le=100_000, description="hosts, GPUs, replicas... that one target may name"
    )

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind != "auto" and kind not in presets():
            raise ValueError(f"{kind!r} is none of auto, {', '.join(presets())}")
        return kind


class ScrapeJobSettings(ReadingSettings, HttpAccess):
    """Targets that are scraped alike, each an exporter or a server of its own."""

    name: Name = Field("targets", description="the job's name, a label of all its targets")
    targets: tuple[str, ...] = Field(
        (),
        max_length=10_000,
        description="host, host:port or whole URLs; a kind's usual port and path where left out",
    )
    files: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="files of targets as of Prometheus' file_sd, JSON or YAML; * stands for any name",
    )
    labels: dict[LabelName, str] = Field(
        default_factory=dict,
        description="what is known of all these targets, such as node, pod, service or replica",
    )
    interval_seconds: float = Field(15.0, ge=1, le=3600, description="time between two scrapes")
    deadline_seconds: float = Field(
        10.0, gt=0, le=600, description="the longest for one scrape; at most the interval"
    )
    max_megabytes: float = Field(
        8.0, gt=0, le=1024, description="the longest answer, after decompression"
    )

    @field_validator("targets")
    @classmethod
    def _addresses(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for address in targets:
            target_of("any", address)  # says what is wrong with it
        return targets

    @model_validator(mode="after")
    def _deadline_within_interval(self) -> Self:
        if self.deadline_seconds > self.interval_seconds:
            raise ValueError(
                f"deadline_seconds ({self.deadline_seconds:g}) must not be longer than "
                f"interval_seconds ({self.interval_seconds:g})"
            )
        return self


class PrometheusTarget(HttpAccess):
    """One Prometheus to read a fleet from."""

    name: Name = Field(description="a short name; the collector is prometheus-<name>")
    url: Url = Field(
        description="its base address, such as http://prometheus:9090; with the path prefix where "
        "there is one, such as http://mimir/prometheus"
    )
    every_seconds: float = Field(15.0, ge=1, le=3600, description="time between two collections")
    deadline_seconds: float = Field(5.0, gt=0, le=60, description="the longest that one may take")
    max_age_seconds: float = Field(60.0, ge=1, le=3600, description="older samples are left out")
    longest_backoff_seconds: float = Field(
        60.0, ge=1, le=3600, description="the longest pause between attempts while it fails"
    )
    queries: dict[str, str] = Field(
        default_factory=dict,
        description="PromQL by canonical signal; empty asks for all that the catalogue knows",
    )

    @field_validator("url")
    @classmethod
    def _is_a_base(cls, url: str) -> str:
        if "?" in url or "#" in url:
            raise ValueError("this must be a base address, without a query or a fragment")
        return url


class PushSettings(HttpAccess):
    """What `galen agent` sends from this machine, by Prometheus remote write."""

    url: Url | None = Field(
        None, description="where to send, such as http://prometheus:9090/api/v1/write"
    )
    interval_seconds: float = Field(15.0, ge=1, le=3600, description="time between two polls")
    deadline_seconds: float = Field(30.0, gt=0, le=300, description="the longest for one request")
    batch_samples: int = Field(
        2000, ge=1, le=100_000, description="samples in one request; a whole poll is never split"
    )
    shortest_backoff_seconds: float = Field(
        0.5, gt=0, le=60, description="wait after the first failure; it doubles with each more"
    )
    longest_backoff_seconds: float = Field(30.0, gt=0, le=3600, description="the longest wait")
    spool_megabytes: float = Field(
        256.0, gt=0, le=65_536, description="the buffer on disk; when full the oldest is dropped"
    )
    labels: dict[LabelName, str] = Field(
        default_factory=dict, description="labels to add to every series, such as cluster"
    )


class XidOverride(_Frozen):
    """What an XID means in this fleet; what is left out stays as the catalogue says."""

    severity: Severity | None = Field(None, description="info, warning, critical or fatal")
    action: RecommendedAction | None = Field(
        None,
        description="ignore, check_app, restart_app, reset_gpu, reboot_node or contact_support",
    )
    note: str | None = Field(None, max_length=300, description="what a person should know")


class XidSettings(_Frozen):
    """Where XIDs come from and what they mean."""

    source: str = Field(
        "auto",
        pattern=r"^(auto|kmsg|journal|none|/.+)$",
        max_length=1024,
        description="auto, kmsg, journal, the path of a log file, or none for NVML's events alone",
    )
    kernel_only: bool = Field(
        default=True,
        description="leave out what programs wrote into the kernel's log; false lets drills write there",
    )
    merge_seconds: float = Field(
        10.0, ge=0, le=3600, description="reports of one code closer than this are one event"
    )
    hold_seconds: float = Field(
        30.0, ge=1, le=3600, description="how long a code stands after its last report"
    )
    advice_seconds: float = Field(
        600.0, ge=1, le=7 * 86400, description="how long the catalogue's advice stands"
    )
    overrides: dict[Annotated[int, Field(ge=1, le=1_000_000)], XidOverride] = Field(
        default_factory=dict,
        description='by code, such as { 94 = { action = "reset_gpu" } }; a code that is here '
        "follows no burst rule",
    )


_Named = ServiceTarget | PrometheusTarget | ScrapeJobSettings


class CollectorsSettings(_Frozen):
    """What to collect, how often, and how long to keep it."""

    budget_seconds: float = Field(
        0.8,
        gt=0,
        le=30,
        description="the longest that a poll of `galen agent` waits for collectors",
    )
    retention_hours: float = Field(72.0, gt=0, le=24 * 366, description="age at which samples go")
    rollup_minute_retention_days: float = Field(
        30.0,
        gt=0,
        le=10 * 366,
        description="age at which roll-ups of a minute go; never before the samples",
    )
    rollup_hour_retention_days: float = Field(
        366.0,
        gt=0,
        le=100 * 366,
        description="age at which roll-ups of an hour go; never before the samples",
    )
    most_series_per_source: int = Field(
        20_000,
        ge=1,
        le=10_000_000,
        description="new series of a collector, or of a scraped target, are refused above this",
    )
    most_series: int = Field(
        200_000,
        ge=1,
        le=100_000_000,
        description="new series are refused above this, all sources together",
    )
    host_enabled: bool = Field(default=True, description="whether to watch this machine")
    host_name: Name | None = Field(
        None, description="its name; null is what the system calls itself"
    )
    host_deadline_seconds: float = Field(0.5, gt=0, le=30, description="the longest for the host")
    gpu_mode: GpuMode = Field(GpuMode.AUTO, description="auto, nvml, simulated or none")
    gpu_deadline_seconds: float = Field(
        0.7, gt=0, le=30, description="after this a silent driver counts as hanging"
    )
    xid: XidSettings = Field(XidSettings(), description="XIDs of real GPUs")
    services: tuple[ServiceTarget, ...] = Field((), max_length=64, description="services to watch")
    scrape: tuple[ScrapeJobSettings, ...] = Field(
        (),
        max_length=256,
        description="exporters and servers to scrape: jobs, or plain addresses such as http://gpu1:9400",
    )
    scrape_buffer_samples: int = Field(
        500_000,
        ge=1000,
        le=50_000_000,
        description="scraped samples that wait for a slow store; beyond it the oldest are dropped",
    )
    scrape_memory_megabytes: float = Field(
        256.0, ge=1, le=65_536, description="what all answers that are being read may hold together"
    )
    prometheus: tuple[PrometheusTarget, ...] = Field(
        (), max_length=64, description="Prometheus servers to read"
    )
    push: PushSettings = Field(PushSettings(), description="remote write by `galen agent`")
    exporter_host: str = Field("127.0.0.1", min_length=1, description="address of galen export")
    exporter_port: int = Field(9101, ge=0, le=65535, description="port of galen export; 0 is any")
    exporter_max_age_seconds: float = Field(
        15.0, ge=1, le=3600, description="older samples are not exported"
    )

    @field_validator("scrape", mode="before")
    @classmethod
    def _addresses_are_a_job(cls, jobs: object) -> object:
        """Make one job of the addresses that stand alone."""
        if not isinstance(jobs, list | tuple):
            return jobs
        alone = [job for job in jobs if isinstance(job, str)]
        others = [job for job in jobs if not isinstance(job, str)]
        return [{"targets": alone}, *others] if alone else others

    @field_validator("services", "prometheus", "scrape")
    @classmethod
    def _names_differ(cls, targets: tuple[_Named, ...]) -> tuple[_Named, ...]:
        names = [target.name for target in targets]
        if len(set(names)) < len(names):
            raise ValueError(f"names must differ, got {names}")
        return targets
