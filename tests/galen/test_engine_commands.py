from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import inference.demo
from galen.cli import main

MODEL = Path(inference.demo.__path__[0]) / "repository" / "demo-lm" / "1" / "model.onnx"


@pytest.fixture
def galen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the command line and returns its status and both outputs."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["galen", "engine", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, " ".join(err.split())

    return run


def test_inspect_shows_the_demonstration_model(galen) -> None:
    status, out, _ = galen("inspect", str(MODEL))
    assert status == 0
    assert "input_ids" in out
    assert "[batch, past_sequence + sequence]" in out
    assert "MatMul" in out
    assert "weights: float32" in out


def test_inspect_prints_json_on_standard_output_only(galen) -> None:
    status, out, _ = galen("inspect", str(MODEL), "--json")
    assert status == 0
    assert json.loads(out)["model"]["opsets"] == {"ai.onnx": 17}


def test_inspect_of_another_file_is_wrong_usage(galen, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("not a model")
    status, out, err = galen("inspect", str(path))
    assert (status, out) == (2, "")
    assert "is not an ONNX model" in err


def test_names_from_files_cannot_steer_the_terminal(galen, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL.read_bytes().replace(b"galen-demo", b"galen\x1b[2Jx"))
    status, out, _ = galen("inspect", str(path))
    assert status == 0
    assert "galen?[2Jx" in out
    assert "\x1b" not in out


def test_build_without_a_module_names_the_fix(galen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    status, out, err = galen("build", str(MODEL), "--target", "sm80")
    assert (status, out) == (2, "")
    assert "neither tensorrt nor tensorrt_rtx is installed" in err
    assert "pip install 'galen[rtx]'" in err
    assert "pip install 'galen[tensorrt]'" in err


def test_build_of_a_model_that_is_not_there_is_wrong_usage(galen, tmp_path: Path) -> None:
    status, _, err = galen("build", str(tmp_path / "none.onnx"), "--target", "sm80")
    assert status == 2
    assert "does not exist" in err


def test_bench_prints_a_row_for_each_batch_size(galen) -> None:
    status, out, err = galen(
        "bench", str(MODEL), "--batch", "1,2", "--seconds", "0.01", "--past", "4"
    )
    assert status == 0
    rows = [line.split() for line in out.splitlines() if line.startswith("original")]
    assert [row[1:4] for row in rows] == [["onnxruntime", "cpu", "1"], ["onnxruntime", "cpu", "2"]]
    assert "one decode step after 4 cached tokens" in out
    assert "loading" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--batch", "0"), "--batch"), (("--batch", "x"), "--batch"), (("--size", "a=x"), "--size")],
)
def test_bench_refuses_wrong_options(galen, arguments: tuple[str, ...], words: str) -> None:
    status, _, err = galen("bench", str(MODEL), *arguments)
    assert status == 2
    assert words in err
