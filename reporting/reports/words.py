"""Numbers and times the way people read them. Deterministic: the same input, the same text."""

from __future__ import annotations

import math
import re
from datetime import datetime
from zoneinfo import ZoneInfo

NOT_KNOWN = "n/a"

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("", "k", "M", "G", "T")
_UNIT_SIGNS = {
    "celsius": "°C",
    "watts": "W",
    "megahertz": "MHz",
    "percent": "%",
    "requests/second": "req/s",
    "tokens/second": "tok/s",
    "1/second": "/s",
    "percent of a core": "% of a core",
    "kelvin/watt": "K/W",
}
_UNITLESS = frozenset({"", "bool", "count", "state", "level", "code", "event", "bitmask"})


def quantity(value: float | None, unit: str = "") -> str:
    """Say a value with its unit.

    >>> quantity(0.0421, "seconds"), quantity(0.9987, "ratio"), quantity(3.2e9, "bytes")
    ('42.1 ms', '99.87 %', '2.98 GiB')
    """
    if value is None or not math.isfinite(value):
        return NOT_KNOWN
    if unit == "seconds":
        return _seconds(value)
    if unit == "ratio":
        return share(value)
    if unit in {"bytes", "bytes/second"}:
        return _bytes(value) + ("/s" if unit == "bytes/second" else "")
    if unit in _UNITLESS:
        return number(value)
    return f"{number(value)} {_UNIT_SIGNS.get(unit, unit)}"


def number(value: float | None, digits: int = 3) -> str:
    """Say a plain number with thousands separated and about ``digits`` digits that matter."""
    if value is None or not math.isfinite(value):
        return NOT_KNOWN
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    size = abs(value)
    if size >= 1e6:
        place = min(int(math.log10(size) // 3), len(_DECIMAL) - 1)
        return f"{_trimmed(value / 1000**place, digits)} {_DECIMAL[place]}"
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-4:
        return f"{value:.1e}"
    return _trimmed(value, digits)


def _trimmed(value: float, digits: int) -> str:
    before = max(1, math.floor(math.log10(abs(value))) + 1) if value else 1
    smaller = -math.floor(math.log10(abs(value))) - 1 if 0 < abs(value) < 1 else 0
    text = f"{value:.{max(0, digits - before + smaller)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def share(value: float | None) -> str:
    """Say a share between 0 and 1 in percent, with the digits that tell 99.9 from 99.99."""
    if value is None or not math.isfinite(value):
        return NOT_KNOWN
    percent = 100.0 * value
    if percent in {0.0, 100.0}:
        return f"{percent:.0f} %"
    away = min(abs(percent), abs(100.0 - percent))
    decimals = 0 if away >= 10 else 1 if away >= 1 else 2 if away >= 0.1 else 3
    text = f"{percent:.{decimals}f}"
    # 99.9996 must not read as a perfect 100.
    if float(text) == 100.0:
        return "> 99.999 %"
    return "< 0.001 %" if float(text) == 0.0 else f"{text} %"


def axis_label(value: float, unit: str) -> str:
    """Say a value beside an axis: with its unit only where that is short."""
    text = quantity(value, unit)
    return text if len(text) <= 9 else number(value)


def percent(value: float | None) -> str:
    """Say a confidence: whole percents, since it is not known more exactly."""
    return NOT_KNOWN if value is None else f"{100.0 * value:.0f} %"


def _seconds(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0 s"
    if size < 1e-3:
        return f"{_trimmed(value * 1e6, 3)} µs"
    if size < 1:
        return f"{_trimmed(value * 1e3, 3)} ms"
    if size < 120:
        return f"{_trimmed(value, 3)} s"
    if size < 7200:
        return f"{_trimmed(value / 60, 3)} min"
    return f"{_trimmed(value / 3600, 3)} h"


def _bytes(value: float) -> str:
    size, place = abs(value), 0
    while size >= 1024 and place < len(_BINARY) - 1:
        size, place = size / 1024, place + 1
    return f"{_trimmed(math.copysign(size, value), 3)} {_BINARY[place]}"


def moment(seconds: float | None, zone: ZoneInfo) -> str:
    """Say a time with its date."""
    if seconds is None:
        return NOT_KNOWN
    return datetime.fromtimestamp(seconds, zone).strftime("%a %d %b %Y %H:%M:%S")


def clock_time(seconds: float | None, zone: ZoneInfo) -> str:
    """Say a time of day."""
    if seconds is None:
        return NOT_KNOWN
    return datetime.fromtimestamp(seconds, zone).strftime("%H:%M:%S")


def minute_time(seconds: float, zone: ZoneInfo) -> str:
    """Say a time of day to the minute."""
    return datetime.fromtimestamp(seconds, zone).strftime("%H:%M")


def day_time(seconds: float, zone: ZoneInfo) -> str:
    """Say a time with the day of the month, for axes and lists."""
    return datetime.fromtimestamp(seconds, zone).strftime("%d %b %H:%M")


def signal_words(signal: str) -> str:
    """Say a signal's name in words; its unit is said with its values.

    >>> signal_words("llm_request_latency_seconds"), signal_words("gpu_power_usage_watts")
    ('LLM request latency', 'GPU power usage')
    """
    name = re.sub(r"_(seconds|bytes|celsius|watts|mhz|percent|total|kelvin_per_watt)$", "", signal)
    words = name.split("_")
    upper = {"llm": "LLM", "gpu": "GPU", "ecc": "ECC", "xid": "XID", "kv": "KV", "sm": "SM"}
    upper |= {"p50": "p50", "p99": "p99", "pcie": "PCIe", "cpu": "CPU", "oom": "OOM", "tls": "TLS"}
    text = " ".join(upper.get(word, word) for word in words)
    return text[:1].upper() + text[1:]
