"""`galen engine`: engines, off line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galen.commands.context import JsonOption, print_json, print_line, progress
from galen.errors import ConfigError, GalenError

if TYPE_CHECKING:
    from inference.engines.comparison import Comparison
    from inference.engines.inspection import OnnxInspection, PlanInspection

engine_app = typer.Typer(help="Build, inspect and compare engines, off line.", no_args_is_help=True)

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL.onnx", exists=True, dir_okay=False, readable=True)
]
_SHOWN_LAYERS = 40


class EngineOption(StrEnum):
    """Modules that build plans."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt_rtx"


def register(app: typer.Typer) -> None:
    """Add this command."""
    engine_app.command()(build)
    engine_app.command()(inspect)
    engine_app.command()(variants)
    engine_app.command()(bench)
    app.add_typer(engine_app, name="engine")


def build(
    model: ModelArgument,
    target: Annotated[str, typer.Option(help="GPUs to build for: sm80, or sm80,sm86, or current.")],
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Plans go to OUT/<target>/<module>-<version>/.")
    ] = Path("plans"),
    engine: Annotated[
        EngineOption | None, typer.Option(help="Module.", show_default="the installed one")
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MIN,OPT,MAX", help="Range of a size that varies; may be repeated."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for each plan.")] = 1800,
    json: JsonOption = False,
) -> None:
    """Build a TensorRT plan for each target, with plan.json beside it."""
    import orjson

    from inference.engines.build import BuildRequest, build_plan, choose_engine, parse_targets
    from inference.engines.shapes import parse_ranges

    documents = []
    with _told_errors():
        kind = choose_engine(None if engine is None else engine.value)
        ranges = parse_ranges(profile or ())
        for one in parse_targets(target):
            request = BuildRequest(model, out, kind, one, ranges, timeout)
            plan, noted = build_plan(request, partial(_show_progress, one))
            documents.append({"plan": str(plan), **noted.model_dump(mode="json")})
            if not json:
                size = _size(noted.plan_bytes)
                print_line(f"{plan}  {size}, {noted.build_seconds:.1f} s, {kind} {noted.version}")
    if json:
        print_json(orjson.dumps(documents, option=orjson.OPT_INDENT_2).decode())


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, readable=True)],
    json: JsonOption = False,
) -> None:
    """Show what a model (.onnx) or a plan (.plan, plan.json or their folder) holds."""
    from inference.engines.inspection import OnnxInspection, inspect_file

    with _told_errors():
        found = inspect_file(file)
    if json:
        print_json(found)
    else:
        lines = _onnx_lines(found) if isinstance(found, OnnxInspection) else _plan_lines(found)
        _print_lines(lines)


