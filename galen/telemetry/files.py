"""Everything that goes to Prometheus and Grafana, as files: ``galen prometheus write``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from galen.config import Settings
from galen.telemetry.alerts import alert_groups
from galen.telemetry.dashboards import dashboards
from galen.telemetry.rules import rule_file
from galen.telemetry.scrape import EXPORTERS, job_names, scrape_configuration
from galen.telemetry.slo import slo_groups

_HEAD = "# Made by `galen prometheus write`; change the settings and make it again.\n"


def telemetry_files(settings: Settings) -> dict[str, str]:
    """Return every file's text by its path, below ``prometheus/`` and ``grafana/``."""
    files = {
        "prometheus/prometheus.yml": _yaml(scrape_configuration(settings)),
        "prometheus/rules/galen-slo.yml": _yaml(rule_file([*slo_groups(settings.objectives)])),
        "prometheus/rules/galen-alerts.yml": _yaml(rule_file([*alert_groups(job_names())])),
    }
    for exporter in EXPORTERS:
        files[f"prometheus/targets/{exporter.job}.yml.example"] = _yaml(
            [{"targets": [exporter.example]}]
        )
    for dashboard in dashboards(settings.objectives):
        files[f"grafana/{dashboard.uid}.json"] = _json(dashboard.document())
    return files


def write_telemetry_files(settings: Settings, folder: Path) -> list[Path]:
    """Write every file below a folder and return their paths; what is there is replaced.

    Raises:
        OSError: when one cannot be written.
    """
    written: list[Path] = []
    for name, text in telemetry_files(settings).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        written.append(path)
    return written


def _yaml(document: Any) -> str:
    text: str = yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)
    return _HEAD + text


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
