"""`galen store`: what the series store holds, moving it out and in, and putting it in order."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel

from galen.commands.context import (
    ConfigOption,
    JsonOption,
    SinceOption,
    StateDirOption,
    UntilOption,
    invocation,
    parse_moment,
    parse_window,
    print_json,
    print_line,
    progress,
    progress_bar,
    show_moment,
)
from galen.errors import ConfigError, GalenError

if TYPE_CHECKING:
    from collectors.store.inventory import Inventory
    from collectors.store.sqlite import SqliteSeriesReader, SqliteSeriesStore
    from galen.paths import StatePaths

_MOST_SHOWN = 20
_STOP_THE_WRITER = (
    "Stop `galen watch` (or `galen up`) for this state directory, run this, start it again."
)

store = typer.Typer(help="Look into the series store, move samples out and in, put it in order.")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    store.command("info")(store_info)
    store.command("export")(store_export)
    store.command("import")(store_import)
    store.command("compact")(store_compact)
    store.command("prune")(store_prune)
    store.command("vacuum")(store_vacuum)
    app.add_typer(store, name="store")


class _Gap(BaseModel):
    start_seconds: float
    end_seconds: float


class _Part(BaseModel):
    name: str
    rows: int
    samples: int
    size_bytes: int


class _SetAside(BaseModel):
    part: str
    entity: str
    signal: str
    start_seconds: float
    end_seconds: float
    samples: int
    reason: str


class _Refused(BaseModel):
    source: str
    series: int
    signal: str
    exploding: str


class _Retention(BaseModel):
    samples_seconds: float
    minutes_seconds: float
    hours_seconds: float


class _StoreInfo(BaseModel):
    path: str
    size_bytes: int
    free_bytes: int
    bytes_per_sample: float | None
    """Of the whole file with its roll-ups and its free space."""
    series: int
    samples: int
    first_seconds: float | None
    last_seconds: float | None
    usual_step_seconds: float | None
    first_minute_seconds: float | None
    first_hour_seconds: float | None
    retention: _Retention
    parts: list[_Part]
    gaps: list[_Gap]
    refused: list[_Refused]
    set_aside: list[_SetAside]


def store_info(
    json: JsonOption = False, config: ConfigOption = None, state_dir: StateDirOption = None
) -> None:
    """Say what the store holds: size by part, series, samples, gaps, retention, refused series."""
    from collectors.store.inventory import take_inventory
    from collectors.store.keeper import summarise

    call = invocation(config, state_dir)
    path, settings = call.paths.series, call.settings.collectors
    with _reader(call.paths) as reader, progress_bar("reading") as told:
        found = summarise(reader, told)
        held = take_inventory(reader)
    size = sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists())
    info = _StoreInfo(
        path=str(path),
        size_bytes=size,
        free_bytes=held.free_bytes,
        bytes_per_sample=size / found.samples if found.samples else None,
        series=found.series,
        samples=found.samples,
        first_seconds=found.first_seconds,
        last_seconds=found.last_seconds,
        usual_step_seconds=found.usual_step_seconds,
        first_minute_seconds=held.first_minute_seconds,
        first_hour_seconds=held.first_hour_seconds,
        retention=_Retention(
            samples_seconds=settings.retention_hours * 3600.0,
            minutes_seconds=settings.rollup_minute_retention_days * 86_400.0,
            hours_seconds=settings.rollup_hour_retention_days * 86_400.0,
        ),
        gaps=[_Gap(start_seconds=start, end_seconds=end) for start, end in found.gaps],
        **_plain(held),
    )
    if json:
        print_json(info)
    else:
        _print_info(info)


def _plain(held: Inventory) -> dict[str, list[dict[str, object]]]:
    return {
        name: [asdict(each) for each in getattr(held, name)]
        for name in ("parts", "refused", "set_aside")
    }


def _print_info(info: _StoreInfo) -> None:
    print_line(f"file     {info.path}")
    each = "" if info.bytes_per_sample is None else f", {info.bytes_per_sample:.1f} bytes a sample"
    print_line(f"size     {info.size_bytes / 1e6:.1f} MB, {info.free_bytes / 1e6:.1f} free{each}")
    for part in info.parts:
        print_line(
            f"         {part.name}: {part.size_bytes / 1e6:.1f} MB, {part.rows} rows, "
            f"{part.samples} samples"
        )
    print_line(f"series   {info.series}")
    print_line(f"samples  {info.samples}")
    _print_spans(info)
    print_line(f"gaps     {len(info.gaps)}")
    for gap in info.gaps[-_MOST_SHOWN:]:
        print_line(
            f"         {show_moment(gap.start_seconds)} to {show_moment(gap.end_seconds)}, "
            f"{gap.end_seconds - gap.start_seconds:.0f} s"
        )
    for one in info.refused[:_MOST_SHOWN]:
        print_line(
            f"refused  {one.series} series of {one.source}, most of them {one.signal}; "
            f"the names of {one.exploding or 'its entities'} explode"
        )
    for row in info.set_aside[-_MOST_SHOWN:]:
        print_line(
            f"damaged  {row.entity} {row.signal} {show_moment(row.start_seconds)} to "
            f"{show_moment(row.end_seconds)}, {row.samples} samples: {row.reason}"
        )
    if max(len(info.gaps), len(info.refused), len(info.set_aside)) > _MOST_SHOWN:
        progress.print(f"{_MOST_SHOWN} of each are shown; --json lists all")


def _print_spans(info: _StoreInfo) -> None:
    keep = info.retention
    for name, first, kept in (
        ("from", info.first_seconds, keep.samples_seconds),
        ("minutes", info.first_minute_seconds, keep.minutes_seconds),
        ("hours", info.first_hour_seconds, keep.hours_seconds),
    ):
        if first is not None:
            days = f"{kept / 86_400:.1f}".removesuffix(".0")
            print_line(f"{name:9}{show_moment(first)}, kept for {days} days")
    if info.last_seconds is not None:
        print_line(f"to       {show_moment(info.last_seconds)}")


def store_export(
    out: Annotated[Path, typer.Option(help="File to write, .parquet or .csv.", dir_okay=False)],
    since: SinceOption = None,
    until: UntilOption = None,
    entity: Annotated[list[str] | None, typer.Option(help="Only this entity; repeatable.")] = None,
    signal: Annotated[list[str] | None, typer.Option(help="Only this signal; repeatable.")] = None,
    resolution: Annotated[
        str, typer.Option(help="raw for samples, 1m or 1h for roll-ups.")
    ] = "raw",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Write samples or roll-ups to a file; exit status 1 when there are none."""
    from collectors.store.inventory import take_inventory
    from collectors.store.keeper import export_rollups, export_samples
    from collectors.store.tables import TableError

    _check_suffix(out)
    if resolution not in _RESOLUTIONS:
        raise ConfigError(f"--resolution: {resolution!r} is not known", fix="Give raw, 1m or 1h.")
    seconds = _RESOLUTIONS[resolution]
    start, end = parse_window(since, until)
    with _reader(invocation(config, state_dir).paths) as reader:
        try:
            with progress_bar("exporting") as told:
                if seconds is None:
                    moved = export_samples(
                        reader, out, start_seconds=start, end_seconds=end,
                        entities=entity, signals=signal, progress=told,
                    )  # fmt: skip
                else:
                    first = take_inventory(reader).first_hour_seconds
                    starts = (each.first_seconds for each in reader.series())
                    oldest = min(starts, default=time.time()) if first is None else first
                    moved = export_rollups(
                        reader, out, resolution_seconds=seconds,
                        start_seconds=max(start, oldest - seconds),
                        end_seconds=end if math.isfinite(end) else _newest(reader) + seconds,
                        entities=entity, signals=signal, progress=told,
                    )  # fmt: skip
        except TableError as error:
            raise GalenError(str(error)) from error
    what = "samples" if seconds is None else "roll-ups"
    progress.print(f"wrote {moved.samples} {what} to {out}", markup=False)
    raise typer.Exit(0 if moved.samples else 1)


