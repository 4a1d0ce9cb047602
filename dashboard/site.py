"""The pages and their addresses: one list, from which navigation and links are made."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

# Not "pages": a folder of that name beside the entry script makes Streamlit run the page alone, without
# the frame, when the first address that anybody opens after a start is not the root.
_VIEWS = Path(__file__).resolve().parent / "views"

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
            _VIEWS / f"{name}.py",
            title=title,
            icon=icon,
            url_path="" if name == "overview" else name,
            default=name == "overview",
        )
        for name, title, icon in _LISTED
    ]


def page_path(name: str) -> Path:
    """Return the file of a page, for links to it."""
    return _VIEWS / f"{name}.py"
