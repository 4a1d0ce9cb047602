from __future__ import annotations

from galen.drill.results import DrillResult, FaultResult, QuietResult, markdown_table


def row(**changes: object) -> FaultResult:
    fields: dict[str, object] = {
        "fault": "engine_hang", "repeat": 1, "detected": True, "seconds_to_detect": 4.0,
        "rank_of_cause": 1, "confidence": 0.9, "remedy": True, "action": "restart_engine",
        "healed": True, "seconds_to_heal": 12.0,
    }  # fmt: skip
    return FaultResult.model_validate({**fields, **changes})


def result(*rows: FaultResult, incidents: int = 0) -> DrillResult:
    quiet = QuietResult(seconds=300, incidents=incidents, actions=0)
    return DrillResult(suite="core", seed=1, interval_seconds=1.0, faults=rows, quiet=quiet)


def test_all_well_needs_detection_the_cause_first_healing_and_quiet() -> None:
    assert result(row()).as_hoped
    assert result(row(remedy=False, healed=False)).as_hoped
    assert not result(row(healed=False)).as_hoped
    assert not result(row(rank_of_cause=2)).as_hoped
    assert not result(row(detected=False)).as_hoped
    assert not result(row(), incidents=1).as_hoped


def test_the_table_has_a_row_a_fault_with_medians_over_repeats() -> None:
    table = markdown_table(
        result(
            row(seconds_to_detect=2.0),
            row(repeat=2, seconds_to_detect=8.0, rank_of_cause=2),
            row(
                fault="client_errors", remedy=False, healed=False, seconds_to_heal=None, action=None
            ),
        )
    )
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(lines) == 3
    assert "| engine_hang | 2/2 | 5.0, 8.0 | 1/2 |" in table
    assert "| client_errors | 1/1 |" in table
    assert "no remedy" in table