_RESOLUTIONS = {"raw": None, "1m": 60, "1h": 3600}


def _newest(reader: SqliteSeriesReader) -> float:
    return max((each.last_seconds for each in reader.series()), default=time.time())


def store_import(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Write a file's samples or roll-ups to the store; its columns say which they are.

    The whole file is checked first. What the store has already at that time is replaced.
    """
    from collectors.store.contract import StoreError
    from collectors.store.keeper import import_rollups, import_samples
    from collectors.store.tables import TableError, is_rollup

    _check_suffix(file)
    with store_writer(invocation(config, state_dir).paths) as target:
        try:
            rolled = is_rollup(file)
            with progress_bar("importing") as told:
                moved = (import_rollups if rolled else import_samples)(target, file, told)
        except TableError as error:
            raise ConfigError(str(error)) from error
        except StoreError as error:
            raise GalenError(str(error)) from error
    what = "roll-ups" if rolled else "samples"
    progress.print(f"imported {moved.samples} {what}", markup=False)
    if moved.left_out:
        progress.print(f"{moved.left_out} left out: their value is missing or not finite")
    raise typer.Exit(0 if moved.samples else 1)


def store_compact(config: ConfigOption = None, state_dir: StateDirOption = None) -> None:
    """Compress what is older than an hour; `galen watch` does it by itself.

    It may be ended with Ctrl-C at any time and goes on from there when it is run again.
    """
    from collectors.store.keeper import compact_in_steps

    paths = invocation(config, state_dir).paths
    with _in_order(paths) as target, progress_bar("compacting") as told:
        compact_in_steps(target, told)
    progress.print("compacted")


def store_prune(
    older_than: Annotated[str, typer.Option(help="Age (24h, 7d) or moment; older samples go.")],
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Delete old samples; their roll-ups stay. `vacuum` gives their space back."""
    from collectors.store.keeper import prune_in_steps

    before = parse_moment(older_than, name="--older-than")
    if not 0 <= before <= time.time():
        raise ConfigError(f"--older-than: {older_than!r} is not in the past", fix="Give 24h or 7d.")
    with _in_order(invocation(config, state_dir).paths) as target, progress_bar("pruning") as told:
        gone = prune_in_steps(target, before_seconds=before, progress=told)
    progress.print(f"deleted {gone} samples from before {show_moment(before)}", markup=False)


def store_vacuum(config: ConfigOption = None, state_dir: StateDirOption = None) -> None:
    """Write the whole file again without what holds nothing. Ctrl-C leaves it as it was.

    It needs as much free space as the file has content, and nobody else may have the file open.
    """
    with _in_order(invocation(config, state_dir).paths) as target, progress.status("rewriting"):
        shorter = target.vacuum()
    progress.print(f"the file is {shorter / 1e6:.1f} MB shorter")


@contextmanager
def _in_order(paths: StatePaths) -> Iterator[SqliteSeriesStore]:
    """Open a store that exists, to put it in order."""
    from collectors.store.contract import StoreError

    if not paths.series.exists():
        raise GalenError(
            f"there is no series store at {paths.series}",
            fix="Point --state-dir at the directory that `galen watch` uses.",
        )
    with store_writer(paths) as target:
        try:
            yield target
        except StoreError as error:
            raise GalenError(str(error)) from error


@contextmanager
def store_writer(paths: StatePaths) -> Iterator[SqliteSeriesStore]:
    """Open the series store to write it, and close it after the block.

    Raises:
        GalenError: when it cannot be opened, or a watch loop writes it.
    """
    from collectors.store.contract import StoreError
    from collectors.store.sqlite import SqliteSeriesStore

    try:
        target = SqliteSeriesStore(paths.series)
    except StoreError as error:
        raise GalenError(str(error), fix=_STOP_THE_WRITER) from error
    try:
        yield target
    finally:
        target.close()


@contextmanager
def _reader(paths: StatePaths) -> Iterator[SqliteSeriesReader]:
    from collectors.store.contract import StoreError
    from collectors.store.sqlite import SqliteSeriesReader

    reader = SqliteSeriesReader(paths.series)
    try:
        yield reader
    except StoreError as error:
        raise GalenError(str(error)) from error
    finally:
        reader.close()


def _check_suffix(path: Path) -> None:
    if path.suffix not in {".parquet", ".csv"}:
        raise ConfigError(f"{path}: the kind is not known", fix="Name it .parquet or .csv.")
