import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.degradation import Level
from inference.pressure import AutomaticLevel, PressureMeter, Signals

CALM = Signals()
MIDDLE = Signals(wait_share=0.3)
PRESSED = Signals(refused_share=0.2)
DOWN = Signals(engine_down="engine_down")


def _run(controller, signals, start, seconds):
    """Feed the same signals every second; return the levels."""
    return [
        (controller.update(start + second, signals), int(controller.level))[1]
        for second in range(int(seconds) + 1)
    ]


def _controller(highest=Level.SMALL_MODEL):
    controller = AutomaticLevel(raise_seconds=3.0, lower_seconds=10.0)
    controller.highest = highest
    return controller


def test_pressure_raises_one_level_each_time_it_has_lasted():
    controller = _controller()
    assert _run(controller, PRESSED, 0, 12) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert "no room" in controller.reason


def test_a_short_burst_changes_nothing():
    controller = _controller()
    for start in range(0, 100, 4):
        assert max(_run(controller, PRESSED, start, 2)) == 0
        _run(controller, CALM, start + 3, 0)


def test_without_a_smaller_model_the_level_for_it_is_not_taken():
    assert max(_run(_controller(Level.SHORT_ANSWERS), PRESSED, 0, 60)) == 2


def test_an_engine_that_is_down_goes_to_the_small_model_at_once():
    assert _run(_controller(), DOWN, 0, 4) == [0, 0, 0, 3, 3]


def test_memory_that_is_all_but_gone_refuses_everything():
    controller = _controller()
    assert _run(controller, Signals(memory_share=0.99), 0, 4)[-1] == Level.REFUSE
    assert _run(controller, CALM, 5, 10)[-1] == Level.SMALL_MODEL


def test_calm_lowers_slowly_and_the_middle_holds():
    controller = _controller()
    _run(controller, PRESSED, 0, 6)
    assert controller.level == 2
    assert set(_run(controller, MIDDLE, 7, 100)) == {2}
    levels = _run(controller, CALM, 108, 25)
    assert levels == [2] * 10 + [1] * 10 + [0] * 6
    assert controller.reason == ""


def test_a_level_that_must_come_back_soon_is_kept_longer():
    controller = _controller()
    now, lengths = 0, []
    for _ in range(6):
        while controller.level == 0:
            controller.update(now, PRESSED)
            now += 1
        begun = now
        while controller.level:
            controller.update(now, CALM)
            now += 1
        lengths.append(now - begun)
    assert lengths == sorted(lengths)
    assert lengths[1] >= 1.8 * lengths[0]
    assert lengths[-1] <= 8 * lengths[0] + 10


@given(
    st.lists(
        st.tuples(
            st.floats(0.1, 5),
            st.builds(
                Signals,
                wait_share=st.floats(0, 1),
                refused_share=st.floats(0, 1),
                engine_down=st.sampled_from(["", "", "", "engine_down"]),
                memory_share=st.floats(0, 1),
            ),
        ),
        max_size=100,
    )
)
def test_it_rises_only_under_pressure_and_falls_only_in_calm_by_one(steps):
    controller = _controller()
    now = 0.0
    for seconds, signals in steps:
        now += seconds
        before = controller.level
        changed = controller.update(now, signals)
        assert changed == (controller.level is not before)
        if controller.level > before:
            assert signals.pressure
        if controller.level < before:
            assert signals.calm
            assert controller.level == before - 1


def test_the_meter_counts_refusals_for_lack_of_capacity_only():
    meter = PressureMeter()
    for _ in range(20):
        meter.arrived()
    for reason in ("queue_full", "deadline_unreachable", "low_priority", "rate_limit", "degraded"):
        meter.refused(reason)
    for share in (0.1, 0.2, 0.3, 0.4):
        meter.waited(share)
    meter.expired()
    signals = meter.read(engine_down="", memory_share=0.5)
    assert signals.refused_share == pytest.approx(3 / 20)
    assert signals.wait_share == pytest.approx(2.0 / 5)
    assert meter.read(engine_down="", memory_share=0.5) == Signals(memory_share=0.5)


def test_a_single_refusal_of_a_quiet_service_is_no_pressure():
    meter = PressureMeter()
    meter.arrived()
    meter.refused("queue_full")
    assert meter.read(engine_down="", memory_share=0.0).pressure == ""
