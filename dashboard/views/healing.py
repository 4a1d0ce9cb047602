"""Healing: what it did, what it was kept from, and the switch that stops it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import streamlit as st

from dashboard import approval, components, context, markup, switch, words
from dashboard.components import Tile
from dashboard.context import Context
from dashboard.data import StateDirectory
from dashboard.palette import Tone
from healing.actions import Action, ActionState

_HELPED = {ActionState.CONFIRMED, ActionState.UNDONE}
_DID_NOT_HELP = {ActionState.FAILED, ActionState.ROLLED_BACK}


def summary_panel() -> None:
    """Show the audit in numbers."""
    current = context.current()
    state = components.state_of(current)
    actions = state.actions(since_seconds=current.start_seconds)
    count = Counter(action.state for action in actions)
    helped = sum(count[one] for one in _HELPED)
    judged = helped + sum(count[one] for one in _DID_NOT_HELP)
    within = f"in the last {current.range_name}"
    components.tiles(
        [
            Tile("Actions recorded", str(len(actions)), under=within),
            Tile(
                "Proven to have helped",
                f"{helped / judged:.0%}" if judged else words.ABSENT,
                under=f"{helped} of {judged} verified" if judged else "none was verified",
                tone=None if judged else Tone.UNKNOWN,
            ),
            Tile("Rolled back", str(count[ActionState.ROLLED_BACK]), under=within),
            Tile("Blocked by the guard", str(count[ActionState.BLOCKED]), under=within),
            Tile(
                "Waiting for approval",
                str(count[ActionState.PROPOSED]),
                tone=Tone.WARNING if count[ActionState.PROPOSED] else None,
                under="answer below" if count[ActionState.PROPOSED] else "nothing to answer",
            ),
            _chain_tile(state),
        ]
    )


def _chain_tile(state: StateDirectory) -> Tile:
    if state.journal is None:
        return Tile("Audit chain", words.ABSENT, under="no journal yet", tone=Tone.UNKNOWN)
    broken = state.broken_links()
    if broken:
        return Tile(
            "Audit chain", "broken", under=f"first at event {broken[0]}", tone=Tone.CRITICAL
        )
    return Tile("Audit chain", "intact", under="every event's hash fits", tone=None)


def _proposals(waiting: Sequence[Action], current: Context) -> None:
    for action in waiting:
        approval.action_card(action, current, key="healing")


def _blocked(actions: Sequence[Action]) -> None:
    """Count why the guard said no, the most frequent reason first."""
    reasons = Counter(
        (action.reason or "no reason recorded", words.phrase(action.action))
        for action in actions
        if action.state is ActionState.BLOCKED
    )
    markup.show(
        "counts",
        title="Kept back by the guard, and why",
        rows=[(number, name, reason) for (reason, name), number in reasons.most_common(8)],
        nothing="The guard kept nothing back in this range.",
    )


def _recent_targets(actions: Sequence[Action], current: Context) -> None:
    """Show when each target was last acted upon: that is what a cooldown counts from."""
    last: dict[tuple[str, str], Action] = {}
    for action in actions:
        if action.executed_seconds is not None:
            last.setdefault((action.entity, action.action), action)
    rows = [
        (
            words.ago(current.now_seconds - (action.executed_seconds or 0.0)),
            words.phrase(action.action),
            words.short_entity(action.entity),
        )
        for action in list(last.values())[:8]
    ]
    markup.show(
        "counts",
        title="Last done on each target: cooldowns count from here",
        rows=rows,
        nothing="Nothing was executed in this range.",
    )


def _audit(actions: Sequence[Action], current: Context) -> None:
    if not actions:
        components.empty(
            f"Healing recorded nothing in the last {current.range_name}.",
            "Choose a longer range above. If it never acts, look at the mode in the bar and at "
            "`healing.mode` in the configuration.",
        )
        return
    markup.show(
        "actions",
        rows=[
            {
                "when": words.clock_time(
                    action.created_seconds, current.zone, now_seconds=current.now_seconds
                ),
                "badge": components.action_badge(action),
                "name": words.phrase(action.action),
                "where": words.short_entity(action.entity),
                "cause": words.phrase(action.cause),
                "confidence": f"{action.confidence:.0%}",
                "mode": action.mode.value,
                "actor": action.actor,
                "reason": action.proof[-1] if action.proof else action.reason,
            }
            for action in actions
        ],
    )


def main() -> None:
    """Lay out the page."""
    current = context.current()
    components.live(summary_panel, every_seconds=current.refresh_seconds)
    with components.guarded("healing"):
        state = components.state_of(current)
        switch.panel(state)
        actions = state.actions(since_seconds=current.start_seconds)
        left, right = st.columns(2)
        waiting = [action for action in actions if action.state is ActionState.PROPOSED]
        with left:
            _proposals(waiting, current)
            if not waiting:
                _blocked(actions)
        with right:
            if waiting:
                _blocked(actions)
            _recent_targets(actions, current)
        with st.container(horizontal=True, vertical_alignment="center"):
            components.heading("Audit", f"last {current.range_name}, newest first")
            st.button("Refresh", icon=":material/refresh:", type="tertiary")
        _audit(actions, current)


main()
