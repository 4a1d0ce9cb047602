"""The serving benchmarks work from end to end, on the service alone; nothing is said about speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving.contestants import CONTESTANTS, OURS, Place, chosen, peers
from benchmarks.serving.models import write_models

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def run(name, *options):
    command = [sys.executable, "-m", "benchmarks", name, "--", *options]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )


def test_the_throughput_benchmark_runs(tmp_path):
    done = run("serving_throughput", "--quick", "--models", "A", "--json", str(tmp_path / "r.json"))
    assert done.returncode == 0, done.stderr
    assert "| galen " in done.stdout
    result = json.loads((tmp_path / "r.json").read_text("utf-8"))["models"][0]
    (server,) = result["servers"]
    (load,) = server["rounds"]
    assert load["errors"] == 0
    assert load["requests"] > 0
    assert set(result["bare"]) == {"1", "32"}


def test_the_overload_benchmark_runs(tmp_path):
    done = run("overload", "--quick", "--model", "A", "--factors", "0.5", "--json",
               str(tmp_path / "r.json"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    (server,) = json.loads((tmp_path / "r.json").read_text("utf-8"))["servers"]
    (round_,) = server["rounds"]
    assert round_["peak"] > 0
    load = round_["loads"]["0.5"]
    assert load["answered"] > 0
    assert load["unanswered"] == 0


def test_an_unknown_name_is_wrong_usage():
    done = run("serving_throughput", "--quick", "--peers", "nobody")
    assert done.returncode == 2
    assert "no server 'nobody'" in done.stderr
    assert run("nothing").returncode == 2


def test_every_contestant_can_be_asked(tmp_path):
    """Bodies and answers of all servers, without installing any of them."""
    model = write_models(tmp_path / "models")["A"]
    for contestant in CONTESTANTS:
        body = json.loads(contestant.encode(model, model.row))
        flat = json.dumps(body)
        assert all(str(value) in flat for value in model.row)
        place = Place(Path("/usr/bin/python3"), 1234, tmp_path, 0.25)
        launch = contestant.launch(model, place)
        assert "1234" in json.dumps([*launch.command, *launch.environment.values()])
        pinned = [requirement for requirement in contestant.requirements if "==" in requirement]
        assert bool(pinned) is (contestant.name != OURS)
    assert [c.name for c in chosen([])] == [OURS]
    assert [c.name for c in chosen(peers())] == [OURS, *peers()]
