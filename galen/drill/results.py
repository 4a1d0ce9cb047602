"""What a drill measured, in the shape that `galen drill --json` prints."""

from __future__ import annotations

from statistics import median

from pydantic import BaseModel, ConfigDict


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class FaultResult(_Result):
    """One fault of one repeat. Times are seconds from the injection."""

    fault: str
    repeat: int
    detected: bool
    seconds_to_detect: float | None = None
    rank_of_cause: int | None = None
    """The rank of the true cause when Galen decided: at its first action, else at the end."""
    rank_at_open: int | None = None
    """The same at the moment when the incident was opened."""
    confidence: float | None = None
    """Of the true cause, when Galen decided."""
    leading_cause: str | None = None
    """What Galen ranked first when it decided."""
    remedy: bool
    action: str | None = None
    """The action that was confirmed; where none was, the last that was tried."""
    actions: tuple[str, ...] = ()
    """Every action and how it ended, in order."""
    healed: bool
    """Confirmed with proof while the fault was still in force, and the incident then resolved."""
    seconds_to_heal: float | None = None
    other_incidents: int = 0
    """Incidents beyond the one of the fault."""
    requests: dict[str, int] = {}
    """What the clients saw from injection to the end, by HTTP status; ``none`` is no answer."""


class QuietResult(_Result):
    """The quiet phase: changing load and no fault."""

    seconds: float
    incidents: int
    actions: int
    titles: tuple[str, ...] = ()


class DrillResult(_Result):
    """One whole drill."""

    suite: str
    seed: int
    interval_seconds: float
    faults: tuple[FaultResult, ...]
    quiet: QuietResult

    @property
    def as_hoped(self) -> bool:
        """Whether all was found, ranked first and healed where it can be, and quiet was quiet."""
        found = all(
            row.detected and row.rank_of_cause == 1 and (row.healed or not row.remedy)
            for row in self.faults
        )
        return found and self.quiet.incidents == 0 and self.quiet.actions == 0


def markdown_table(result: DrillResult) -> str:
    """Return the results as a Markdown table, a row a fault, medians over the repeats."""
    lines = [
        (
            "| fault | detected | s to detect (median, worst) | true cause first | confidence "
            "| action | healed | s to heal (median, worst) |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    names = dict.fromkeys(row.fault for row in result.faults)
    lines.extend(_row(name, [row for row in result.faults if row.fault == name]) for name in names)
    quiet = result.quiet
    lines.append(
        f"\nQuiet phase: {quiet.seconds:.0f} s of changing load, "
        f"{quiet.incidents} incidents, {quiet.actions} actions."
    )
    return "\n".join(lines)


def _row(name: str, rows: list[FaultResult]) -> str:
    total = len(rows)
    cells = [
        name,
        f"{sum(row.detected for row in rows)}/{total}",
        _times([row.seconds_to_detect for row in rows]),
        f"{sum(row.rank_of_cause == 1 for row in rows)}/{total}",
        _middle([row.confidence for row in rows]),
        ", ".join(dict.fromkeys(row.action or "none" for row in rows)),
        f"{sum(row.healed for row in rows)}/{total}" if rows[0].remedy else "no remedy",
        _times([row.seconds_to_heal for row in rows]),
    ]
    return "| " + " | ".join(cells) + " |"


def _times(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.1f}, {max(known):.1f}" if known else "-"


def _middle(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.2f}" if known else "-"