def variants(
    model: ModelArgument,
    precision: Annotated[
        str, typer.Option(help="Precisions, separated by commas: fp16, int8.")
    ] = "fp16,int8",
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder.", show_default="beside the model"),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of .npz files, each the inputs of one run; int8 activations use them.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the model in lower precisions, as MODEL.fp16.onnx and MODEL.int8.onnx."""
    import orjson

    from inference.engines.variants import make_variant, parse_precisions

    made = []
    with _told_errors():
        for one in parse_precisions(precision):
            _show_progress(one, f"converting {model.name}")
            made.append(make_variant(model, one, folder=out, calibration=calibration))
    if json:
        print_json(orjson.dumps(made, option=orjson.OPT_INDENT_2, default=str).decode())
        return
    for found in made:
        sizes = f"{_size(found.file_bytes)}, was {_size(found.original_bytes)}"
        _print_lines([f"{found.path}  {sizes}: {found.method}"])
    files = ", ".join(f'{found.precision} = "{found.path.name}"' for found in made)
    _print_lines([f"for model.toml: variants = {{ {files} }}"])


def bench(
    model: ModelArgument,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8,32",
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for each batch size.")] = 2,
    past: Annotated[int, typer.Option(min=0, help="Tokens in a decoder's cache.")] = 64,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of the engine.")] = 1,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Value of a size that varies; may be repeated."),
    ] = None,
    plan: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="Plan of the model, or its folder; may be repeated."),
    ] = None,
    drift_limit: Annotated[
        float, typer.Option(min=0, help="Largest relative drift of what is named the fastest.")
    ] = 0.1,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.html", dir_okay=False, help="Write a picture.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare a model, the variants beside it and plans: speed, size, memory, drift."""
    from inference.engines.chart import write_chart
    from inference.engines.comparison import Workload, compare_engines

    sizes = dict(_read_size(text) for text in size or ())
    workload = Workload(
        _read_batches(batch), seconds, past, threads, sizes, tuple(plan or ()), drift_limit
    )
    with _told_errors():
        found = compare_engines(model, workload, partial(_show_progress, "bench"))
        if plot is not None:
            write_chart(found, plot)
    if json:
        print_json(found)
    else:
        _print_lines(_comparison_lines(found))


@contextmanager
def _told_errors() -> Iterator[None]:
    """Turn errors of the tools into errors of the command line."""
    from inference.engines.offline import InputError, OfflineError

    try:
        yield
    except InputError as error:
        raise ConfigError(str(error), fix=error.fix) from error
    except OfflineError as error:
        raise GalenError(str(error), fix=error.fix) from error


def _show_progress(what: str, text: str) -> None:
    progress.print(f"{what}: {text}", markup=False)


def _print_lines(lines: Iterable[str]) -> None:
    """Print lines; they hold names from files, whose control characters could steer a terminal."""
    for line in lines:
        print_line("".join(char if char.isprintable() else "?" for char in line))


def _read_batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        batches = [0]
    if min(batches) < 1:
        raise ConfigError(f"--batch {text!r} is not a list of sizes", fix="Write --batch 1,8,32")
    return batches


def _read_size(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name.strip() or not number.strip().isdecimal():
        raise ConfigError(
            f"--size {text!r} is not NAME=N", fix="Write, for example, --size width=224"
        )
    return name.strip(), int(number)


def _onnx_lines(found: OnnxInspection) -> Iterator[str]:
    model = found.model
    opsets = ", ".join(f"{domain} {version}" for domain, version in model.opsets.items())
    yield f"{found.file}: ONNX model, {_size(found.file_bytes)}"
    yield f"made by {model.producer or 'unknown'}, IR version {model.ir_version}, opset {opsets}"
    by_type = ", ".join(f"{_size(n)} {t}" for t, n in model.initializer_bytes_by_type.items())
    yield (
        f"weights: {model.precision}; {model.initializers} initializers, "
        f"{_size(model.initializer_bytes)}" + (f" ({by_type})" if by_type else "")
    )
    if model.external_files:
        yield f"weight files: {', '.join(model.external_files)}"
    for title, tensors in (("inputs", model.inputs), ("outputs", model.outputs)):
        yield ""
        yield from _columns(
            (title, "type", "shape"),
            ((t.name, t.dtype, f"[{', '.join(_axis(s) for s in t.shape)}]") for t in tensors),
        )
    yield ""
    yield from _columns(("nodes", "count"), ((op, str(n)) for op, n in model.nodes.items()))


def _plan_lines(found: PlanInspection) -> Iterator[str]:
    noted = found.metadata
    yield f"{found.file}: TensorRT plan, {_size(noted.plan_bytes)}"
    yield (
        f"built by {noted.engine} {noted.version} for {noted.target} in "
        f"{noted.build_seconds:.1f} s at {noted.built_at:%Y-%m-%d %H:%M:%S %Z}"
    )
    yield f"model: {noted.onnx_name}, {noted.precision}, SHA-256 {noted.onnx_sha256}"
    yield ""
    yield from _columns(
        ("profile", "min", "opt", "max"),
        (
            (name, *("x".join(map(str, shape)) for shape in (size.min, size.opt, size.max)))
            for name, size in noted.profile.items()
        ),
    )
    yield ""
    for reason in found.not_loadable:
        yield f"not loadable here: {reason}"
    bindings = found.content.bindings if found.content is not None else noted.bindings
    yield from _columns(
        ("bindings", "mode", "type", "shape"),
        ((b.name, b.mode, b.dtype, str(list(b.shape))) for b in bindings),
    )
    yield ""
    if found.content is None:
        yield "layers of the network, before TensorRT fused them:"
        yield from _columns(
            ("type", "count"), ((kind, str(n)) for kind, n in noted.network.items())
        )
    else:
        yield f"{len(found.content.layers)} layers"
        yield from (f"  {name}" for name in found.content.layers[:_SHOWN_LAYERS])
        if len(found.content.layers) > _SHOWN_LAYERS:
            yield f"  ... {len(found.content.layers) - _SHOWN_LAYERS} more with --json"


def _comparison_lines(found: Comparison) -> Iterator[str]:
    what = "one call"
    if found.decoder:
        what = f"one decode step after {found.past_tokens} cached tokens"
    yield f"{found.file}: {what}, {found.precision}, {found.threads} thread(s)"
    yield from _columns(
        (
            "variant",
            "engine",
            "device",
            "batch",
            "p50 ms",
            "p99 ms",
            "items/s",
            "load s",
            "size",
            "memory",
        ),
        (
            (
                one.variant,
                one.engine,
                one.device,
                str(one.batch),
                f"{one.p50_milliseconds:.2f}",
                f"{one.p99_milliseconds:.2f}",
                f"{one.items_per_second:.0f}",
                f"{one.load_seconds:.2f}",
                _size(one.model_bytes),
                _size(one.memory_bytes),
            )
            for one in found.measurements
        ),
    )
    if found.drifts:
        yield ""
        yield from _columns(
            ("variant", "engine", "device", "drift", "max", "cosine", "top-1", "golden", "limit"),
            (
                (
                    one.variant,
                    one.engine,
                    one.device,
                    f"{one.drift.relative:.4f}",
                    f"{one.drift.max_abs:.3f}",
                    f"{one.drift.cosine:.5f}",
                    f"{one.drift.top1_agreement:.1%}",
                    "-"
                    if one.drift.golden_total is None
                    else f"{one.drift.golden_right}/{one.drift.golden_total}",
                    "within" if one.within_limit else "beyond",
                )
                for one in found.drifts
            ),
        )
    if (best := found.fastest) is not None:
        yield (
            f"fastest within a drift of {found.drift_limit:g}: {best.variant} on {best.engine} "
            f"{best.device}, {best.speed_up:.2f} x the original on the CPU"
        )
    for skipped in found.skipped:
        yield f"not measured: {skipped.engine}: {skipped.reason}"


def _columns(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Align cells; plain text, because names come from files and must not become markup."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _axis(size: int | str | None) -> str:
    return "?" if size is None else str(size)


def _size(number: int) -> str:
    """Return a size in words: 512 B, 3.6 MB."""
    power = min(int(math.log(number, 1000)), 4) if number else 0
    unit = ("B", "kB", "MB", "GB", "TB")[power]
    return f"{number} B" if power == 0 else f"{number / 1000**power:.1f} {unit}"
