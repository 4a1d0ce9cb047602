import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from inference.engines.offline import InputError
from inference.engines.plans import (
    Gpu,
    PlanMetadata,
    ShapeRange,
    check_plan,
    current_gpu,
    find_plan,
    hash_file,
    installed_version,
    read_plan_metadata,
)


@pytest.fixture
def plan(tmp_path: Path, folder: Path) -> Path:
    path = tmp_path / "model.plan"
    path.write_bytes(b"a plan")
    metadata = PlanMetadata(
        engine="tensorrt_rtx",
        version="1.7.1",
        target="sm80",
        onnx_name="model.onnx",
        onnx_sha256=hash_file(folder / "model.onnx"),
        precision="float32",
        profile={"x": ShapeRange(min=(1, 0), opt=(4, 8), max=(8, 16))},
        plan_bytes=6,
        plan_sha256=hash_file(path),
        build_seconds=1.5,
        built_at=datetime(2026, 3, 1, tzinfo=UTC),
    )
    (tmp_path / "plan.json").write_text(metadata.model_dump_json())
    return path


def check(plan: Path, onnx: Path | None = None, version: str | None = "1.7.1", gpu="sm80"):
    return check_plan(
        plan, onnx, version_of=lambda module: version, find_gpu=lambda: Gpu(gpu, "no driver")
    )


def test_metadata_survives_the_file(plan):
    metadata = read_plan_metadata(plan)
    assert PlanMetadata.model_validate_json(metadata.model_dump_json()) == metadata
    assert metadata.profile["x"].max == (8, 16)


def test_what_fits_is_let_through(plan, folder):
    assert check(plan) == []
    assert check(plan, folder / "model.onnx") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "1.8.0"}, "built with tensorrt_rtx 1.7.1, but 1.8.0 is installed"),
        ({"version": None}, r"pip install 'galen\[rtx\]'"),
        ({"gpu": "sm86"}, "built for sm80, but this GPU is sm86"),
        ({"gpu": None}, "no GPU is usable here: no driver"),
    ],
)
def test_what_does_not_fit_here_is_refused_with_the_reason(plan, changes, words):
    [reason] = check(plan, **changes)
    assert re.search(words, reason)


def test_all_reasons_are_given_at_once(plan):
    assert len(check(plan, version="9", gpu="sm90")) == 2


def test_a_model_changed_since_is_refused(plan, repository):
    [reason] = check(plan, repository / "tiny-small" / "1" / "model.onnx")
    assert "was changed after the plan was built" in reason


def test_a_missing_model_is_a_reason(plan, tmp_path):
    [reason] = check(plan, tmp_path / "gone.onnx")
    assert "gone.onnx" in reason


@pytest.mark.parametrize(
    ("content", "words"), [(b"a pla", "it is damaged"), (b"another"[:6], "SHA-256 differs")]
)
def test_a_damaged_plan_is_refused(plan, content, words):
    plan.write_bytes(content)
    [reason] = check(plan)
    assert words in reason


def test_a_missing_plan_is_refused(plan):
    plan.unlink()
    [reason] = check(plan)
    assert "No such file" in reason


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', "[]", "\xff"])
def test_damaged_metadata_is_refused_with_the_place(plan, text):
    (plan.parent / "plan.json").write_bytes(text.encode("latin-1"))
    [reason] = check(plan)
    assert "plan.json" in reason


def test_without_metadata_nothing_is_known(plan):
    (plan.parent / "plan.json").unlink()
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_plan_metadata(plan)
    assert "galen engine build" in caught.value.fix


def test_a_plan_is_found_by_its_file_its_metadata_or_their_folder(plan):
    assert find_plan(plan) == find_plan(plan.parent) == find_plan(plan.parent / "plan.json") == plan


def test_the_version_of_a_module_that_is_not_there_is_none():
    assert installed_version("no_such_module") is None
    assert installed_version("numpy")


def fake_cuda(status: int) -> SimpleNamespace:
    return SimpleNamespace(
        cudaDeviceAttr=SimpleNamespace(
            cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=6
        ),
        cudaGetDevice=lambda: (status, 0),
        cudaDeviceGetAttribute=lambda attribute, device: (0, attribute),
    )


def test_the_gpu_is_asked_through_cuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake_cuda(0))
    assert current_gpu() == Gpu("sm86")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake_cuda(35))
    assert current_gpu() == Gpu(None, "CUDA reports 35")
