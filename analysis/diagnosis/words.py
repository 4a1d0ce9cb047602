"""Numbers and times in words that a person on call can read at a glance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from analysis.findings import Exhaustion, LevelShift

_ENGINE_STATES = ("idle", "busy", "starting", "draining", "stalled", "restarting", "failed")
_STATES: Mapping[str, Sequence[str]] = {
    "gpu_state": (
        "ok",
        "reset required",
        "lost",
        "gone",
        "unreadable",
        "hung",
        "not read",
        "released for a reset",
    ),
    "gpu_driver_state": (
        "ok",
        "hung",
        "not loaded",
        "library missing",
        "module and library of different versions",
        "no permission",
        "failed",
        "released for a reset",
    ),
    "gpu_recommended_action": (
        "nothing",
        "check the application",
        "restart the application",
        "reset the GPU",
        "reboot the node",
        "contact support",
    ),
    "gpu_recovery_action": (
        "nothing",
        "GPU reset",
        "node reboot",
        "drain P2P",
        "drain and reset",
        "IMEX recovery",
        "bus reset",
        "system reboot",
    ),
}
"""What the numbers of a signal mean, as ``collectors/signals.toml`` describes them."""
_BYTE_STEPS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def clock_words(time_seconds: float) -> str:
    """Return the time of day in UTC: ``03:12:07``."""
    return datetime.fromtimestamp(time_seconds, tz=UTC).strftime("%H:%M:%S")


def number_words(value: float) -> str:
    """Return a number with the digits that are worth reading: ``0.031``, ``4.2``, ``1,250``."""
    if not math.isfinite(value):
        return "not a number"
    size = abs(value)
    if size >= 100 or value == round(value):
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2g}" if size < 1 else f"{value:.2f}"


def value_words(value: float, unit: str, signal: str = "") -> str:
    """Return a value with its unit: ``31 requests``, ``2.0 GiB``, ``37 %``, ``41 ms``, ``no``.

    A state is told in the words of its signal: ``reset required``.
    """
    if not math.isfinite(value):
        return "not a number"
    if unit in {"bool", "state"}:
        return _state_words(value, unit, signal)
    if unit == "ratio":
        return f"{number_words(round(100 * value, 2))} %"
    if unit == "seconds" and 0 < abs(value) < 1:
        return f"{number_words(1000 * value)} ms"
    if unit.startswith("bytes"):
        return _byte_words(value) + unit.removeprefix("bytes")
    plain = unit in {"count", "event", "code", "bitmask", "level", ""}
    return number_words(value) if plain else f"{number_words(value)} {unit}"


def range_words(
    low: float | None, high: float | None, expected: float | None, unit: str, signal: str = ""
) -> str:
    """Return the normal range: ``normally 0 to 4``, ``normally about 3``, or nothing when unknown."""
    if low is not None and high is not None:
        least, most = value_words(low, unit, signal), value_words(high, unit, signal)
        if least == most:
            return f"normally {least}"
        suffix = least.removeprefix(least.split(" ", 1)[0])
        if suffix and most.endswith(suffix):
            least = least.removesuffix(suffix)
        return f"normally {least} to {most}"
    return "" if expected is None else f"normally about {value_words(expected, unit, signal)}"


def span_words(seconds: float) -> str:
    """Return a length of time as people say it: ``40 s``, ``12 min``, ``2.1 h``, ``3.0 days``."""
    for size, name, digits in ((86_400.0, "days", 1), (3600.0, "h", 1), (60.0, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {name}"
    return f"{seconds:.0f} s"


def ahead_words(exhaustion: Exhaustion, unit: str, signal: str = "") -> str:
    """Return when a limit is met: ``at this rate 1,024 GiB in 2.1 h (1.9 h to 2.4 h)``."""
    limit = value_words(exhaustion.limit, unit, signal)
    words = f"at this rate {limit} in {span_words(exhaustion.seconds)}"
    soonest = span_words(exhaustion.soonest_seconds)
    if exhaustion.latest_seconds is None:
        return f"{words} ({soonest} at the soonest)"
    latest = span_words(exhaustion.latest_seconds)
    return words if latest == soonest else f"{words} ({soonest} to {latest})"


def shift_words(shift: LevelShift) -> str:
    """Return how a level moved: ``moved from 20 to 90 requests/second at 03:12:07``."""
    before = value_words(shift.before, shift.unit, shift.signal)
    after = value_words(shift.after, shift.unit, shift.signal)
    return f"moved from {before} to {after} at {clock_words(shift.at_seconds)}"


def _state_words(value: float, unit: str, signal: str) -> str:
    if unit == "bool":
        return "yes" if value >= 0.5 else "no"
    names, index = _STATES.get(signal, _ENGINE_STATES), int(value)
    return names[index] if 0 <= index < len(names) else number_words(value)


def _byte_words(value: float) -> str:
    for size, name in _BYTE_STEPS:
        if abs(value) >= size:
            return f"{value / size:.1f} {name}"
    return f"{number_words(value)} B"
