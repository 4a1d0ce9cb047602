"""The pages and their addresses: one list, from which navigation and links are made."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_PAGES = Path(__file__).resolve().parent / "pages"

_LISTED = (
    ("overview", "Overview", ":material/monitor_heart:"),
    ("gpus", "GPUs", ":material/memory:"),
    ("service", "Service", ":material/speed:"),
    ("incidents", "Incidents", ":material/crisis_alert:"),
    ("healing", "Healing", ":material/healing:"),
    ("reports", "Reports", ":material/description:"),
)


def pages() -> list[st.Page]:
    """Return every page in the order of the navigation; the first is where one lands."""
    return [
        st.Page(
            _PAGES / f"{name}.py",
            title=title,
            icon=icon,
            url_path="" if name == "overview" else name,
            default=name == "overview",
        )
        for name, title, icon in _LISTED
    ]


def page_path(name: str) -> Path:
    """Return the file of a page, for links to it."""
    return _PAGES / f"{name}.py"
