"""What the commands share: options, settings, output."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console

from galen.config import Settings, load_settings
from galen.errors import ConfigError
from galen.logs import configure_logs
from galen.paths import StatePaths

# Standard output carries data, standard error progress.
progress = Console(stderr=True, highlight=False)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file.", show_default="galen.toml where it exists"),
]
StateDirOption = Annotated[
    Path | None,
    typer.Option("--state-dir", help="Directory for all state.", show_default="./var"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
SinceOption = Annotated[
    str | None,
    typer.Option(help="From when: 24h, ISO 8601 or epoch seconds.", show_default="the first"),
]
UntilOption = Annotated[str | None, typer.Option(help="Until when.", show_default="the last")]

_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SPAN_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of the command line: its settings and where its state lies."""

    config: Path | None
    settings: Settings
    paths: StatePaths


def invocation(config: Path | None, state_dir: Path | None) -> Invocation:
    """Load the settings, set up logs and return both.

    Raises:
        ConfigError: when the configuration is wrong.
    """
    settings = load_settings(config)
    configure_logs(settings.log)
    return Invocation(config, settings, StatePaths((state_dir or settings.state_dir).absolute()))


def print_json(document: BaseModel | str) -> None:
    """Print one JSON document on standard output."""
    text = document if isinstance(document, str) else document.model_dump_json(indent=2)
    sys.stdout.write(text + "\n")


def print_line(text: str = "") -> None:
    """Print one line of data on standard output."""
    sys.stdout.write(text + "\n")


def parse_moment(text: str, *, name: str, now: float | None = None) -> float:
    """Read a moment: a span back from now (``90s``, ``24h``, ``7d``), ISO 8601, or epoch seconds.

    Raises:
        ConfigError: when it is none of these.
    """
    if span := _SPAN.fullmatch(text):
        current = time.time() if now is None else now
        return current - float(span[1]) * _SPAN_SECONDS[span[2]]
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"{name}: {text!r} is not a time",
            fix="Give a span back from now (24h), ISO 8601 (2026-03-01T12:00:00Z) or epoch seconds.",
        ) from error
    # A time without a zone is UTC: a report must not depend on where it is made.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def parse_span(text: str, *, name: str) -> float:
    """Read a span of time (``90s``, ``24h``, ``7d``) in seconds.

    Raises:
        ConfigError: when it is none.
    """
    if span := _SPAN.fullmatch(text):
        return float(span[1]) * _SPAN_SECONDS[span[2]]
    raise ConfigError(f"{name}: {text!r} is not a span of time", fix="Give one such as 24h or 7d.")


def stop_on_signals() -> threading.Event:
    """Return an event that the first Ctrl-C or SIGTERM sets; a second ends the process at once."""
    stop = threading.Event()

    def ask(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise SystemExit(130)
        stop.set()

    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, ask)
    return stop


def unwind_on_terminate() -> None:
    """Let SIGTERM end a command as Ctrl-C does: what it has started is stopped on the way out."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def parse_window(since: str | None, until: str | None) -> tuple[float, float]:
    """Read ``--since`` and ``--until``; without one the span has no bound on that side.

    Raises:
        ConfigError: when one is no time, or they are the wrong way round.
    """
    now = time.time()
    start = float("-inf") if since is None else parse_moment(since, name="--since", now=now)
    end = float("inf") if until is None else parse_moment(until, name="--until", now=now)
    if start >= end:
        raise ConfigError("--since is not before --until", fix="Swap them, or leave --until out.")
    return start, end


def show_moment(seconds: float) -> str:
    """Return a moment as text, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[float], None]]:
    """Show a bar on standard error while the block runs; nothing where that is no terminal."""
    from rich.progress import Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
    with Progress(*columns, console=progress, transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)
