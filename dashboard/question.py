"""Which question is open in a dialog, remembered so that a rerun of the page keeps it open."""

from __future__ import annotations

import streamlit as st

_KEY = "question"


def ask(question: str) -> None:
    """Open a question; the page shows its dialog while it stands."""
    st.session_state[_KEY] = question


def stands(question: str) -> bool:
    """Return whether a question is open."""
    return bool(st.session_state.get(_KEY) == question)


def close() -> None:
    """Close whatever question is open."""
    st.session_state.pop(_KEY, None)
