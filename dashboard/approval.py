"""Answers to proposals. What is approved is read again at the moment of the answer."""

from __future__ import annotations

from typing import Literal

import streamlit as st
import structlog

from dashboard import components, context, markup, question, words
from dashboard.data import DataError, StateDirectory
from healing.actions import Action, ActionState
from healing.errors import HealingError

log = structlog.get_logger(__name__)

_LONGEST_NAME = 60
_LONGEST_REASON = 300


def action_card(action: Action, current: context.Context, *, key: str) -> None:
    """Show an action; one that waits for a person has the buttons to answer it."""
    with st.container(border=True, key=f"panel-{key}-{action.id}"):
        markup.show(
            "action",
            name=words.phrase(action.action),
            where=words.short_entity(action.entity),
            badge=components.action_badge(action),
            reason=action.reason,
            facts=_facts(action, current),
            proof=action.proof,
        )
        approve, reject = f"approve-{key}-{action.id}", f"reject-{key}-{action.id}"
        if action.state is ActionState.PROPOSED:
            with st.container(horizontal=True):
                st.button(
                    "Approve…", key=approve, type="primary",
                    on_click=question.ask, args=(approve,),
                )  # fmt: skip
                st.button("Reject…", key=reject, on_click=question.ask, args=(reject,))
    if question.stands(approve) or question.stands(reject):
        _ask(action.id, approve=question.stands(approve))


def _facts(action: Action, current: context.Context) -> list[tuple[str, str]]:
    facts = [
        ("risk", action.risk + ("" if action.reversible else ", cannot be undone")),
        ("confidence in the cause", f"{action.confidence:.0%}"),
        ("mode", action.mode.value),
        (
            "proposed" if action.state is ActionState.PROPOSED else "recorded",
            words.ago(current.now_seconds - action.created_seconds),
        ),
    ]
    if action.executed_seconds is not None:
        facts.append(("executed", words.clock_time(action.executed_seconds, current.zone)))
    if action.actor != "galen":
        facts.append(("answered by", action.actor))
    if action.parameters:
        given = ", ".join(f"{name} = {value}" for name, value in action.parameters.items())
        facts.append(("parameters", given))
    return facts


def actor_input(place: str, *, width: int | Literal["stretch"] = "stretch") -> str:
    """Ask who is answering; what was given at one place stands at the next."""
    name = st.text_input(
        "Your name", value=str(st.session_state.get("actor", "")), key=f"actor-{place}",
        max_chars=_LONGEST_NAME, placeholder="for the audit log", width=width,
    )  # fmt: skip
    if name:
        st.session_state["actor"] = name
    return str(name)


@st.dialog("Answer a proposed action", on_dismiss=question.close)
def _ask(action_id: str, *, approve: bool) -> None:
    current = context.current()
    state = components.state_of(current)
    try:
        action = state.action(action_id)
    except (DataError, HealingError) as error:
        st.error(markup.plain(str(error)))
        return
    verb = "Approve" if approve else "Reject"
    markup.show(
        "action",
        name=f"{verb}: {words.phrase(action.action)}",
        where=words.short_entity(action.entity),
        badge=components.action_badge(action),
        reason=action.reason,
        facts=_facts(action, current),
        proof=(),
    )
    actor = actor_input("answer")
    reason = "" if approve else st.text_input("Why not", key="reason", max_chars=_LONGEST_REASON)
    if approve:
        st.caption("The guard checks it once more before it runs.")
    if st.button(f"{verb} now", key="confirm", type="primary"):
        problem = answer(
            state, action_id,
            approve=approve, actor=actor, reason=reason, now_seconds=current.now_seconds,
        )  # fmt: skip
        if problem:
            st.error(markup.plain(problem))
        else:
            question.close()
            st.rerun()


def answer(
    state: StateDirectory,
    action_id: str,
    *,
    approve: bool,
    actor: str,
    reason: str,
    now_seconds: float,
) -> str:
    """Approve or reject a proposal and return what went wrong, an empty string if nothing did.

    The ledger checks the state again in the same transaction, so that of two people, or a person and
    the expiry of the proposal, exactly one is heard.
    """
    name = " ".join(actor.split())
    if not name:
        return "Enter your name first: the audit log records who answered."
    try:
        if approve:
            state.approve(action_id, name, now_seconds)
        else:
            state.reject(action_id, name, " ".join(reason.split()), now_seconds)
    except HealingError as error:
        log.info("answer_refused", action_id=action_id, actor=name, error=str(error))
        return (
            f"Nothing was changed: {error}. Somebody may have answered first; close this and look."
        )
    except DataError as error:
        log.warning("answer_not_written", action_id=action_id, actor=name, error=str(error))
        return f"Nothing was changed: {error}"
    log.info("answer_written", action_id=action_id, actor=name, approve=approve)
    return ""
