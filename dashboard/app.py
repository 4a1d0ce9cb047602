"""The dashboard's entry point: ``streamlit run dashboard/app.py``; see :mod:`dashboard.launch`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import streamlit as st

from dashboard import components, context, site


def main() -> None:
    """Draw the frame and run the chosen page in it."""
    current = context.current()
    # A named icon would be fetched from a font server on the internet.
    st.set_page_config(
        page_title=current.settings.title,
        page_icon=str(Path(__file__).with_name("icon.svg")),
        layout="wide",
    )
    st.html(
        f"<style>{resources.files('dashboard').joinpath('style.css').read_text('utf-8')}</style>"
    )
    page = st.navigation(site.pages(), position="top")
    left, right = st.columns([1, 0.32], vertical_alignment="center")
    with right, st.container(horizontal=True, horizontal_alignment="right"):
        # The key is the name of the query parameter, so that a link carries the range.
        st.segmented_control(
            "Time range",
            list(context.RANGES),
            default=context.DEFAULT_RANGE,
            required=True,
            key="range",
            bind="query-params",
            label_visibility="collapsed",
        )
    with left:
        components.live(components.bar, every_seconds=current.settings.refresh_seconds)
    if page.url_path:
        # The verdict of the overview says the same, as its first sentence.
        components.live(components.stale_notice, every_seconds=current.settings.refresh_seconds)
    page.run()


main()
