from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from collectors.clock import SteadyClock

DAY = 1_700_000_000.0


class World:
    """A machine whose wall clock can be set."""

    def __init__(self) -> None:
        self.passed = 500.0
        self.error = 0.0
        self.clock = SteadyClock(self.wall, lambda: self.passed, confirm_seconds=60.0)

    def wall(self) -> float:
        return DAY + self.passed + self.error

    def later(self, seconds: float) -> float:
        """Let time pass in ticks of a second and return the clock's error against the truth."""
        for _ in range(int(seconds)):
            self.passed += 1.0
            self.clock()
        return self.clock() - DAY - self.passed


@pytest.fixture
def world() -> World:
    return World()


def test_it_is_the_wall_clock_while_that_goes_well(world: World) -> None:
    assert world.later(1000) == 0.0


def test_small_corrections_are_followed(world: World) -> None:
    world.error = 0.3
    assert world.later(1) == pytest.approx(0.3)
    world.error = -0.1
    assert world.later(2) == pytest.approx(-0.1)


@pytest.mark.parametrize("jump", [-7200.0, 7200.0, 1e9, -1e9])
def test_a_short_jump_leaves_no_trace_and_is_said_once(world: World, jump: float) -> None:
    with capture_logs() as logged:
        world.error = jump
        assert world.later(30) == 0.0
        world.error = 0.0
        assert world.later(300) == 0.0
    assert [row["event"] for row in logged] == ["clock_jumped"]


def test_a_jump_forward_that_stands_is_followed_at_once(world: World) -> None:
    world.error = 7200.0
    assert world.later(59) == 0.0
    assert world.later(3) == 7200.0


def test_a_jump_backward_that_stands_is_followed_at_half_speed(world: World) -> None:
    world.error = -100.0
    assert world.later(60) == pytest.approx(0.0, abs=1)
    assert world.later(100) == pytest.approx(-50.0, abs=1)
    assert world.later(102) == -100.0


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(-1e10, 1e10, allow_nan=False)),
        min_size=2,
        max_size=60,
    )
)
def test_it_never_goes_back_whatever_the_wall_clock_does(course: list[tuple[float, float]]) -> None:
    world = World()
    before = world.clock()
    for seconds, error in course:
        world.passed += seconds
        world.error = error
        now = world.clock()
        assert now >= before
        before = now
