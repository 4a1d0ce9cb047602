"""The child process that holds TensorRT; see `inference.engines.child` for what it is told.

Written against TensorRT 10.8 to 11 and ``tensorrt_rtx``, which has the same API.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import IO, Any

from inference.engines.child import JOBS, BuildJob, Done, Failed, InspectJob, Progress
from inference.engines.plans import EXTRAS, current_gpu, install_fix

_MAX_REASONS = 5


class JobError(Exception):
    """The job cannot be done; carries what the parent is told."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


def main() -> int:
    """Do the job on standard input; exit status 0 when it is done."""
    out = _take_stdout()

    def say(event: Progress | Done | Failed) -> None:
        out.write(event.model_dump_json() + "\n")
        out.flush()

    job = JOBS.validate_json(sys.stdin.buffer.read())
    try:
        module = _import(job.module)
        if isinstance(job, BuildJob):
            result = _build(module, job, lambda text: say(Progress(text=text)))
        else:
            result = _inspect(module, job)
    except JobError as error:
        say(Failed(reason=str(error), fix=error.fix))
        return 1
    say(Done(result=result))
    return 0


def _take_stdout() -> IO[str]:
    """Keep standard output for events; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        fix = next((install_fix(kind) for kind in EXTRAS if kind == name), "")
        raise JobError(f"{name} cannot be imported: {error}", fix) from error


def _build(trt: ModuleType, job: BuildJob, tell: Callable[[str], None]) -> dict[str, Any]:
    started = time.monotonic()
    target = _resolve_target(job.target)
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    # TensorRT 11 knows strongly typed networks only: precision is the model's. 10 has to be told.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    tell(f"parsing {job.onnx.name}")
    if not parser.parse_from_file(str(job.onnx)):
        # Read here, while the parser lives: an error that outlives it crashes the process.
        reasons = [_describe(parser.get_error(i)) for i in range(parser.num_errors)]
        raise JobError(f"{job.module} cannot parse {job.onnx}: {_join(reasons or logger.errors)}")
    config = builder.create_builder_config()
    _set_target(trt, config, target)
    _set_profile(builder, network, config, job)
    found = _describe_network(network)
    # Held until the build is over: TensorRT keeps no reference of its own.
    config.progress_monitor = monitor = _make_monitor(trt, tell)
    plan = builder.build_serialized_network(network, config)
    del monitor
    if plan is None:
        raise JobError(f"{job.module} built nothing: {_join(logger.errors)}")
    try:
        job.out.write_bytes(plan)
    except OSError as error:
        raise JobError(f"{job.out} cannot be written: {error.strerror}") from error
    seconds = time.monotonic() - started
    return {
        "version": str(trt.__version__),
        "target": target,
        "build_seconds": round(seconds, 3),
        **found,
    }


def _describe_network(network: Any) -> dict[str, Any]:
    """Note what only a GPU could tell later: a plan cannot be opened on the machine that built it."""
    tensors = [("input", network.get_input(i)) for i in range(network.num_inputs)]
    tensors += [("output", network.get_output(i)) for i in range(network.num_outputs)]
    bindings = [
        {
            "name": tensor.name,
            "mode": mode,
            "dtype": tensor.dtype.name.lower(),
            "shape": list(tensor.shape),
        }
        for mode, tensor in tensors
    ]
    kinds = Counter(network.get_layer(i).type.name.lower() for i in range(network.num_layers))
    return {"bindings": bindings, "network": dict(kinds.most_common())}


def _resolve_target(wanted: str) -> str:
    """Turn `current` into the compute capability that it means."""
    if wanted != "current":
        return wanted
    gpu = current_gpu()
    if gpu.target is None:
        raise JobError(f"there is no current GPU: {gpu.reason}", "Name a target: --target sm80")
    return gpu.target


def _set_target(trt: ModuleType, config: Any, target: str) -> None:
    """Tell the builder which GPU the plan is for."""
    gpu = current_gpu()
    if not hasattr(config, "set_compute_capability"):
        if gpu.target != target:
            raise JobError(
                f"{trt.__name__} builds for the GPU of this machine only, which is "
                f"{gpu.target or 'missing: ' + gpu.reason}",
                f"Build on a machine with an {target} GPU, or with --engine tensorrt_rtx.",
            )
        return
    capability = trt.ComputeCapability
    known = sorted(
        (name.lower() for name in capability.__members__ if name.startswith("SM")),
        key=lambda name: int(name[2:]),
    )
    name = target.upper() if target in known else "CURRENT"
    if name == "CURRENT" and gpu.target != target:
        raise JobError(
            f"{trt.__name__} {trt.__version__} cannot build for {target}",
            f"Targets: {', '.join(known)}; any other only on a machine that has such a GPU.",
        )
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(getattr(capability, name), 0):
        raise JobError(f"{trt.__name__} refused the target {target}")


def _set_profile(builder: Any, network: Any, config: Any, job: BuildJob) -> None:
    """Add the optimization profile; a model whose shapes are all fixed needs none."""
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if tensor.is_shape_tensor:
            raise JobError(
                f"the input {tensor.name} decides shapes by its values, which is not supported",
                "Make it a constant of the model before the export.",
            )
        if tensor.name in job.profile:
            profile.set_shape(tensor.name, *job.profile[tensor.name])
    if job.profile and config.add_optimization_profile(profile) < 0:
        raise JobError(f"{job.module} refused the optimization profile {job.profile}")


def _inspect(trt: ModuleType, job: InspectJob) -> dict[str, Any]:
    logger = _make_logger(trt)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(job.plan.read_bytes())
    if engine is None:
        raise JobError(f"{job.module} cannot deserialize it: {_join(logger.errors)}")
    bindings = []
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        bindings.append(
            {
                "name": name,
                "mode": engine.get_tensor_mode(name).name.lower(),
                "dtype": engine.get_tensor_dtype(name).name.lower(),
                "shape": list(engine.get_tensor_shape(name)),
            }
        )
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    names = [layer if isinstance(layer, str) else str(layer.get("Name", "")) for layer in layers]
    return {"bindings": bindings, "layers": names}


def _describe(error: Any) -> str:
    """Put one parser error into words."""
    node = error.node_name() if hasattr(error, "node_name") else ""
    return f"{error.desc()} (node {node})" if node else str(error.desc())


def _join(reasons: list[str]) -> str:
    """Join the first reasons; the later ones follow from them."""
    return "; ".join(dict.fromkeys(reasons[:_MAX_REASONS])) or "it gave no reason"


def _make_logger(trt: ModuleType) -> Any:
    """Make a logger that keeps errors; its base class exists at run time only."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps errors, shows warnings on standard error."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Take one message of the library."""
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                sys.stderr.write(message + "\n")

    return Logger()


def _make_monitor(trt: ModuleType, tell: Callable[[str], None]) -> Any:
    """Make a progress monitor that tells the two upper levels of phases; the rest is noise."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Tells when a phase starts; cancels the build when nobody listens any more."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.root: str | None = None
            self.deserted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Tell a phase of the first or second level."""
            if not parent_phase:
                self.root = phase_name
            if self.deserted or parent_phase not in {None, "", self.root}:
                return
            try:
                tell(f"{phase_name} ({num_steps} steps)")
            except OSError:
                self.deserted = True

        def step_complete(self, _phase_name: str, _step: int) -> bool:
            """Go on, unless the parent is gone."""
            return not self.deserted

        def phase_finish(self, _phase_name: str) -> None:
            """The next start says it."""

    return Monitor()


if __name__ == "__main__":
    sys.exit(main())
