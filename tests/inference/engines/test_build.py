"""The build, with a child process that is real and a TensorRT that is not."""

import sys
from datetime import UTC, datetime
from functools import partial

import pytest

from inference.engines.build import BuildRequest, build_plan, choose_engine, parse_targets
from inference.engines.child import BuildJob, InspectJob, run_child
from inference.engines.offline import BuildError, InputError
from inference.engines.plans import Gpu, check_plan, read_plan_metadata

# A module with the part of TensorRT's interface that the child uses; MODE says how it fails.
FAKE = """
import ctypes, os, signal, time
from enum import Enum
from types import SimpleNamespace as N
MODE = os.environ["FAKE_TENSORRT"]
if MODE == "no-libraries":
    raise OSError("libnvinfer.so.11: cannot open shared object file")
__version__ = "1.7.1"
class NetworkDefinitionCreationFlag(Enum):
    STRONGLY_TYPED = 3
    def __int__(self): return self.value
class ComputeCapability(Enum):
    SM80 = 80
    SM120 = 120
    CURRENT = 0
class LayerInformationFormat(Enum):
    JSON = 1
class ILogger:
    WARNING, ERROR, INTERNAL_ERROR = 2, 1, 0
    def __init__(self): pass
class IProgressMonitor:
    def __init__(self): pass
class Config:
    num_compute_capabilities = 0
    def set_compute_capability(self, capability, index): return MODE != "refused-target"
    def add_optimization_profile(self, profile): return -1 if MODE == "refused-profile" else 0
class Builder:
    def __init__(self, logger): self.logger = logger
    def create_network(self, flags):
        assert flags == 8
        names = ["input_ids", "past_key_values.0.key"]
        kind = N(name="FLOAT")
        tensors = [
            N(name=n, is_shape_tensor=MODE == "shape-tensor", dtype=kind, shape=(-1, 4))
            for n in names
        ]
        outputs = [N(name="logits", dtype=kind, shape=(-1, 4))]
        layers = [N(type=N(name=n)) for n in ("MATRIX_MULTIPLY", "SOFTMAX", "MATRIX_MULTIPLY")]
        return N(num_inputs=2, get_input=tensors.__getitem__, num_outputs=1,
                 get_output=outputs.__getitem__, num_layers=3, get_layer=layers.__getitem__)
    def create_builder_config(self): return Config()
    def create_optimization_profile(self):
        self.profile = {}
        return N(set_shape=lambda name, *shapes: self.profile.__setitem__(name, shapes))
    def build_serialized_network(self, network, config):
        print("noise on standard output", flush=True)
        if MODE == "crash":
            self.logger.log(2, "about to fall")
            os.kill(os.getpid(), signal.SIGSEGV)
        if MODE == "hang": time.sleep(600)
        if MODE == "exit": os._exit(7)
        if MODE == "nothing":
            self.logger.log(1, "no implementation for node 3")
            return None
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 6)
        monitor.phase_start("Optimizing", "Building", 3)
        monitor.phase_start("Detail", "Optimizing", 9)
        assert monitor.step_complete("Detail", 0)
        monitor.phase_finish("Detail")
        return repr(sorted(self.profile.items())).encode()
class OnnxParser:
    num_errors = 1
    def __init__(self, network, logger): pass
    def parse_from_file(self, path): return MODE != "parse"
    def get_error(self, index):
        return N(desc=lambda: "unsupported operator Foo", node_name=lambda: "n7")
class Runtime:
    def __init__(self, logger): self.logger = logger
    def deserialize_cuda_engine(self, plan):
        if MODE == "nothing":
            self.logger.log(1, "cudaError 35")
            return None
        layers = {"Layers": ["mm", {"Name": "softmax"}]}
        inspector = N(get_engine_information=lambda kind: __import__("json").dumps(layers))
        return N(
            num_io_tensors=1, get_tensor_name=lambda i: "x", get_tensor_mode=lambda n: N(name="INPUT"),
            get_tensor_dtype=lambda n: N(name="FLOAT"), get_tensor_shape=lambda n: (-1, 4),
            create_engine_inspector=lambda: inspector,
        )
"""


