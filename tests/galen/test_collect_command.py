from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from collectors.signals import catalogue
from galen.cli import make_app

TEXT = """\
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{model_name="m"} 12345678
vllm:num_requests_waiting{model_name="m"} 3
vllm:kv_cache_usage_perc{model_name="m"} NaN
mine 1
"""


@pytest.fixture
def scrape(tmp_path: Path) -> Path:
    file = tmp_path / "metrics.txt"
    file.write_text(TEXT)
    return file


def test_people_see_whole_names_and_numbers(scrape: Path) -> None:
    result = CliRunner().invoke(make_app(), ["collect", str(scrape)], env={"COLUMNS": "40"})
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [
        "service/m",
        "llm_tokens_per_second",
        "12345678",
        "tokens",
        "since",
        "its",
        "start",
    ] in rows
    assert ["service/m", "llm_queue_depth", "3", "requests"] in rows
    told = result.stderr
    assert "2 samples of vllm" in told
    assert "not recognised: mine" in told
    assert "vllm:kv_cache_usage_perc: 1 values were blank" in told


def test_programs_get_one_document(scrape: Path) -> None:
    result = CliRunner().invoke(make_app(), ["collect", str(scrape), "--json"])
    found = json.loads(result.stdout)
    assert found["unrecognised"] == ["mine"]
    assert found["kinds"] == ["vllm"]
    assert {"signal", "entity", "value", "unit", "labels"} == set(found["samples"][0])
    assert found["seconds"] >= 0


def test_an_error_does_not_tell_the_secrets_of_a_url() -> None:
    result = CliRunner().invoke(
        make_app(), ["collect", "http://u:s3cret@127.0.0.1:9/m?token=s3cret"]
    )
    assert result.exit_code == 1
    assert "s3cret" not in f"{result.output}{result.exception}"


def test_signals_are_listed_by_layer() -> None:
    result = CliRunner().invoke(make_app(), ["signals", "--layer", "security", "--json"])
    listed = {one["signal"] for one in json.loads(result.stdout)["signals"]}
    assert listed == {one.name for one in catalogue().values() if one.layer == "security"}
    assert CliRunner().invoke(make_app(), ["signals", "--layer", "moon"]).exit_code != 0
    assert "gpu_temperature_celsius" in CliRunner().invoke(make_app(), ["signals"]).stdout
