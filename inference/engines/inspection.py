"""What a model or a plan holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from inference.engines.child import InspectJob, run_child
from inference.engines.offline import BuildError, InputError
from inference.engines.onnx_file import OnnxSummary, read_onnx
from inference.engines.plans import (
    PLAN_METADATA_FILE,
    Binding,
    PlanMetadata,
    check_plan,
    find_plan,
    read_plan_metadata,
)

ONNX_SUFFIX = ".onnx"
PLAN_SUFFIXES = frozenset({".plan", ".engine"})
_DESERIALIZE_SECONDS = 300.0


class OnnxInspection(BaseModel):
    """An ONNX model."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["onnx"] = "onnx"
    file: str
    file_bytes: int
    model: OnnxSummary


class PlanContent(BaseModel):
    """What TensorRT says about a plan that it has loaded."""

    model_config = ConfigDict(frozen=True)

    bindings: tuple[Binding, ...]
    layers: tuple[str, ...]


class PlanInspection(BaseModel):
    """A TensorRT plan."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["plan"] = "plan"
    file: str
    metadata: PlanMetadata
    not_loadable: tuple[str, ...] = Field(description="Why it cannot be loaded here.")
    content: PlanContent | None = Field(description="None where it cannot be loaded here.")


def inspect_file(
    path: Path,
    *,
    check: Callable[[Path], list[str]] = check_plan,
    run: Callable[..., dict[str, Any]] = run_child,
) -> OnnxInspection | PlanInspection:
    """Describe an ONNX model, or a plan by its file, its ``plan.json`` or their folder.

    Raises:
        InputError: it is neither, or it is damaged.
    """
    if path.suffix == ONNX_SUFFIX:
        model = read_onnx(path)
        return OnnxInspection(file=str(path), file_bytes=path.stat().st_size, model=model)
    if path.suffix in PLAN_SUFFIXES or path.name == PLAN_METADATA_FILE or path.is_dir():
        return _inspect_plan(find_plan(path), check, run)
    raise InputError(
        f"{path} is neither a model nor a plan",
        fix=f"Give a file {ONNX_SUFFIX}, {', '.join(sorted(PLAN_SUFFIXES))} or "
        f"{PLAN_METADATA_FILE}.",
    )


def _inspect_plan(
    plan: Path, check: Callable[[Path], list[str]], run: Callable[..., dict[str, Any]]
) -> PlanInspection:
    metadata = read_plan_metadata(plan)
    reasons = check(plan)
    content = None
    if not reasons:
        job = InspectJob(module=metadata.engine, plan=plan.absolute())
        try:
            result = run(job, lambda _text: None, timeout_seconds=_DESERIALIZE_SECONDS)
            content = PlanContent.model_validate(result)
        except BuildError as error:
            reasons = [str(error)]
    return PlanInspection(
        file=str(plan), metadata=metadata, not_loadable=tuple(reasons), content=content
    )
