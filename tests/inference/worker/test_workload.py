"""What is checked before a version is loaded, and by which kind."""

from pathlib import Path

import pytest

from inference.engines.contract import EngineLoadError
from inference.model import ModelFormatError, ModelKind, read_metadata
from inference.worker.workload import check_folder


def test_a_plan_is_refused_with_every_reason_before_tensorrt_is_asked(tmp_path: Path):
    (tmp_path / "model.plan").write_bytes(b"not a plan")

    with pytest.raises(EngineLoadError, match=r"model\.plan: .*plan\.json cannot be read"):
        check_folder(tmp_path, "tensorrt")


def test_onnx_needs_no_plan(tmp_path: Path):
    check_folder(tmp_path, "onnx")


def test_the_kind_is_a_decoder_unless_the_model_says_otherwise(folder: Path):
    assert read_metadata(folder).kind is ModelKind.DECODER


def test_an_unknown_kind_is_refused_by_name(folder: Path, tmp_path: Path):
    text = (folder / "model.toml").read_text(encoding="utf-8")
    (tmp_path / "model.toml").write_text(f'kind = "oracle"\n{text}', encoding="utf-8")

    with pytest.raises(ModelFormatError, match="oracle"):
        read_metadata(tmp_path)
