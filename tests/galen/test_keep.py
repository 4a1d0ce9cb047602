from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesStore
from galen.cli import make_app
from galen.errors import ConfigError, GalenError


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Logs are set up for the whole process, on a stream that ends with the call.
    monkeypatch.setattr("galen.commands.context.configure_logs", lambda _: None)
    now = time.time()
    store = SqliteSeriesStore(tmp_path / "var" / "series.sqlite")
    for age in range(200, 0, -1):
        load = 1.0 + age % 3 / 10
        store.write([Sample(now - 3600 * 30 - age, "host/a", "host_load", load)])
    store.write([Sample(now - 5, "host/a", "host_load", 1.0)])
    store.close()
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(make_app(), list(arguments))


def error_of(result: Result, kind: type[GalenError]) -> GalenError:
    assert isinstance(result.exception, kind), result.exception
    return result.exception


def test_info_prune_and_export_tell_the_same_story(state: Path) -> None:
    info = json.loads(run("store", "info", "--json").stdout)
    assert (info["series"], info["samples"], len(info["gaps"])) == (1, 201, 1)
    assert info["size_bytes"] > 0
    assert "samples  201" in run("store", "info").stdout
    assert run("store", "export", "--out", "all.parquet").exit_code == 0
    assert run("store", "prune", "--older-than", "24h").exit_code == 0
    assert json.loads(run("store", "info", "--json").stdout)["samples"] == 1
    assert run("store", "import", "all.parquet").exit_code == 0
    again = json.loads(run("store", "info", "--json").stdout)
    for name in ("path", "series", "samples", "first_seconds", "last_seconds", "gaps"):
        assert again[name] == info[name]
    nothing = run("store", "export", "--out", "none.csv", "--signal", "host_uptime")
    assert nothing.exit_code == 1


def test_writing_is_refused_while_another_process_writes(state: Path) -> None:
    assert run("store", "export", "--out", "all.csv").exit_code == 0
    held = SqliteSeriesStore(state / "var" / "series.sqlite")
    try:
        for arguments in (["import", "all.csv"], ["prune", "--older-than", "1h"]):
            error = error_of(run("store", *arguments), GalenError)
            assert error.exit_status == 1
            assert "another process already writes" in str(error)
            assert "Stop `galen watch`" in error.fix
        assert run("store", "info").exit_code == 0
    finally:
        held.close()


def test_wrong_usage_of_the_store_is_said(state: Path) -> None:
    assert error_of(run("store", "export", "--out", "x.xlsx"), ConfigError).exit_status == 2
    assert "--older-than" in str(
        error_of(run("store", "prune", "--older-than", "old"), ConfigError)
    )
    assert "past" in str(error_of(run("store", "prune", "--older-than", "inf"), ConfigError))
    Path("bad.csv").write_text("time,entity,value\n1,a,2\n")
    assert "'signal'" in str(error_of(run("store", "import", "bad.csv"), ConfigError))
    absent = error_of(run("store", "info", "--state-dir", "elsewhere"), GalenError)
    assert "no series store" in str(absent)
    error_of(run("store", "prune", "--older-than", "1h", "--state-dir", "elsewhere"), GalenError)
    assert not Path("elsewhere").exists()


def test_an_agent_needs_an_address_and_a_token_that_can_be_read(state: Path) -> None:
    assert "--push" in error_of(run("agent"), ConfigError).fix
    assert "address" in str(error_of(run("agent", "--push", "prometheus:9090"), ConfigError))
    Path("token").write_text("two\nlines\n")
    for file, wrong in (("token", "holds no secret"), ("absent", "cannot be read")):
        result = run("agent", "--push", "http://127.0.0.1:1/", "--token-file", file)
        error = error_of(result, ConfigError)
        assert wrong in str(error)
        assert "two" not in str(error)


def test_compact_and_vacuum_change_no_answer_and_info_names_the_parts(state: Path) -> None:
    before = json.loads(run("store", "info", "--json").stdout)
    assert [part["samples"] for part in before["parts"]] == [201, 0, 0]
    assert run("store", "compact").exit_code == 0
    assert run("store", "vacuum").exit_code == 0
    after = json.loads(run("store", "info", "--json").stdout)
    for name in ("series", "samples", "first_seconds", "last_seconds", "gaps"):
        assert after[name] == before[name]
    newest, blocks, rollups = (part["samples"] for part in after["parts"])
    assert (newest + blocks, rollups) == (201, blocks)
    assert blocks >= 200
    assert after["retention"]["minutes_seconds"] == 30 * 86_400
    assert after["set_aside"] == after["refused"] == []
    text = run("store", "info").stdout
    assert "kept for 3 days" in text
    assert "bytes a sample" in text


def test_info_names_refused_series_and_damaged_rows(state: Path) -> None:
    run("store", "compact")
    store = SqliteSeriesStore(state / "var" / "series.sqlite")
    labels = {"signal": "llm_queue_depth", "exploding": "pod"}
    store.write([Sample(time.time(), "collector/x", "scrape_series_refused", 12.0, labels)])
    (start,) = store._connection.execute("SELECT start FROM blocks WHERE id = 1").fetchone()
    store._connection.execute("UPDATE blocks SET data = x'00' WHERE id = 1")
    store.write([Sample(start / 1000, "host/a", "host_load", 1.0)])
    store.compact(now_seconds=time.time(), budget_seconds=10.0)
    store.close()
    text = run("store", "info").stdout
    assert "refused  12 series of x, most of them llm_queue_depth; the names of pod explode" in text
    assert "damaged  host/a host_load" in text
    assert "the check sum differs" in text


@pytest.mark.parametrize("resolution", ["1m", "1h"])
def test_rollups_go_out_and_in(state: Path, resolution: str) -> None:
    out = f"rolled-{resolution}.parquet"
    result = run("store", "export", "--out", out, "--resolution", resolution)
    assert result.exit_code == 0
    assert run("store", "import", out, "--state-dir", "other").exit_code == 0
    again = run(
        "store", "export", "--out", "again.parquet", "--resolution", resolution,
        "--state-dir", "other",
    )  # fmt: skip
    assert again.exit_code == 0
    assert "--resolution" in str(
        error_of(run("store", "export", "--out", "x.csv", "--resolution", "5m"), ConfigError)
    )
