"""What evidence tells of a resource that runs out."""

from __future__ import annotations

from analysis.detection.contract import SignalState
from analysis.diagnosis.causes import catalogue
from analysis.diagnosis.evidence import Observed, to_evidence
from analysis.findings import Direction, Exhaustion
from collectors.contract import SeriesKey


def test_evidence_of_what_runs_out_says_when() -> None:
    observation = next(
        each for each in catalogue().observations.values() if each.signal == "host_disk_used_ratio"
    )
    state = SignalState(
        key=SeriesKey("host/a", observation.signal),
        observed=0.9,
        age_seconds=0.0,
        expected=0.5,
        low=0.4,
        high=0.6,
        score=2.0,
        direction=Direction.UP,
        onset_seconds=1_000_000.0,
        active=True,
        warmed_up=True,
        exhaustion=Exhaustion(
            limit=1.0, per_second=1e-5, seconds=10_000, soonest_seconds=9_000, latest_seconds=None
        ),
    )
    told = to_evidence(Observed(observation, 1.0, state), 1.5, expected=True)
    assert told.statement.endswith("at this rate 100 % in 2.8 h (2.5 h at the soonest)")
