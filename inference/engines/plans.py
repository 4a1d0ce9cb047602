"""A TensorRT plan, what was noted when it was built, and whether it can be loaded here.

TensorRT answers a plan of another version, another GPU and a damaged file all in the same way, with
no engine. `check_plan` says which it is before TensorRT is asked.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inference.engines.offline import InputError
from inference.engines.onnx_file import hash_model, read_onnx
from inference.engines.tensorrt import PLAN_FILE

PLAN_METADATA_FILE = "plan.json"
EngineKind = Literal["tensorrt", "tensorrt_rtx"]
EXTRAS: dict[EngineKind, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}

TARGET = re.compile(r"^sm\d{2,3}$")
_HASH_CHUNK_BYTES = 1 << 20


class ShapeRange(BaseModel):
    """Shapes of one input that a plan takes."""

    model_config = ConfigDict(frozen=True)

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Binding(BaseModel):
    """An input or output of a plan."""

    model_config = ConfigDict(frozen=True)

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...] = Field(description="-1 where the profile gives a range.")


class PlanMetadata(BaseModel):
    """What ``plan.json`` says about the plan beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    engine: EngineKind = Field(description="Python module that built the plan and can load it.")
    version: str = Field(min_length=1, description="Version of that module.")
    target: str = Field(pattern=TARGET.pattern, description="Compute capability, as in sm80.")
    onnx_name: str = Field(description="File name of the model.")
    onnx_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    precision: str = Field(description="Type of most weight bytes of the model.")
    profile: dict[str, ShapeRange] = Field(description="Optimization profile, by input.")
    plan_bytes: int = Field(gt=0)
    plan_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    build_seconds: float = Field(ge=0)
    built_at: datetime = Field(description="With its zone.")
    bindings: tuple[Binding, ...] = Field(default=(), description="Inputs and outputs.")
    network: dict[str, int] = Field(
        default_factory=dict, description="Layers by type, as parsed: TensorRT fuses them then."
    )


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that a plan would run on; without one, why not."""

    target: str | None
    reason: str = ""


def read_plan_metadata(plan_path: Path) -> PlanMetadata:
    """Read the ``plan.json`` beside a plan.

    Raises:
        InputError: it is missing or damaged.
    """
    path = plan_path.parent / PLAN_METADATA_FILE
    fix = "Build the plan again with `galen engine build`."
    try:
        return PlanMetadata.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", fix=fix) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise InputError(f"{path}: {place}: {first['msg']}", fix=fix) from error


def check_plan(
    plan_path: Path,
    onnx_path: Path | None = None,
    *,
    version_of: Callable[[str], str | None] | None = None,
    find_gpu: Callable[[], Gpu] | None = None,
) -> list[str]:
    """Say why a plan cannot be loaded here; an empty list lets it through.

    A plan is bound to the exact version that built it ("TensorRT engines are compatible only with
    the version of TensorRT used to build them"; between releases of TensorRT-RTX never: NVIDIA,
    Engine Compatibility) and to the compute capability that it was built for.

    Args:
        plan_path: The plan; its ``plan.json`` lies beside it.
        onnx_path: The model that it should have been built from.
        version_of: Tells the version of a module, None where it cannot be imported.
        find_gpu: Tells the current GPU.
    """
    try:
        noted = read_plan_metadata(plan_path)
    except InputError as error:
        return [str(error)]
    reasons = _check_file(plan_path, noted)
    version = (version_of or installed_version)(noted.engine)
    if version is None:
        reasons.append(f"{noted.engine} cannot be imported; {install_fix(noted.engine)}")
    elif version != noted.version:
        reasons.append(
            f"built with {noted.engine} {noted.version}, but {version} is installed; a plan runs "
            "only with the version that built it"
        )
    gpu = (find_gpu or current_gpu)()
    if gpu.target is None:
        reasons.append(f"built for {noted.target}, but no GPU is usable here: {gpu.reason}")
    elif gpu.target != noted.target:
        reasons.append(f"built for {noted.target}, but this GPU is {gpu.target}")
    if onnx_path is not None:
        reasons += _check_model(onnx_path, noted)
    return reasons


def installed_version(module: str) -> str | None:
    """Return the version of a module, None where it cannot be imported."""
    try:
        return str(importlib.import_module(module).__version__)
    except (ImportError, OSError):  # OSError: the module is there, its libraries are not
        return None


def current_gpu() -> Gpu:
    """Ask CUDA for the compute capability of the current device, as TensorRT will see it."""
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        return Gpu(None, f"cuda-python cannot be imported: {error}")
    attribute = cuda.cudaDeviceAttr
    numbers: list[int] = []
    status, device = cuda.cudaGetDevice()
    for name in ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor"):
        if int(status) == 0:
            status, number = cuda.cudaDeviceGetAttribute(getattr(attribute, name), device)
            numbers.append(number)
    if int(status) != 0:
        return Gpu(None, f"CUDA reports {getattr(status, 'name', status)}")
    return Gpu(f"sm{numbers[0]}{numbers[1]}")


def install_fix(engine: EngineKind) -> str:
    """Return the command that installs what an engine needs."""
    return f"pip install 'galen[{EXTRAS[engine]}]'"


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def version_folder(engine: EngineKind, version: str) -> str:
    """Return the folder of a version's plans: a new TensorRT builds beside the old one's."""
    return f"{engine}-{version}"


def find_plan(path: Path) -> Path:
    """Return the plan that a plan, its ``plan.json`` or their folder stands for.

    A target's folder stands for the newest of its plans.
    """
    if path.is_dir():
        below = sorted(path.glob(f"*/{PLAN_FILE}"), key=lambda plan: plan.stat().st_mtime)
        return below[-1] if below and not (path / PLAN_FILE).is_file() else path / PLAN_FILE
    return path.with_name(PLAN_FILE) if path.name == PLAN_METADATA_FILE else path


def _check_file(plan_path: Path, noted: PlanMetadata) -> list[str]:
    try:
        size = plan_path.stat().st_size
        if size != noted.plan_bytes:
            return [f"the plan has {size} bytes, {noted.plan_bytes} were built: it is damaged"]
        if hash_file(plan_path) != noted.plan_sha256:
            return ["the plan is not the one that was built: its SHA-256 differs"]
    except OSError as error:
        return [f"{plan_path} cannot be read: {error.strerror}"]
    return []


def _check_model(onnx_path: Path, noted: PlanMetadata) -> list[str]:
    try:
        found = hash_model(onnx_path, read_onnx(onnx_path).external_files)
    except InputError as error:
        return [str(error)]
    if found != noted.onnx_sha256:
        reason = (
            f"built from a model with SHA-256 {noted.onnx_sha256[:12]}..., but {onnx_path.name} has "
            f"{found[:12]}...: the model was changed after the plan was built"
        )
        return [reason]
    return []
