"""Medians over rounds, and tables that can be pasted into the documentation."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median


def middle(values: Sequence[float | None]) -> float | None:
    """Return the median of what was measured, None where nothing was."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def spread(values: Sequence[float]) -> float:
    """Return how far the rounds lie apart, as a share of their median."""
    centre = median(values)
    return (max(values) - min(values)) / centre if centre else 0.0


def count(value: float | None) -> str:
    """Write a rate with three significant digits or so."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def milliseconds(value: float | None) -> str:
    """Write a time."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def command(name: str) -> str:
    """Return the command that repeats this run."""
    options = shlex.join(sys.argv[1:])
    return f"`python -m benchmarks {name}{' -- ' if options else ''}{options}`\n"


def circumstances() -> str:
    """Say when and on what the figures were taken."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    busy = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{now}; {os.cpu_count()} cores, {_processor()}; Python {platform.python_version()}; "
        f"load average at the start {busy}"
    )


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()
