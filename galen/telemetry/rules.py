"""Recording and alerting rules for Prometheus, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class AlertSeverity(StrEnum):
    """Who has to look when."""

    CRITICAL = "critical"
    """A person, now."""
    WARNING = "warning"
    """A person, within the working day."""


@dataclass(frozen=True, slots=True)
class Record:
    """One recording rule."""

    name: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return it as Prometheus reads it."""
        rule: dict[str, Any] = {"record": self.name, "expr": self.expr}
        return rule | ({"labels": dict(self.labels)} if self.labels else {})


@dataclass(frozen=True, slots=True)
class Alert:
    """One alerting rule; ``summary`` and ``action`` are templates of Prometheus."""

    name: str
    expr: str
    severity: AlertSeverity
    summary: str
    action: str
    """What to do, in a sentence."""
    for_: str = "0s"
    labels: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return it as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.for_,
            "labels": {"severity": self.severity.value, **self.labels},
            "annotations": {"summary": self.summary, "action": self.action},
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated one after the other."""

    name: str
    rules: Sequence[Record | Alert]
    interval: str = "30s"

    def document(self) -> dict[str, Any]:
        """Return it as Prometheus reads it."""
        return {
            "name": self.name,
            "interval": self.interval,
            "rules": [rule.document() for rule in self.rules],
        }


def rule_file(groups: Sequence[Group]) -> dict[str, Any]:
    """Return a rule file as Prometheus reads it."""
    return {"groups": [group.document() for group in groups]}
