"""What people read about an action. Everything that comes from outside is text, cut to a length."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import Any

from analysis.findings import Hypothesis
from healing.policy import Remedy

_STATEMENTS = 2
_LONGEST = 160


def plain_text(text: str, longest: int) -> str:
    """Return text on one line without control characters, cut to a length.

    What services answer and people type ends on terminals and pages: it must not steer them.
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"


def plan_words(remedy: Remedy, entity: str, parameters: Mapping[str, Any]) -> str:
    """Return what an action would do: ``Restart the engine of service/llm``."""
    return _filled(remedy.plan, remedy, entity, parameters)


def done_words(remedy: Remedy, entity: str, parameters: Mapping[str, Any]) -> str:
    """Return what an action did: ``Restarted the engine of service/llm``."""
    return _filled(remedy.done, remedy, entity, parameters)


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


def _filled(words: str, remedy: Remedy, entity: str, parameters: Mapping[str, Any]) -> str:
    shown = dict.fromkeys(remedy.parameters_of(1), "an unknown number of")
    for name, value in parameters.items():
        shown[name] = _cut(f"{value:g}" if _is_number(value) else str(value))
    return Template(words).safe_substitute(shown, entity=entity)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cut(text: str) -> str:
    return plain_text(text, _LONGEST)
