from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.detection.alert_policy import AlertPolicy
from analysis.detection.settings import AlertSettings


class Single:
    """The policy of one series."""

    def __init__(self, *, values: int = 3, seconds: float = 3.0, hold: float = 0.0) -> None:
        self.policy = AlertPolicy(AlertSettings())
        self.policy.grow(1)
        self.values, self.seconds, self.hold = np.array([values]), np.array([seconds]), hold

    def __call__(self, now: float, score: float) -> bool:
        self.policy.update(
            now,
            np.array([score]),
            minimum_values=self.values,
            minimum_seconds=self.seconds,
            hold_seconds=self.hold,
        )
        return bool(self.policy.active[0])

    def run(self, *scores: float, start: float = 0.0, step: float = 1.0) -> list[bool]:
        return [self(start + step * n, score) for n, score in enumerate(scores)]


def test_a_deviation_has_to_last() -> None:
    assert Single().run(2, 2, 0, 0, 2, 2, 0, 0) == [False] * 8
    assert Single().run(2, 2, 2) == [False, False, True]
    assert Single(values=1).run(2) == [True]


def test_at_a_slow_cadence_seconds_rule() -> None:
    assert Single(values=5).run(2, 2, step=15.0) == [False, True]


def test_one_lucky_value_neither_ends_a_deviation_nor_counts_for_it() -> None:
    assert Single().run(2, 0, 2, 2) == [False, False, False, True]


def test_a_value_that_is_missing_changes_nothing() -> None:
    nan = float("nan")
    assert Single().run(2, nan, 2, nan, 2, nan) == [False, False, False, False, True, True]


def test_it_clears_after_some_time_below_the_clear_level() -> None:
    single = Single()
    single.run(2, 2, 2)
    assert single.run(0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, start=3.0)[-1]
    active = single.run(*[0.1] * 8, start=11.0)
    assert active == [True] * 5 + [False] * 3


def test_the_hold_keeps_an_event() -> None:
    single = Single(values=1, hold=60.0)
    single(0.0, 5.0)
    active = [single(float(t), 0.0) for t in range(1, 80)]
    assert active.index(False) == 60 - 1


def test_soon_after_clearing_it_takes_twice_as_long() -> None:
    single = Single()
    single.run(2, 2, 2, *[0.0] * 8)
    assert single.run(*[2.0] * 6, start=11.0) == [False] * 5 + [True]


def test_the_onset_is_the_first_value_beyond() -> None:
    single = Single()
    single.run(0, 0, 2, 2, 2, 2)
    assert single.policy.onset_seconds[0] == 2.0
    single.run(*[0.0] * 9, start=6.0)
    assert np.isnan(single.policy.onset_seconds[0])


def test_what_fizzles_out_is_counted_once() -> None:
    single = Single()
    counts = []
    for now, score in enumerate([0, 2, 2, 0, 0, 0]):
        single(float(now), score)
        counts.append(float(single.policy.dismissed[0]))
    assert counts == [0, 0, 0, 0, 2, 0]


def test_drop_ends_at_once() -> None:
    single = Single()
    single.run(2, 2, 2)
    single.policy.drop(np.array([True]))
    assert not single.policy.active[0]
    assert not single.policy.deviating[0]


@settings(deadline=None)
@given(st.lists(st.floats(0, 5), max_size=60))
def test_active_and_pending_exclude_each_other_and_have_an_onset(scores: list[float]) -> None:
    single = Single()
    for now, score in enumerate(scores):
        single(float(now), score)
        columns = single.policy._columns
        assert not (columns["active"][0] and columns["pending"][0])
        assert single.policy.deviating[0] == (not np.isnan(single.policy.onset_seconds[0]))
        assert columns["active"][0] == (not np.isnan(single.policy.raised_seconds[0]))
