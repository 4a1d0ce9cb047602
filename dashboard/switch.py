"""The kill switch: a file whose presence stops healing, with the name of who put it there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import streamlit as st
import structlog

from analysis.journal import EventKind
from dashboard import approval, components, context, markup, question, words
from dashboard.context import Context
from dashboard.data import DataError, StateDirectory
from dashboard.palette import Tone

log = structlog.get_logger(__name__)


def panel(state: StateDirectory) -> None:
    """Show the switch and the button that throws it."""
    reason = state.stop_reason()
    left, right = st.columns([1, 0.2], vertical_alignment="center")
    with left:
        if reason is None:
            markup.show(
                "note",
                tone=Tone.INFO,
                sentence="Healing is allowed.",
                detail=f"The kill switch stops every new action at once: the file {state.stop_path}.",
                big=False,
            )
        else:
            markup.show(
                "note",
                tone=Tone.CRITICAL,
                sentence="Healing is stopped by the kill switch.",
                detail=reason or "Whoever threw it left no word.",
                big=False,
                loud=True,
            )
    with right:
        label = "Stop healing…" if reason is None else "Allow healing…"
        st.button(label, key="switch", width="stretch", on_click=question.ask, args=(label,))
    if question.stands(label):
        _ask(stop=reason is None)


@st.dialog("Kill switch", on_dismiss=question.close)
def _ask(*, stop: bool) -> None:
    current = context.current()
    markup.muted(
        "No new action starts until somebody allows it again; what is under way is verified."
        if stop
        else "Healing will act again, as far as its mode and the guard let it.",
    )
    actor = approval.actor_input("switch")
    reason = st.text_input("Why", key="switch-reason", max_chars=300)
    if st.button("Stop it now" if stop else "Allow it now", key="confirm-switch", type="primary"):
        state = components.state_of(current)
        problem = throw(state, actor, reason, current, stop=stop)
        if problem:
            st.error(markup.plain(problem))
        else:
            question.close()
            st.rerun()


def throw(state: StateDirectory, actor: str, reason: str, current: Context, *, stop: bool) -> str:
    """Set or clear the switch and return what went wrong, an empty string if nothing did."""
    name, why = " ".join(actor.split()), " ".join(reason.split())
    if not name:
        return "Enter your name first: the journal records who threw the switch."
    because = f": {why}" if why else ""
    when = words.moment(current.now_seconds, current.zone)
    try:
        if stop:
            _write(state.stop_path, f"Stopped by {name} at {when}{because}\n")
        else:
            state.stop_path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("kill_switch_failed", path=str(state.stop_path), error=str(error))
        return f"The switch was not moved: {error}"
    log.info("kill_switch_moved", stop=stop, actor=name)
    return _record(state, name, because, current.now_seconds, stop=stop)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def _record(
    state: StateDirectory, name: str, because: str, now_seconds: float, *, stop: bool
) -> str:
    try:
        state.append(
            EventKind.HEALING_STOPPED if stop else EventKind.HEALING_ALLOWED,
            time_seconds=now_seconds,
            actor=name,
            summary=f"{name} {'stopped' if stop else 'allowed'} healing{because}",
        )
    except DataError as error:
        # The switch itself is what matters, and it has moved.
        log.warning("kill_switch_not_recorded", error=str(error))
        return f"The switch was moved, but the journal could not record it: {error}"
    return ""
