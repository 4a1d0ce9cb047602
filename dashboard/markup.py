"""HTML from templates that escape everything they are given, and text that Markdown leaves alone.

Names of entities, titles and reasons come from exporters, prompts and logs: they are text. Templates
are rendered with escaping on, and nothing in the dashboard marks data as safe.
"""

from __future__ import annotations

import re
from functools import cache

import jinja2
import streamlit as st

from dashboard import words
from dashboard.palette import COLOURS

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:^=&@/])")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dashboard"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["words"] = words
    environment.globals["colours"] = COLOURS
    return environment


def render(template: str, /, **data: object) -> str:
    """Return a template of ``templates/`` filled with data, all of it escaped."""
    return _environment().get_template(f"{template}.html").render(**data)


def show(template: str, /, **data: object) -> None:
    """Write a filled template to the page."""
    st.html(render(template, **data))


def muted(text: str) -> None:
    """Write a short remark that is as wide as its text."""
    st.html(render("muted", text=text), width="content")


def plain(text: str) -> str:
    """Return text so that Streamlit's Markdown shows it letter by letter, on one line.

    Every character that can begin a link, an image, a formula, a colour, an icon or a tag is escaped.
    """
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
