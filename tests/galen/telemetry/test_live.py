"""The generated files in a real Prometheus that scrapes a real exporter, read back by the commands."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from analysis.detection.contract import Detections
from analysis.findings import Hypothesis, Incident, IncidentState, Severity, Verdict
from analysis.journal import Journal
from collectors.contract import Sample
from collectors.exporter import make_exporter_server
from collectors.settings import CollectorsSettings
from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore
from galen.cli import make_app
from galen.config import Settings
from galen.paths import StatePaths
from galen.telemetry.files import write_telemetry_files
from galen.telemetry.metrics import GalenMetrics
from galen.telemetry.status import StatusBoard

READY_SECONDS = 60.0
GPU = "host/box/gpu/0"

pytestmark = pytest.mark.integration


def eventually(check: Callable[[], Any]) -> Any:
    waiter = threading.Event()
    for _ in range(int(READY_SECONDS / 0.2)):
        if result := check():
            return result
        waiter.wait(0.2)
    raise AssertionError(f"not within {READY_SECONDS:g} s")


class Watcher:
    """Writes what a watch loop would, until it is told to stop."""

    def __init__(self, paths: StatePaths) -> None:
        self._store = SqliteSeriesStore(paths.series)
        self._board = StatusBoard(paths.status, started_seconds=time.time(), interval_seconds=1.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            now = time.time()
            samples = [
                Sample(now, GPU, "gpu_utilization_percent", 42.0),
                Sample(now, GPU, "gpu_available", 1.0),
            ]
            self._store.write(samples)
            self._board.write(now, 0.01, samples, Detections(now, (), {}))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._store.close()


def _incident() -> Incident:
    now = time.time()
    hang = Hypothesis(
        rank=1, cause="engine_hang", title="t", entity="service/llm", confidence=0.9, log_odds=2.0
    )
    return Incident(
        id="inc-1", state=IncidentState.OPEN, severity=Severity.CRITICAL, verdict=Verdict.FAULT,
        title="t", entity="service/llm", onset_seconds=now, opened_seconds=now,
        updated_seconds=now, hypotheses=(hang,),
    )  # fmt: skip


def _quicken(folder: Path) -> None:
    """Let everything happen once a second, and not when a person would be patient enough."""
    path = folder / "prometheus" / "prometheus.yml"
    config = yaml.safe_load(path.read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout"), "500ms")
    path.write_text(yaml.safe_dump(config))
    for rules in (folder / "prometheus" / "rules").glob("*.yml"):
        document = yaml.safe_load(rules.read_text())
        for group in document["groups"]:
            group["interval"] = "1s"
        rules.write_text(yaml.safe_dump(document))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    binary = shutil.which("prometheus")
    if binary is None:
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail("GALEN_REQUIRE_SERVICES=1 and there is no prometheus on the PATH")
        pytest.skip("there is no prometheus on the PATH")
    folder = tmp_path_factory.mktemp("world")
    paths = StatePaths(folder / "state")
    paths.state_dir.mkdir()
    journal = Journal(paths.journal)
    journal.save_incident(_incident())
    watcher = Watcher(paths)
    own = GalenMetrics(paths)
    server = make_exporter_server(SqliteSeriesReader(paths.series), port=0, more=[own])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = Settings(collectors=CollectorsSettings(exporter_port=server.server_port))
    write_telemetry_files(settings, folder)
    _quicken(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [
            binary,
            f"--config.file={folder / 'prometheus' / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={url.removeprefix('http://')}",
            "--log.level=error",
        ]
    )
    yield SimpleNamespace(url=url, folder=folder, paths=paths)
    process.terminate()
    process.wait(timeout=30)
    watcher.close()
    server.shutdown()
    own.close()
    journal.close()


def _api(world: SimpleNamespace, path: str, **query: str) -> Any:
    try:
        address = f"{world.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=5) as answer:
            return json.load(answer)["data"]
    except OSError:
        return None


def _value(world: SimpleNamespace, promql: str) -> float | None:
    found = _api(world, "query", query=promql)
    return float(found["result"][0]["value"][1]) if found and found["result"] else None


def test_what_is_exported_arrives_and_every_rule_can_be_evaluated(world: SimpleNamespace) -> None:
    assert eventually(lambda: _value(world, 'gpu_utilization_percent{gpu_id="0"}')) == 42
    assert eventually(lambda: _value(world, "galen_watch_ticks_total > 3"))
    assert _value(world, 'galen_incidents_open{severity="critical",cause="engine_hang"}') == 1

    def evaluated() -> list[dict[str, Any]]:
        groups = (_api(world, "rules") or {"groups": []})["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return rules if rules and all(rule["health"] != "unknown" for rule in rules) else []

    rules = eventually(evaluated)
    assert len(rules) > 60
    assert [rule["lastError"] for rule in rules if rule["health"] != "ok"] == []


def test_an_open_incident_is_an_alert_and_a_watch_loop_that_works_is_none(
    world: SimpleNamespace,
) -> None:
    def alerts() -> dict[str, Any]:
        found = (_api(world, "alerts") or {"alerts": []})["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in found}

    calm = {"GalenNotWatching", "GalenAbsent", "GpuUnavailable", "GalenBlind"}

    def settled() -> dict[str, Any] | None:
        # Before the first scrape nobody scrapes Galen, and for a moment that is pending.
        found = alerts()
        return found if "GalenIncidentOpen" in found and not calm & set(found) else None

    found = eventually(settled)
    assert found["GalenIncidentOpen"]["labels"]["entity"] == "service/llm"
    assert found["GalenIncidentOpen"]["annotations"]["summary"].endswith("(90% sure)")


def test_the_commands_check_and_backfill(world: SimpleNamespace, tmp_path: Path) -> None:
    eventually(lambda: _value(world, "count_over_time(gpu_available[1m]) > 5"))

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(make_app("prometheus"), ["prometheus", *arguments])

    checked = run("check", world.url, "--json")
    assert checked.exit_code == 0, checked.output
    document = json.loads(checked.stdout)
    assert document["signals"]["gpu_utilization_percent"] == 1
    assert document["missing"] == []
    assert abs(document["clock_skew_seconds"]) < 2

    state = ("--state-dir", str(tmp_path), "--step", "1")
    filled = run("backfill", world.url, "--since", "30s", *state)
    assert filled.exit_code == 0, filled.output
    reader = SqliteSeriesReader(StatePaths(tmp_path).series)
    frame = reader.read(start_seconds=0, end_seconds=1e12, entities=[GPU])
    reader.close()
    assert set(frame["signal"]) == {"gpu_utilization_percent", "gpu_available"}
    assert (frame["time"] % 1 == 0).all()
    again = run("backfill", world.url, "--since", "20s", *state)
    assert again.exit_code == 0, again.output
    assert "went on where an earlier run" in again.output
    away = run("check", "http://127.0.0.1:9")
    assert away.exit_code == 1
    assert "cannot ask" in str(away.exception)
    assert "neither the name" in str(run("check", "nowhere").exception)
    assert "which one" in str(run("check").exception)
