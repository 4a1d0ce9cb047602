"""Reports: the archive, a preview, a download."""

from __future__ import annotations

import html
import json

import streamlit as st

from dashboard import components, context, words
from dashboard.context import Context
from dashboard.data import ReportFile

_PREVIEW_BYTES = 2_000_000
_PREVIEW_HEIGHT = 760
_TYPES = {".html": "text/html", ".md": "text/markdown", ".json": "application/json"}


def sandboxed(document: str) -> str:
    """Return a page that shows a document in a frame without scripts, forms, origin or network.

    Streamlit's own frame for HTML runs scripts and shares the dashboard's origin, so the document is
    put as text into a second frame whose empty ``sandbox`` takes all of that away.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"
    guarded = f'<meta http-equiv="Content-Security-Policy" content="{policy}">{document}'
    return (
        "<style>html,body{margin:0;height:100%;background:#fff}</style>"
        '<iframe sandbox="" title="report" style="border:0;width:100%;height:100%" '
        f'srcdoc="{html.escape(guarded, quote=True)}"></iframe>'
    )


def _preview(file: ReportFile) -> None:
    if file.size_bytes > _PREVIEW_BYTES:
        components.empty("This report is too large to preview.", "Download it instead.")
        return
    text = file.path.read_text("utf-8", errors="replace")
    if file.path.suffix == ".html":
        st.iframe(sandboxed(text), height=_PREVIEW_HEIGHT)
    elif file.path.suffix == ".json":
        try:
            st.json(json.loads(text), expanded=2)
        except json.JSONDecodeError as error:
            components.empty(
                f"This is not JSON: {error}.", "The file may be half written; try again."
            )
    else:
        st.code(text, language="markdown", wrap_lines=True)


def _archive(current: Context) -> None:
    state = components.state_of(current)
    files = state.reports()
    if not files:
        components.empty(
            "The archive is empty.",
            f"`galen report --since 24h --format html --out {state.reports_path}/today.html` writes "
            "one; [reporting] in the configuration writes them on a schedule.",
        )
        return
    by_name = {file.path.name: file for file in files}

    def label(name: str) -> str:
        return f"{name}   ({words.ago(current.now_seconds - by_name[name].written_seconds)})"

    left, right = st.columns([1, 0.16], vertical_alignment="bottom")
    with left:
        name = st.selectbox(
            f"{words.plural(len(files), 'report')}, newest first",
            list(by_name),
            format_func=label,
            key="report",
            bind="query-params",
        )
    file = by_name[name]
    with right:
        st.download_button(
            f"Download ({words.quantity(file.size_bytes, 'bytes')})",
            data=file.path.read_bytes,
            file_name=file.path.name,
            mime=_TYPES[file.path.suffix],
            icon=":material/download:",
            width="stretch",
        )
    _preview(file)


def main() -> None:
    """Lay out the page."""
    with components.guarded("reports"):
        _archive(context.current())


main()
