"""The real TensorRT-RTX, which builds on a CPU and refuses to run there: `make setup-rtx`."""

import importlib.util
import os
from importlib import resources
from pathlib import Path

import pytest

from inference.engines.build import BuildRequest, build_plan
from inference.engines.child import BuildJob, run_child
from inference.engines.contract import EngineLoadError
from inference.engines.inspection import inspect_file
from inference.engines.offline import BuildError
from inference.engines.plans import check_plan, current_gpu, find_plan
from inference.engines.tensorrt import TensorRtRuntime

pytestmark = pytest.mark.integration
MODEL = Path(str(resources.files("inference.demo"))) / "repository" / "demo-lm" / "1" / "model.onnx"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A plan of the demonstration model for an A100."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail("GALEN_REQUIRE_SERVICES=1 and there is no tensorrt_rtx: make setup-rtx")
        pytest.skip("tensorrt_rtx is not installed: make setup-rtx")
    told: list[str] = []
    request = BuildRequest(MODEL, tmp_path_factory.mktemp("plans"), "tensorrt_rtx", "sm80")
    plan, metadata = build_plan(request, told.append)
    assert any("steps" in text for text in told)
    return plan, metadata


@pytest.fixture
def no_gpu():
    if current_gpu().target is not None:
        pytest.skip("this machine has a GPU; the test is about one that has none")


def test_the_demonstration_model_becomes_a_plan(built):
    plan, metadata = built
    assert metadata.plan_bytes > MODEL.stat().st_size
    assert (metadata.target, metadata.precision) == ("sm80", "float32")
    assert plan.parent.name == f"tensorrt_rtx-{metadata.version}"
    inputs = [one.name for one in metadata.bindings if one.mode == "input"]
    assert len(inputs) == 3 + 2 * 4
    assert metadata.bindings[-1].mode == "output"
    # At least six in each of four layers: the attention, and the feed-forward.
    assert metadata.network["matrix_multiply"] >= 4 * 6
    assert find_plan(plan.parent.parent) == plan


def test_without_a_gpu_the_check_has_one_reason_and_inspect_shows_what_was_noted(built, no_gpu):
    plan, metadata = built
    reasons = check_plan(plan, MODEL)
    assert len(reasons) == 1
    assert "no GPU is usable here" in reasons[0]
    found = inspect_file(plan.parent.parent)
    assert found.not_loadable == tuple(reasons)
    assert found.metadata == metadata


def test_without_a_gpu_the_real_library_says_why_it_loads_nothing(built, no_gpu):
    plan, _ = built
    runtime = TensorRtRuntime.from_installed("tensorrt_rtx")
    assert runtime.is_supported().supported
    with pytest.raises(EngineLoadError, match=r"cannot deserialize .*CUDA driver version"):
        runtime.load(plan.parent)


def test_the_real_library_names_what_is_wrong_with_a_damaged_plan(built, tmp_path):
    (tmp_path / "model.plan").write_bytes(built[0].read_bytes()[:100])
    with pytest.raises(EngineLoadError, match=r"cannot deserialize .*Error Code"):
        TensorRtRuntime.from_installed("tensorrt_rtx").load(tmp_path)


def test_a_damaged_model_cannot_be_parsed(built, tmp_path):
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(MODEL.read_bytes()[:20_000])
    job = BuildJob(
        module="tensorrt_rtx", onnx=garbage, out=tmp_path / "x", target="sm80", profile={}
    )
    with pytest.raises(BuildError, match="cannot parse"):
        run_child(job, lambda text: None, timeout_seconds=60)
