"""ONNX to TensorRT plan, off line: on a CPU-only machine too, where the module can."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inference.engines.child import BuildJob, run_child
from inference.engines.offline import BuildError, InputError
from inference.engines.onnx_file import hash_model, read_onnx
from inference.engines.plans import (
    EXTRAS,
    PLAN_METADATA_FILE,
    TARGET,
    EngineKind,
    PlanMetadata,
    ShapeRange,
    hash_file,
    install_fix,
    version_folder,
)
from inference.engines.shapes import SizeRange, resolve_profile
from inference.engines.tensorrt import PLAN_FILE

CURRENT = "current"


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One plan to build."""

    onnx_path: Path
    out_dir: Path
    """The plan goes to ``<out_dir>/<target>/<engine>-<version>/model.plan``, ``plan.json`` with it."""
    engine: EngineKind
    target: str
    """A compute capability as in ``sm80``, or ``current``."""
    ranges: Mapping[str, SizeRange] = field(default_factory=dict)
    timeout_seconds: float = 1800.0


def build_plan(
    request: BuildRequest,
    on_progress: Callable[[str], None],
    *,
    run: Callable[..., dict[str, Any]] = run_child,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> tuple[Path, PlanMetadata]:
    """Build a plan in a child process and note how it was built.

    A plan of the same target and version is replaced only once the new one is complete.

    Args:
        request: What to build.
        on_progress: Takes a line of text now and then.
        run: Runs the child process.
        now: The wall clock, with its zone.

    Returns:
        Path of the plan and what its ``plan.json`` says.

    Raises:
        InputError: the model or the request is wrong.
        BuildError: TensorRT built nothing, with its reason.
    """
    model = read_onnx(request.onnx_path)
    profile = resolve_profile(model.inputs, request.ranges)
    onnx_sha256 = hash_model(request.onnx_path, model.external_files)
    part = request.out_dir / f".{request.target}.{os.getpid()}.part"
    try:
        request.out_dir.mkdir(parents=True, exist_ok=True)
        result = run(
            BuildJob(
                module=request.engine,
                onnx=request.onnx_path.absolute(),
                out=part.absolute(),
                target=request.target,
                profile=profile,
            ),
            on_progress,
            timeout_seconds=request.timeout_seconds,
        )
        metadata = PlanMetadata(
            engine=request.engine,
            version=result["version"],
            target=result["target"],
            onnx_name=request.onnx_path.name,
            onnx_sha256=onnx_sha256,
            precision=model.precision,
            profile={
                name: ShapeRange(min=low, opt=best, max=high)
                for name, (low, best, high) in profile.items()
            },
            plan_bytes=part.stat().st_size,
            plan_sha256=hash_file(part),
            build_seconds=result["build_seconds"],
            built_at=now(),
            bindings=result.get("bindings", ()),
            network=result.get("network", {}),
        )
        version = version_folder(metadata.engine, metadata.version)
        return _publish(part, request.out_dir / metadata.target / version, metadata), metadata
    except OSError as error:
        raise BuildError(f"{request.out_dir} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, folder: Path, metadata: PlanMetadata) -> Path:
    """Move a finished plan to its place.

    Between the two renames the old metadata stands beside the new plan; `check_plan` refuses that
    pair, so nobody loads a plan by the description of another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    noted = part.with_suffix(".json")
    try:
        noted.write_text(metadata.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(folder / PLAN_FILE)
        noted.replace(folder / PLAN_METADATA_FILE)
    finally:
        noted.unlink(missing_ok=True)
    return folder / PLAN_FILE


def choose_engine(
    wanted: EngineKind | None,
    is_installed: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
) -> EngineKind:
    """Return the module to build with: the wanted one, or the first that is installed.

    Raises:
        InputError: it is not installed, with the command that installs it.
    """
    for kind in EXTRAS if wanted is None else (wanted,):
        if is_installed(kind):
            return kind
    if wanted is not None:
        raise InputError(f"{wanted} is not installed", fix=install_fix(wanted))
    raise InputError(
        "neither tensorrt nor tensorrt_rtx is installed",
        fix=f"{install_fix('tensorrt_rtx')} (builds on a machine without a GPU too), or "
        f"{install_fix('tensorrt')} on a machine with the GPU that the plan is for",
    )


def parse_targets(text: str) -> list[str]:
    """Read targets separated by commas, e.g. ``sm80,sm86``.

    Raises:
        InputError: one is not of that form.
    """
    targets = list(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    for target in targets:
        if target != CURRENT and not TARGET.fullmatch(target):
            raise InputError(
                f"--target {target!r} is not a compute capability",
                fix="Write sm80 for 8.0 (A100), sm86, sm89, sm120, or current for this GPU.",
            )
    if not targets:
        raise InputError("--target names nothing", fix="Write, for example, --target sm80")
    return targets
