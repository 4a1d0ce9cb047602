"""The colours: calm greys, and one hue for each meaning. ``theme.toml`` and ``style.css`` agree."""

from __future__ import annotations

from enum import StrEnum

from analysis.findings import Severity

BACKGROUND = "#0d1117"
PANEL = "#151b23"
BORDER = "#262e39"
GRID = "#1c232d"
TEXT = "#d5dce6"
MUTED = "#9aa5b4"
FAINT = "#7b8694"

LINES = ("#5b9fe3", "#56b6b0", "#a58ce0", "#c9a15f", "#d98a9e", "#8fa3b8")
"""Line colours in order of use; none of them is the colour of a tone."""

BAND = "rgba(125, 150, 180, 0.16)"


class Tone(StrEnum):
    """What a colour means. ``UNKNOWN`` is grey and never stands for health."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"
    UNKNOWN = "unknown"
    SIMULATED = "simulated"


COLOURS = {
    Tone.OK: "#4fb286",
    Tone.INFO: "#5b9fe3",
    Tone.WARNING: "#e0a33e",
    Tone.CRITICAL: "#e5645f",
    Tone.UNKNOWN: "#6b7583",
    Tone.SIMULATED: "#a58ce0",
}

_SEVERITY = {
    Severity.INFO: Tone.INFO,
    Severity.WARNING: Tone.WARNING,
    Severity.CRITICAL: Tone.CRITICAL,
}
_BADNESS = (Tone.CRITICAL, Tone.WARNING, Tone.UNKNOWN, Tone.INFO, Tone.SIMULATED, Tone.OK)


def tone_of(severity: Severity) -> Tone:
    """Return the tone of a severity."""
    return _SEVERITY[severity]


def badness(tone: Tone) -> int:
    """Return a key that sorts the tone that most needs eyes first."""
    return _BADNESS.index(tone)
