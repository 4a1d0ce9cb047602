from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analysis.detection.calibration import TailTracker, conformal_threshold


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
