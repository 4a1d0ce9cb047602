from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from galen.cli import make_app
from galen.errors import ConfigError, GalenError


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    # Logs are set up for the whole process, on a stream that ends with the call.
    monkeypatch.setattr("galen.commands.context.configure_logs", lambda _: None)
    with capture_logs():
        yield tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(make_app(), list(arguments))


def error_of(result: Result, kind: type[GalenError]) -> GalenError:
    assert isinstance(result.exception, kind), result.exception
    return result.exception


def test_a_backtest_tells_alarms_and_controls_and_ends_as_it_found(state: Path) -> None:
    rows = [f"{1000 + at},service/llm,engine_up,{0 if 300 <= at < 330 else 1}" for at in range(400)]
    Path("long.csv").write_text("\n".join(["time,entity,signal,value", *rows]) + "\n")
    Path("right.csv").write_text("start,end\n1299,1331\n")
    Path("wrong.csv").write_text("start,end\n1200,1210\n")
    found = run("backtest", "--source", "long.csv", "--json")
    document = json.loads(found.stdout)
    assert found.exit_code == 1
    assert [alarm["signal"] for alarm in document["alarms"]] == ["engine_up"]
    assert [each["name"] for each in document["qualities"]] == ["galen", "random", "always"]
    right = run("backtest", "--source", "long.csv", "--labels", "right.csv", "--out", "new/r.html")
    assert right.exit_code == 0
    assert "1 of 1" in right.stdout
    assert "engine_up" in Path("new/r.html").read_text()
    assert run("backtest", "--source", "long.csv", "--labels", "wrong.csv").exit_code == 1
    for spelling in ("--until", "--to"):
        assert run("backtest", "--source", "long.csv", spelling, "1250").exit_code == 0
    for spelling in ("--since", "--from"):
        error_of(run("backtest", "--source", "long.csv", spelling, "5000"), ConfigError)
    error_of(run("backtest", "--source", "none.csv"), ConfigError)
    assert "--from" in str(
        error_of(run("backtest", "--source", "prometheus:http://h:1"), ConfigError)
    )
