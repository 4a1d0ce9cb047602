"""Generated rules, scrape configuration and dashboards: current, valid, and about what exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from collectors.exposition import parse_exposition
from collectors.signals import catalogue
from galen.config import Settings
from galen.telemetry.alerts import alert_groups
from galen.telemetry.files import telemetry_files, write_telemetry_files
from galen.telemetry.names import OWN_METRICS
from galen.telemetry.rules import Record
from galen.telemetry.scrape import EXPORTERS, job_names
from galen.telemetry.settings import (
    FIRST_TOKEN_BOUNDS,
    LATENCY_BOUNDS,
    ObjectiveSettings,
)
from galen.telemetry.slo import TIERS, slo_groups
from inference.metrics import RequestMetrics

ROOT = Path(__file__).parents[3]
OBJECTIVES = ObjectiveSettings()
FILES = telemetry_files(Settings())
AGENT = {
    "galen_agent_waiting_samples",
    "galen_agent_parked_samples",
    "galen_agent_dropped_samples_total",
}
# Words of PromQL that stand where a metric could.
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless"}
WORDS |= {"offset", "bool", "inf", "nan"}


def _promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    binary = shutil.which("promtool")
    if binary is None:
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail("GALEN_REQUIRE_SERVICES=1 and there is no promtool on the PATH")
        pytest.skip("there is no promtool on the PATH")
    return subprocess.run(
        [binary, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=100
    )


def _rules() -> Iterator[dict[str, Any]]:
    for name, text in FILES.items():
        if name.startswith("prometheus/rules/"):
            for group in yaml.safe_load(text)["groups"]:
                yield from group["rules"]


def _panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, text in FILES.items():
        if name.startswith("grafana/"):
            for panel in json.loads(text)["panels"]:
                yield name, panel


def _dashboard_expressions() -> Iterator[tuple[str, str]]:
    for name, panel in _panels():
        for target in panel.get("targets", ()):
            expr = target["expr"].replace("$__rate_interval", "1m")
            yield f"{name}: {panel['title']}", re.sub(r"\$\w+", ".*", expr)


def _metrics_of(expr: str) -> set[str]:
    """Return the names of metrics in an expression, which is known to be valid."""
    bare = re.sub(r'"[^"]*"', "", expr)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\boffset\s+\w+", " ", bare)
    names = re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?![\w:]*\s*\()", bare)
    return set(names) - WORDS


def test_the_files_in_deploy_are_what_the_generator_makes() -> None:
    for name, text in FILES.items():
        path = ROOT / "deploy" / name
        assert path.read_text("utf-8") == text, f"run `galen prometheus write deploy`: {name}"
    kept = {
        path.relative_to(ROOT / "deploy").as_posix()
        for folder in ("prometheus", "grafana")
        for path in (ROOT / "deploy" / folder).rglob("*")
        if path.is_file()
    }
    assert kept == set(FILES)


def test_promtool_takes_configuration_and_rules(tmp_path: Path) -> None:
    write_telemetry_files(Settings(), tmp_path)
    for exporter in EXPORTERS:
        example = tmp_path / "prometheus" / "targets" / f"{exporter.job}.yml.example"
        example.rename(example.with_suffix(""))
    found = _promtool("check", "config", tmp_path / "prometheus" / "prometheus.yml")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "WARNING" not in found.stdout
    assert "duplicate" not in found.stdout + found.stderr


def test_alerts_fire_when_they_should_and_only_then() -> None:
    found = _promtool("test", "rules", Path(__file__).with_name("alerts.tests.yml"))
    assert found.returncode == 0, found.stdout + found.stderr


def test_prometheus_parses_every_expression_of_the_dashboards(tmp_path: Path) -> None:
    expressions = list(_dashboard_expressions())
    assert len(expressions) > 60
    rules = [
        {"record": f"panel:expression:{place}", "expr": expr}
        for place, (_, expr) in enumerate(expressions)
    ]
    path = tmp_path / "dashboards.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    found = _promtool("check", "rules", path)
    assert found.returncode == 0, found.stdout + found.stderr


def _existing(facts_of_exporters: set[str]) -> set[str]:
    service = parse_exposition(RequestMetrics().render().decode())
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    return (
        set(catalogue())
        | set(OWN_METRICS)
        | AGENT
        | recorded
        | set(service.families)
        | facts_of_exporters
        | {"up"}
    )


def test_every_metric_that_rules_and_dashboards_name_exists() -> None:
    histograms = ("llm_request_latency_seconds", "llm_time_to_first_token_seconds",
                  "vllm:e2e_request_latency_seconds", "vllm:time_to_first_token_seconds")  # fmt: skip
    exporters = {f"{name}_{part}" for name in histograms for part in ("bucket", "count")}
    exporters |= {"tgi_request_count", "tgi_request_success", "llm_requests_total"}
    exporters |= {"nv_inference_request_success", "nv_inference_request_failure"}
    existing = _existing(exporters)
    expressions = [*_dashboard_expressions(), *((str(rule), rule["expr"]) for rule in _rules())]
    for place, expr in expressions:
        assert _metrics_of(expr) or expr.startswith("vector("), place
        assert _metrics_of(expr) <= existing, place
    assert _metrics_of('sum by (a) (rate(b{c="d"}[5m])) / on (e) f offset 1h') == {"b", "f"}


def test_choices_of_the_dashboards_name_what_exists() -> None:
    for name, text in FILES.items():
        if name.startswith("grafana/"):
            for variable in json.loads(text)["templating"]["list"]:
                if variable["type"] == "query":
                    metric = re.fullmatch(
                        r"label_values\((\w+)(?:\{.*\})?, \w+\)", variable["definition"]
                    )
                    assert metric is not None
                    assert metric[1] in catalogue()


def test_dashboards_are_whole() -> None:
    uids = [json.loads(text)["uid"] for name, text in FILES.items() if name.startswith("grafana/")]
    assert len(set(uids)) == len(uids) == 4
    for name, text in FILES.items():
        if not name.startswith("grafana/"):
            continue
        dashboard = json.loads(text)
        assert dashboard["schemaVersion"] >= 39
        panels = dashboard["panels"]
        ids = [panel["id"] for panel in panels]
        assert len(set(ids)) == len(ids)
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= 24
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken, f"{name}: {panel['title']} lies on another"
            taken |= cells
            if panel["type"] != "row":
                assert panel["datasource"]["uid"] == "${datasource}"
                assert panel["targets"], panel["title"]


def test_no_alert_asks_for_more_than_all_requests_failing() -> None:
    for objective in (0.9, 0.95, 0.999, 0.99999):
        for tier in TIERS:
            assert tier.burn(30, objective) * (1 - objective) < 1
    assert [tier.burn(30, 0.999) for tier in TIERS] == pytest.approx([14.4, 6, 3, 1])


def test_thresholds_are_bounds_of_the_histograms(expositions: Path) -> None:
    with pytest.raises(ValidationError, match="must be one of"):
        ObjectiveSettings(latency_seconds=3.3)
    service = RequestMetrics()
    service.finished("demo", "chat", 200, 0.1)
    vllm = parse_exposition((expositions / "vllm_v1_qwen2.5-0.5b_kops.txt").read_text("utf-8"))
    ours = parse_exposition(service.render().decode())
    for scrape, name, bounds in (
        (ours, "llm_request_latency_seconds", (*LATENCY_BOUNDS, *FIRST_TOKEN_BOUNDS)),
        (vllm, "vllm:e2e_request_latency_seconds", LATENCY_BOUNDS),
        (vllm, "vllm:time_to_first_token_seconds", FIRST_TOKEN_BOUNDS),
    ):
        known = {float(sample.labels["le"]) for sample in scrape.named(f"{name}_bucket")}
        assert set(bounds) <= known, name


def test_rules_follow_the_settings() -> None:
    settings = ObjectiveSettings(availability_ratio=0.99, latency_seconds=1.0, window_days=28)
    records = [
        rule for group in slo_groups(settings) for rule in group.rules if isinstance(rule, Record)
    ]
    assert any(rule.name == "slo:sli_error:ratio_rate28d" for rule in records)
    assert any('le=~"1([.]0)?"' in rule.expr for rule in records)
    assert any(rule.expr == "vector(0.99)" for rule in records)
    assert len({rule.name for group in alert_groups(job_names()) for rule in group.rules}) > 20


def test_vmalert_takes_the_rules_too() -> None:
    binary = shutil.which("vmalert")
    if binary is None:
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail("GALEN_REQUIRE_SERVICES=1 and there is no vmalert on the PATH")
        pytest.skip("there is no vmalert on the PATH")
    found = subprocess.run(
        [binary, "-dryRun", f"-rule={ROOT / 'deploy' / 'prometheus' / 'rules'}/*.yml"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