@pytest.fixture
def fake(tmp_path):
    """Return a function that makes a `run_child` with a fake TensorRT of one mode."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "tensorrt_rtx.py").write_text(FAKE)

    def make(mode: str):
        code = (
            f"import os, sys; os.environ['FAKE_TENSORRT'] = {mode!r}; "
            f"sys.path.insert(0, {str(modules)!r}); "
            "from inference.engines.build_child import main; sys.exit(main())"
        )
        return partial(run_child, command=[sys.executable, "-c", code])

    return make


@pytest.fixture
def request_(folder, tmp_path):
    return BuildRequest(folder / "model.onnx", tmp_path / "out", "tensorrt_rtx", "sm80")


def test_a_plan_and_its_metadata_are_written_and_let_through(fake, request_):
    told: list[str] = []
    now = datetime(2026, 3, 1, tzinfo=UTC)
    plan, metadata = build_plan(request_, told.append, run=fake("works"), now=lambda: now)
    assert plan == request_.out_dir / "sm80" / "tensorrt_rtx-1.7.1" / "model.plan"
    assert [(one.name, one.mode) for one in metadata.bindings][1:] == [
        ("past_key_values.0.key", "input"),
        ("logits", "output"),
    ]
    assert metadata.network == {"matrix_multiply": 2, "softmax": 1}
    assert told == ["parsing model.onnx", "Building (6 steps)", "Optimizing (3 steps)"]
    assert b"input_ids" in plan.read_bytes()
    assert read_plan_metadata(plan) == metadata
    assert (metadata.version, metadata.target, metadata.built_at) == ("1.7.1", "sm80", now)
    assert metadata.precision == "float32"
    assert metadata.profile["input_ids"].max == (32, 256)
    reasons = check_plan(
        plan, request_.onnx_path, version_of=lambda _: "1.7.1", find_gpu=lambda: Gpu("sm80")
    )
    assert reasons == []
    assert sorted(path.name for path in request_.out_dir.iterdir()) == ["sm80"]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("parse", r"cannot parse .*unsupported operator Foo \(node n7\)"),
        ("nothing", "built nothing: no implementation for node 3"),
        ("crash", r"signal 11 \(SIGSEGV\); its last words: .*about to fall"),
        ("exit", "ended without a result, with status 7"),
        ("refused-profile", "refused the optimization profile"),
        ("refused-target", "refused the target sm80"),
        ("shape-tensor", "decides shapes by its values"),
        ("no-libraries", "cannot be imported: libnvinfer"),
    ],
)
def test_a_failed_build_says_why_and_leaves_nothing(fake, request_, mode, words):
    with pytest.raises(BuildError, match=f"(?s){words}"):
        build_plan(request_, lambda text: None, run=fake(mode))
    assert list(request_.out_dir.iterdir()) == []


def test_a_failed_build_leaves_the_old_plan(fake, request_):
    plan, _ = build_plan(request_, lambda text: None, run=fake("works"))
    before = plan.read_bytes(), read_plan_metadata(plan)
    with pytest.raises(BuildError):
        build_plan(request_, lambda text: None, run=fake("crash"))
    assert (plan.read_bytes(), read_plan_metadata(plan)) == before


def test_a_build_that_hangs_is_ended(fake, request_):
    hurried = BuildRequest(
        request_.onnx_path, request_.out_dir, "tensorrt_rtx", "sm80", timeout_seconds=2.0
    )
    with pytest.raises(BuildError, match="not done after 2 s") as caught:
        build_plan(hurried, lambda text: None, run=fake("hang"))
    assert "--timeout" in caught.value.fix


def test_a_target_that_the_module_does_not_know_names_those_it_does(fake, request_):
    wanted = BuildRequest(request_.onnx_path, request_.out_dir, "tensorrt_rtx", "sm90")
    with pytest.raises(BuildError, match="cannot build for sm90") as caught:
        build_plan(wanted, lambda text: None, run=fake("works"))
    assert "sm80, sm120" in caught.value.fix


def test_a_plan_is_described_in_the_child(fake, tmp_path):
    job = InspectJob(module="tensorrt_rtx", plan=tmp_path / "model.plan")
    job.plan.write_bytes(b"plan")
    found = fake("works")(job, lambda text: None, timeout_seconds=60)
    assert found["layers"] == ["mm", "softmax"]
    assert found["bindings"] == [
        {"name": "x", "mode": "input", "dtype": "float", "shape": [-1, 4]}
    ]  # fmt: skip
    with pytest.raises(BuildError, match="cudaError 35"):
        fake("nothing")(job, lambda text: None, timeout_seconds=60)


@pytest.mark.parametrize(
    "code", ["print('hello')", "print('{}')", "import json; print(json.dumps({'event': 'x'}))"]
)
def test_a_child_that_says_something_else_is_not_believed(tmp_path, code):
    job = BuildJob(
        module="tensorrt_rtx", onnx=tmp_path, out=tmp_path / "o", target="sm80", profile={}
    )
    with pytest.raises(BuildError, match="the child process said"):
        run_child(
            job,
            lambda text: None,
            timeout_seconds=60,
            command=[sys.executable, "-c", f"import sys; sys.stdin.read(); {code}"],
        )


def test_the_engine_is_the_wanted_one_or_the_first_that_is_installed():
    assert choose_engine(None, lambda name: True) == "tensorrt"
    assert choose_engine(None, lambda name: name == "tensorrt_rtx") == "tensorrt_rtx"
    assert choose_engine("tensorrt_rtx", lambda name: True) == "tensorrt_rtx"
    with pytest.raises(InputError) as caught:
        choose_engine("tensorrt", lambda name: name == "tensorrt_rtx")
    assert caught.value.fix == "pip install 'galen[tensorrt]'"
    with pytest.raises(InputError, match="neither") as caught:
        choose_engine(None, lambda name: False)
    assert "pip install 'galen[rtx]'" in caught.value.fix
    assert "pip install 'galen[tensorrt]'" in caught.value.fix


def test_targets():
    assert parse_targets("sm80, SM86,sm80") == ["sm80", "sm86"]
    assert parse_targets("current") == ["current"]
    for text in ("80", "sm80x", "../sm80", "sm", ""):
        with pytest.raises(InputError, match="--target"):
            parse_targets(text)
