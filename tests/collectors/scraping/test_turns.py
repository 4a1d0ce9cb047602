from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.scraping.turns import Turns


def test_a_target_keeps_to_its_grid() -> None:
    turns = Turns(15.0, 0.2)
    assert [turns.next_due(now) for now in (0.0, 3.0, 18.1, 40.0)] == [3.0, 18.0, 33.0, 48.0]
    assert turns.missed == 0


def test_turns_that_have_passed_are_left_out_and_counted() -> None:
    turns = Turns(15.0, 0.0)
    assert turns.next_due(1.0) == 15.0
    assert turns.next_due(3600.0) == 3615.0
    assert turns.missed == 239
    assert turns.next_due(3615.0) == 3630.0
    assert turns.missed == 239


def test_a_clock_that_stands_still_gives_no_turn_twice() -> None:
    turns = Turns(1.0, 0.5)
    assert [turns.next_due(7.0) for _ in range(3)] == [7.5, 8.5, 9.5]


def test_an_interval_is_positive() -> None:
    with pytest.raises(ValueError, match="interval_seconds"):
        Turns(0.0, 0.5)


@given(
    st.floats(0.1, 3600),
    st.floats(0, 1),
    st.lists(st.floats(0, 1e5), min_size=1, max_size=50),
)
def test_the_next_turn_is_after_now_and_after_the_last(
    interval: float, phase: float, steps: list[float]
) -> None:
    turns, now, last = Turns(interval, phase), 0.0, -1.0
    for step in steps:
        now += step
        due = turns.next_due(now)
        assert due > last
        assert due >= now
        last = due
