"""A scrape configuration for Prometheus: Galen, its services, and the exporters that it understands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from galen.config import Settings
from galen.stack import service_url

GALEN_JOB = "galen"
SERVICE_JOB = "galen-inference"
# A label bomb of one target must not take the whole server down.
_SAMPLE_LIMIT = 50_000
_LABEL_LIMIT = 64
_LABEL_VALUE_LENGTH_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Exporter:
    """An exporter whose targets are listed in ``targets/<job>.yml``."""

    job: str
    example: str


EXPORTERS = (
    Exporter("dcgm-exporter", "gpu-host:9400"),
    Exporter("node-exporter", "gpu-host:9100"),
    Exporter("vllm", "gpu-host:8000"),
    Exporter("triton", "gpu-host:8002"),
    Exporter("tgi", "gpu-host:80"),
    Exporter("kserve", "gpu-host:8080"),
)


def job_names() -> list[str]:
    """Return the names of all scrape jobs."""
    return [GALEN_JOB, SERVICE_JOB, *(exporter.job for exporter in EXPORTERS)]


def scrape_configuration(settings: Settings) -> dict[str, Any]:
    """Return a configuration of Prometheus that scrapes everything, with the rules beside it."""
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["rules/*.yml"],
        "scrape_configs": list(_jobs(settings)),
    }


def _jobs(settings: Settings) -> Iterator[dict[str, Any]]:
    collectors = settings.collectors
    host = collectors.exporter_host
    if host.strip("0.:") == "":  # every interface
        host = "127.0.0.1"
    yield _job(GALEN_JOB, [f"{host}:{collectors.exporter_port}"])
    services = {urlsplit(target.url).netloc.rpartition("@")[2] for target in collectors.services}
    yield _job(SERVICE_JOB, sorted(services or {urlsplit(service_url(settings)).netloc}))
    for exporter in EXPORTERS:
        job = _job(exporter.job, None)
        job["file_sd_configs"] = [{"files": [f"targets/{exporter.job}.yml"]}]
        yield job


def _job(name: str, targets: list[str] | None) -> dict[str, Any]:
    job: dict[str, Any] = {
        "job_name": name,
        "sample_limit": _SAMPLE_LIMIT,
        "label_limit": _LABEL_LIMIT,
        "label_value_length_limit": _LABEL_VALUE_LENGTH_LIMIT,
    }
    return job if targets is None else job | {"static_configs": [{"targets": targets}]}
