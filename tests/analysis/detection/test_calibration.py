from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analysis.detection.calibration import RealisedRate, TailTracker, conformal_threshold


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_the_realised_rate_tends_to_the_nominal_one_for_any_tail(rate: float) -> None:
    tracker = TailTracker(rate)
    tracker.grow(2)
    random = np.random.default_rng(0)
    learn = np.ones(2, dtype=bool)
    for _ in range(20_000):
        tails = np.array([random.exponential(0.5), abs(random.normal(0, 0.8))])
        tracker.update(tails, learn)
    np.testing.assert_allclose(tracker.realised_rate(), rate, rtol=0.25)


def test_a_calm_series_keeps_the_limit_at_one() -> None:
    tracker = TailTracker(0.01)
    tracker.grow(1)
    for _ in range(1000):
        tracker.update(np.array([0.3]), np.array([True]))
    assert tracker.limit[0] == 1.0


def test_no_series_becomes_deaf() -> None:
    tracker = TailTracker(0.01)
    tracker.grow(1)
    for _ in range(1000):
        tracker.update(np.array([50.0]), np.array([True]))
    tracker.add_dismissed(np.array([100.0]))
    assert tracker.limit[0] == 3.0


def test_what_may_not_be_learned_is_not() -> None:
    tracker = TailTracker(0.01)
    tracker.grow(2)
    tracker.update(np.array([5.0, np.nan]), np.array([False, True]))
    assert tracker.limit.tolist() == [1.0, 1.0]
    assert np.isnan(tracker.realised_rate()).all()


def test_a_dismissed_deviation_is_counted_once_a_value() -> None:
    """Its first value was counted when it came; only the others were not."""
    tracker = TailTracker(0.01)
    tracker.grow(1)
    for _ in range(97):
        tracker.update(np.array([0.3]), np.array([True]))
    tracker.update(np.array([2.0]), np.array([True]))
    tracker.update(np.array([2.0]), np.array([False]))
    tracker.update(np.array([2.0]), np.array([False]))
    tracker.add_dismissed(np.array([3.0]))
    assert tracker.realised_rate()[0] == pytest.approx(3 / 100)


def test_the_rate_of_late_finds_the_series_that_is_off_and_forgets_it() -> None:
    names = [("service/a", "x"), ("service/b", "x"), ("service/new", "x")]
    realised = RealisedRate(0.01)
    realised.grow(3)
    random = np.random.default_rng(2)
    taken = np.array([True, True, False])

    def note(ticks: int, rates: list[float]) -> None:
        for _ in range(ticks):
            realised.note(taken & (random.random(3) < rates), taken)

    note(1000, [0.01, 0.1, 1.0])
    assert realised.summary("baseline", names).worst is None  # nobody was seen for long enough
    note(4000, [0.01, 0.1, 1.0])
    found = realised.summary("baseline", names)
    assert (found.detector, found.nominal_rate, found.worst) == ("baseline", 0.01, names[1])
    assert 0.07 < found.worst_rate < 0.13
    assert found.seen == 10_000
    assert 0.04 < found.above / found.seen < 0.07
    note(10_000, [0.01, 0.005, 1.0])
    later = realised.summary("baseline", names)
    assert later.worst_rate < 0.02
    assert np.isnan(realised.rates()[2])


@settings(deadline=None)
@given(
    arrays(float, st.integers(1, 80), elements=st.floats(0, 1e6)),
    st.floats(0.001, 0.5),
)
def test_a_conformal_threshold_is_exceeded_at_most_at_its_rate(
    scores: np.ndarray, rate: float
) -> None:
    threshold = conformal_threshold(scores, rate)
    assert threshold in scores
    assert (scores > threshold).mean() <= rate


def test_a_threshold_needs_a_score() -> None:
    with pytest.raises(ValueError, match="at least one"):
        conformal_threshold(np.array([np.nan]), 0.1)
