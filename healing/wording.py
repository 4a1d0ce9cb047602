"""What people read about an action. Everything that comes from outside is text, cut to a length."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import Any

from analysis.findings import Hypothesis
from healing.policy import Remedy

_STATEMENTS = 2
_LONGEST = 160


def plan_words(remedy: Remedy, entity: str, parameters: Mapping[str, Any]) -> str:
    """Return what an action would do: ``Restart the engine of service/llm``."""
    return Template(remedy.plan).safe_substitute(_shown(parameters), entity=entity)


def done_words(remedy: Remedy, entity: str, parameters: Mapping[str, Any]) -> str:
    """Return what an action did: ``Restarted the engine of service/llm``."""
    return Template(remedy.done).safe_substitute(_shown(parameters), entity=entity)


def because_words(hypothesis: Hypothesis) -> str:
    """Return the reason for an action: cause, confidence and the strongest evidence.

    ``because no step completes (engine_hang, 97 %): step age 5.2 s, normally 0 s to 0.3 s``
    """
    speaking = sorted(
        (item for item in hypothesis.evidence if item.weight > 0), key=lambda item: -item.weight
    )
    statements = "; ".join(_cut(item.statement) for item in speaking[:_STATEMENTS])
    title = _cut(hypothesis.title)
    title = title[:1].lower() + title[1:] if title[1:2].islower() else title
    words = f"because {title} ({hypothesis.cause}, {hypothesis.confidence:.0%})"
    return f"{words}: {statements}" if statements else words


def _shown(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: _cut(f"{value:g}" if _is_number(value) else str(value))
            for name, value in parameters.items()}  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cut(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 1]}…"
