from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.records import Records
from analysis.detection.settings import BaselineSettings, DetectionSettings
from analysis.history import History
from collectors.contract import Sample, SeriesKey

MINUTE, START = 60.0, 1_800_000_000.0
UNKNOWN = "requests_of_some_kind"


def raised(values: Sequence[float], signal: str = UNKNOWN) -> list[int]:
    """Return the ticks, a minute apart, at which an alarm began."""
    history = History(capacity_ticks=4)
    settings = DetectionSettings.model_validate(
        {"forest": {"enabled": False}, "covariance": {"enabled": False}}
    )
    pipeline = DetectionPipeline(settings, history, executor=SameThreadExecutor())
    found, before = [], False
    for tick, value in enumerate(values):
        now = START + MINUTE * tick
        samples = [Sample(now, "file/x", signal, float(value))]
        active = bool(pipeline.tick(now, history.append(now, samples)).anomalies)
        if active and not before:
            found.append(tick)
        before = active
    return found


def noise(count: int, seed: int = 0) -> np.ndarray:
    return 1000.0 + np.random.default_rng(seed).normal(0, 1.0, count)


def test_an_event_far_below_the_level_in_size_is_found() -> None:
    values = noise(900)
    # Eight sigma, and less than a hundredth of the level.
    values[700:730] += 8.0
    (tick,) = raised(values)
    assert 701 <= tick <= 703


@pytest.mark.parametrize("seed", range(2))
def test_noise_alone_is_no_record(seed: int) -> None:
    assert raised(noise(1500, seed)) == []


def test_what_comes_again_and_again_is_soon_usual() -> None:
    values = noise(2000)
    starts = range(400, 2000, 240)
    for start in starts:
        values[start : start + 3] += 25.0
    # Each alarm moves the record by half: from 5 sigma to more than 25 in four of them.
    assert [(tick - 1) in starts for tick in raised(values)] == [True] * 4


def test_one_event_does_not_hide_a_larger_one() -> None:
    values = noise(1300)
    values[600:610] += 12.0
    values[1100:1110] += 40.0
    assert len(raised(values)) == 2


def test_only_what_is_not_in_the_catalogue_is_ruled() -> None:
    records = Records(BaselineSettings())
    records.grow([SeriesKey("a/b", "host_load"), SeriesKey("a/b", UNKNOWN)])
    assert records.ruled.tolist() == [False, True]
    usual = np.array([3.0, 3.0])
    assert records.threshold(usual, np.zeros(2))[0] == 3.0
    records.keep(np.array([True, False]))
    assert records.threshold(usual[:1], np.zeros(1)) is not None
    assert records.ruled.tolist() == [False]


def test_a_state_from_before_records_is_taken_up() -> None:
    records = Records(BaselineSettings())
    records.grow([SeriesKey("a/b", UNKNOWN)])
    records.check({"level": np.zeros(1)})
    records.restore({"level": np.zeros(1)})
    assert records.ruled.tolist() == [True]
    with pytest.raises(ValueError, match="shape"):
        records.check({name: np.zeros(3) for name in records.state()})
