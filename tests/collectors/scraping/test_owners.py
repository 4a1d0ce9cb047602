from __future__ import annotations

from structlog.testing import capture_logs

from collectors.contract import Sample
from collectors.scraping.owners import SeriesOwners

ONE = [Sample(1.0, "host/a/gpu/0", "gpu_power_usage_watts", 100.0)]
OTHER = [
    Sample(1.0, "host/a/gpu/0", "gpu_power_usage_watts", 300.0),
    Sample(1.0, "host/a/gpu/1", "gpu_power_usage_watts", 200.0),
]


def test_two_exporters_that_claim_one_gpu_are_not_mixed() -> None:
    owners = SeriesOwners()
    with capture_logs() as logged:
        for _ in range(3):
            assert owners.admit("first", ONE) == ONE
            assert owners.admit("second", OTHER) == OTHER[1:]
    assert [row["event"] for row in logged] == ["series_claimed_twice"]
    (problem,) = owners.problems()
    assert "second gives host/a/gpu/0, which first gives already" in problem


def test_who_is_gone_claims_nothing() -> None:
    owners = SeriesOwners()
    owners.admit("first", ONE)
    owners.admit("second", OTHER)
    owners.release("first")
    assert owners.admit("second", OTHER) == OTHER
    assert owners.admit("first", ONE) == []
    owners.release("second")
    assert not owners.problems()
