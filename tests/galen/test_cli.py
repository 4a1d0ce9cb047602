from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from galen.cli import FAMILIES, main, make_app
from galen.commands.context import parse_moment
from galen.errors import ConfigError

COMMANDS = (
    "up", "serve", "watch", "dashboard", "export", "doctor", "detect", "diagnose", "drill", "report",
    "incidents", "actions", "engine", "collect", "signals", "backtest", "agent", "store", "config",
    "prometheus",
)  # fmt: skip


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["galen", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_useful_help(command: str) -> None:
    result = CliRunner().invoke(make_app(), [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output) > 200


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_alone_is_what_it_is_among_all(command: str) -> None:
    assert [name for commands in FAMILIES.values() for name in commands].count(command) == 1
    alone = CliRunner().invoke(make_app(command), [command, "--help"])
    assert alone.output == CliRunner().invoke(make_app(), [command, "--help"]).output


def test_the_families_name_every_command() -> None:
    listed = CliRunner().invoke(make_app(), ["--help"]).output
    assert all(command in listed for commands in FAMILIES.values() for command in commands)
    assert sorted(name for commands in FAMILIES.values() for name in commands) == sorted(COMMANDS)


def test_an_agent_imports_nothing_that_it_has_no_use_for() -> None:
    program = (
        "import sys; from galen.cli import make_app; make_app('agent'); import collectors.agent; "
        "print(*sorted({'pandas', 'numpy', 'pyarrow', 'sqlalchemy', 'requests', 'scipy', 'streamlit',"
        " 'onnxruntime', 'fastapi', 'plotly'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == ""


def test_an_unknown_command_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("no-such-command", monkeypatch=monkeypatch) == 2


def test_a_wrong_configuration_ends_in_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "galen.toml"
    config.write_text("[helaing]\nmode = 'auto'\n")
    assert run("incidents", "--config", str(config), monkeypatch=monkeypatch) == 2
    told = capsys.readouterr().err
    assert "unknown key; did you mean 'healing'?" in told.replace("\n", " ")
    assert "Traceback" not in told


def test_without_a_journal_the_fix_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("incidents", "--state-dir", str(tmp_path), monkeypatch=monkeypatch) == 1
    assert "galen up" in capsys.readouterr().err


def test_doctor_tells_what_it_looked_at(tmp_path: Path) -> None:
    result = CliRunner().invoke(make_app(), ["doctor", "--json", "--state-dir", str(tmp_path)])
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert {"python", "dependencies", "gpu", "tensorrt", "slack", "disk", "permissions"} <= set(
        checks
    )
    assert all(check["why"] for check in checks.values())
    assert all(check["fix"] for check in checks.values() if check["level"] != "ok")


def test_detect_scores_a_file(tmp_path: Path) -> None:
    file, out = tmp_path / "data.csv", tmp_path / "scores.csv"
    rows = [f"{second},{second % 7},{50 if second == 180 else second % 5}" for second in range(200)]
    file.write_text("timestamp,a,b\n" + "\n".join(rows) + "\n")
    arguments = ["detect", str(file), "--train-rows", "100", "--out", str(out)]
    assert CliRunner().invoke(make_app(), arguments).exit_code == 1
    scored = out.read_text().splitlines()
    assert scored[0] == "timestamp,score,is_anomaly,top_signal"
    assert len(scored) == 201
    assert scored[181].endswith(",b")
    assert float(scored[181].split(",")[1]) > 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 910.0),
        ("1.5h", 1000.0 - 5400),
        ("1700000000", 1_700_000_000.0),
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T00:01:00", 60.0),
    ],
)
def test_moments(text: str, seconds: float) -> None:
    assert parse_moment(text, name="--since", now=1000.0) == seconds


def test_a_wrong_moment_names_the_option() -> None:
    with pytest.raises(ConfigError, match="--since: 'yesterday'"):
        parse_moment("yesterday", name="--since")
