"""Numbers, times and names as people read them. ``—`` stands for a value that is not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from collectors.entities import FLEET

ABSENT = "—"

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_STEPS = ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", 1, "s"))


def _seconds(value: float) -> tuple[str, str]:
    size = abs(value)
    if size < 0.001:
        return f"{value * 1e6:.0f}", "µs"
    if size < 1:
        return f"{value * 1e3:.0f}" if size >= 0.1 else f"{value * 1e3:.1f}", "ms"
    if size < 10:
        return f"{value:.2f}", "s"
    return (f"{value:.1f}", "s") if size < 120 else (duration(value), "")


def _bytes(value: float) -> tuple[str, str]:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return (f"{value:.0f}" if unit == "B" else f"{value:.1f}"), unit
        value /= 1024
    return f"{value:.2f}", "TiB"


def _number(value: float) -> str:
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.2f}M"
    if size >= 10_000:
        return f"{value / 1e3:.1f}k"
    if size >= 100 or (value == int(value) and size < 1e6):
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


_UNITS: dict[str, Callable[[float], tuple[str, str]]] = {
    "seconds": _seconds,
    "bytes": _bytes,
    "bytes/second": lambda value: (_bytes(value)[0], _bytes(value)[1] + "/s"),
    "ratio": lambda value: (f"{value * 100:.1f}", "%"),
    "percent": lambda value: (f"{value:.0f}", "%"),
    "percent of a core": lambda value: (f"{value:.0f}", "% of a core"),
    "celsius": lambda value: (f"{value:.0f}", "°C"),
    "watts": lambda value: (f"{value:.0f}", "W"),
    "megahertz": lambda value: (f"{value:.0f}", "MHz"),
    "kelvin/watt": lambda value: (f"{value:.3f}", "K/W"),
    "requests/second": lambda value: (_number(value), "req/s"),
    "tokens/second": lambda value: (_number(value), "tok/s"),
    "1/second": lambda value: (_number(value), "/s"),
    "bool": lambda value: ("yes" if value >= 0.5 else "no", ""),
    "code": lambda value: (f"{value:.0f}", ""),
    "bitmask": lambda value: (f"{int(value):#x}", ""),
    "count": lambda value: (_number(value), ""),
    "event": lambda value: (_number(value), ""),
    "state": lambda value: (f"{value:.0f}", ""),
    "level": lambda value: (f"{value:.0f}", ""),
}


def amount(value: float | None, unit: str) -> tuple[str, str]:
    """Return a value and its unit as a person reads them: ``(0.82, "seconds")`` is ``("820", "ms")``."""
    if value is None or not math.isfinite(value):
        return ABSENT, ""
    known = _UNITS.get(unit)
    return known(value) if known else (_number(value), unit)


def quantity(value: float | None, unit: str) -> str:
    """Return :func:`amount` as one text: ``820 ms``."""
    number, name = amount(value, unit)
    return f"{number} {name}".strip()


def duration(seconds: float) -> str:
    """Return a length of time in at most two units: ``6 min 10 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    for size, name, smaller, smaller_name in _STEPS:
        if whole >= size:
            head, rest = f"{whole // size} {name}", whole % size // smaller
            return f"{head} {rest} {smaller_name}" if rest else head
    return f"{whole} s"


def ago(seconds: float) -> str:
    """Return how long ago something was: ``just now``, ``4 min ago``."""
    if seconds < 1:
        return "just now"
    head = duration(seconds) if seconds < 10 * _MINUTE else duration(seconds // _MINUTE * _MINUTE)
    return f"{head} ago"


def offset(seconds: float) -> str:
    """Return a signed distance in time: ``+12 s``, ``-3 min``."""
    sign = "-" if seconds < 0 else "+"
    return f"{sign}{duration(abs(seconds))}"


def clock_time(seconds: float, zone: ZoneInfo, *, now_seconds: float | None = None) -> str:
    """Return the time of day, with the date where it is not the day of ``now_seconds``."""
    local = datetime.fromtimestamp(seconds, UTC).astimezone(zone)
    if now_seconds is not None:
        today = datetime.fromtimestamp(now_seconds, UTC).astimezone(zone).date()
        if local.date() != today:
            return local.strftime("%d %b %H:%M")
    return local.strftime("%H:%M:%S")


def moment(seconds: float, zone: ZoneInfo) -> str:
    """Return date, time and zone in full."""
    return datetime.fromtimestamp(seconds, UTC).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %Z")


def short_entity(name: str) -> str:
    """Return an entity without the kind of its top: ``box1 / gpu 0`` for ``host/box1/gpu/0``."""
    if name == FLEET:
        return "fleet"
    pieces = name.split("/")
    if len(pieces) < 2:
        return name
    pairs = [f"{kind} {label}" for kind, label in zip(pieces[2::2], pieces[3::2], strict=False)]
    return " / ".join([pieces[1], *pairs])


def fit(text: str, length: int) -> str:
    """Return a text of at most ``length`` characters: the middle goes, since ends tell names apart."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return a count with its noun: ``1 incident``, ``2 incidents``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


_ACRONYMS = {"gpu": "GPU", "llm": "LLM", "sm": "SM", "cpu": "CPU", "xid": "XID", "ecc": "ECC"}


def phrase(name: str) -> str:
    """Return an identifier in words: ``restart engine``, ``GPU overheating``."""
    pieces = name.replace("-", "_").replace(" ", "_").split("_")
    return " ".join(_ACRONYMS.get(piece, piece) for piece in pieces)


_SIGNALS = {
    "llm_request_latency_seconds": "p95 latency",
    "llm_request_latency_p50_seconds": "p50 latency",
    "llm_request_latency_p99_seconds": "p99 latency",
    "llm_time_to_first_token_seconds": "time to first token",
    "llm_requests_per_second": "requests",
    "llm_tokens_per_second": "tokens",
    "llm_error_ratio": "errors",
    "llm_rejected_ratio": "rejected",
    "llm_queue_depth": "queue",
    "gpu_temperature_margin_celsius": "margin to slowdown",
}
_SUFFIXES = ("_seconds", "_celsius", "_bytes", "_watts", "_mhz", "_percent", "_total", "_ratio")


def signal_name(signal: str) -> str:
    """Return a signal in words, for a chart's title; its catalogue name stays beside the evidence."""
    if signal in _SIGNALS:
        return _SIGNALS[signal]
    for suffix in _SUFFIXES:
        signal = signal.removesuffix(suffix)
    return phrase(signal)
