"""`galen report` and `galen config`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from collectors.store.sqlite import SqliteSeriesReader
from galen.commands.context import (
    ConfigOption,
    StateDirOption,
    invocation,
    parse_moment,
    print_line,
    progress,
)
from galen.commands.journal import open_journal
from galen.errors import ConfigError
from galen.example import example_toml
from healing.ledger import Ledger
from reporting.reports.build import build_report
from reporting.reports.render import Format, render


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(report)
    app.command()(config)


def report(
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="standard output")
    ] = None,
    since: Annotated[
        str, typer.Option(help="From when: 24h, 7d, ISO 8601 or epoch seconds.")
    ] = "24h",
    until: Annotated[str | None, typer.Option(help="Until when.", show_default="now")] = None,
    format: Annotated[Format, typer.Option(help="How it looks.")] = Format.HTML,  # noqa: A002
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Write the anomaly report: what happened, why, what was done about it, and the proof."""
    call = invocation(config, state_dir)
    now = time.time()
    start = parse_moment(since, name="--since", now=now)
    end = now if until is None else parse_moment(until, name="--until", now=now)
    if start >= end:
        raise ConfigError("--since is not before --until", fix="Swap them, or leave --until out.")
    with open_journal(call.paths) as journal:
        reader = SqliteSeriesReader(call.paths.series)
        try:
            built = build_report(
                journal,
                Ledger(journal),
                reader,
                since_seconds=start,
                until_seconds=end,
                timezone=call.settings.reporting.timezone,
            )
        finally:
            reader.close()
    text = render(built, format)
    if out is None:
        print_line(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, "utf-8")
    progress.print(f"wrote {out} ({len(text.encode()) / 1024:.0f} KiB)", markup=False)


def config() -> None:
    """Print a documented configuration with every key at its default: `galen config > galen.toml`."""
    print_line(example_toml().rstrip("\n"))
