import pytest

from inference.engines.inspection import OnnxInspection, PlanInspection, inspect_file
from inference.engines.offline import BuildError, InputError
from inference.engines.plans import PlanMetadata

METADATA = PlanMetadata.model_validate(
    {
        "engine": "tensorrt_rtx", "version": "1.7.1", "target": "sm80", "onnx_name": "m.onnx",
        "onnx_sha256": "0" * 64, "precision": "float32", "profile": {}, "plan_bytes": 4,
        "plan_sha256": "0" * 64, "build_seconds": 1.0, "built_at": "2026-03-01T00:00:00Z",
    }
)  # fmt: skip


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "plan.json").write_text(METADATA.model_dump_json())
    (tmp_path / "model.plan").write_bytes(b"plan")
    return tmp_path / "model.plan"


def never(*_args, **_kwargs):
    raise AssertionError("a plan that was refused must not be loaded")


def test_a_model(folder):
    found = inspect_file(folder / "model.onnx")
    assert isinstance(found, OnnxInspection)
    assert found.file_bytes == (folder / "model.onnx").stat().st_size
    assert found.model.precision == "float32"
    assert OnnxInspection.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("name", ["model.plan", "plan.json", ""])
def test_a_plan_that_is_refused_shows_its_metadata_and_why(plan, name):
    found = inspect_file(plan.parent / name, check=lambda path: ["wrong GPU"], run=never)
    assert isinstance(found, PlanInspection)
    assert found.metadata == METADATA
    assert found.not_loadable == ("wrong GPU",)
    assert found.content is None


def test_a_plan_that_fits_shows_its_layers(plan):
    content = {
        "bindings": [{"name": "x", "mode": "input", "dtype": "float", "shape": [-1, 4]}],
        "layers": ["mm"],
    }
    found = inspect_file(plan, check=lambda path: [], run=lambda *a, **k: content)
    assert found.content.layers == ("mm",)
    assert found.content.bindings[0].shape == (-1, 4)


def test_a_plan_that_tensorrt_refuses_says_its_reason(plan):
    def fail(*_args, **_kwargs):
        raise BuildError("cudaError 35")

    found = inspect_file(plan, check=lambda path: [], run=fail)
    assert found.not_loadable == ("cudaError 35",)
    assert found.content is None


def test_another_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither a model nor a plan"):
        inspect_file(tmp_path / "model.bin")
