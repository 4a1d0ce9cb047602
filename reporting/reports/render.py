"""Renders a report: HTML in one file without scripts, Markdown, or JSON."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache, partial
from importlib import resources
from typing import Any
from zoneinfo import ZoneInfo

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reporting.alerts.messages import duration
from reporting.reports import words
from reporting.reports.model import Report
from reporting.reports.plot import chart_svg
from reporting.settings import Format

__all__ = ["Format", "render"]

_PACKAGE = "reporting.reports"
_CARDS = 40
"""Incidents with a card of their own in HTML and Markdown; the others are rows of a table."""


def render(report: Report, format: Format) -> str:  # noqa: A002 - the word that people use
    """Return a report as text; the same report always gives the same text.

    In HTML all text is escaped, a content security policy forbids scripts and loads, and charts are
    inline SVG: the file can be mailed, archived and opened anywhere.
    """
    if format is Format.JSON:
        return report.model_dump_json(indent=2) + "\n"
    if format is Format.MARKDOWN:
        return _markdown_environment().get_template("report.md.j2").render(_names(report)) + "\n"
    style = resources.files(_PACKAGE).joinpath("templates/report.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = _html_environment().get_template("report.html.j2")
    # The style sheet and the hash are ours; everything else is escaped by the environment.
    text = template.render(
        _names(report),
        style=Markup(style),  # noqa: S704
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
    )
    return text + "\n"


def _names(report: Report) -> dict[str, Any]:
    zone = ZoneInfo(report.window.timezone)
    return {
        "report": report,
        "cards": report.incidents[:_CARDS],
        "others": report.incidents[_CARDS:],
        "moment": partial(words.moment, zone=zone),
        "clock_time": partial(words.clock_time, zone=zone),
        "day_time": partial(words.day_time, zone=zone),
        "chart_svg": partial(chart_svg, zone=zone),
        "quantity": words.quantity,
        "number": words.number,
        "share": words.share,
        "percent": words.percent,
        "duration": lambda seconds: words.NOT_KNOWN if seconds is None else duration(seconds),
        "signal_words": words.signal_words,
        "availability": _availability,
        "by_group": lambda group: [row for row in report.actions if row.group == group],
        "healed": sum(row.healed for row in report.incidents),
        "still_open": sum(row.resolved_seconds is None for row in report.incidents),
    }


def _availability(low: float | None, high: float | None) -> str:
    one, other = words.share(low), words.share(high)
    return one if one == other else f"{one} to {other}"


@cache
def _html_environment() -> Environment:
    return Environment(
        loader=PackageLoader(_PACKAGE, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _markdown_environment() -> Environment:
    return Environment(
        loader=PackageLoader(_PACKAGE, "templates"),
        autoescape=False,  # noqa: S701 - Markdown has other signs than HTML; escape_markdown has them
        finalize=escape_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


_SIGNS = re.compile(r"([\\`*\[\]<>|~&])")
_EDGE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_LINE_START = re.compile(r"^(\s*)([#+=-]|\d+(?=[.)](?:\s|$)))")
_LINE_BREAKS = re.compile(r"\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def escape_markdown(value: object) -> object:
    r"""Take the meaning from signs of Markdown and of HTML in a text.

    >>> print(escape_markdown("*<b>x</b>* llm_queue_depth https://evil"))
    \*\<b\>x\</b\>\* llm_queue_depth https\://evil
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = _SIGNS.sub(r"\\\1", _LINE_BREAKS.sub(" ", value))
    text = _EDGE_UNDERSCORE.sub(r"\\_", text)
    text = text.replace("://", r"\://")
    return _LINE_START.sub(_quote_start, text)


def _quote_start(match: re.Match[str]) -> str:
    space, sign = match.group(1), match.group(2)
    # A number that would begin a list keeps its digits and loses the meaning of what follows.
    return f"{space}{sign}\u200b" if sign.isdigit() else f"{space}\\{sign}"
