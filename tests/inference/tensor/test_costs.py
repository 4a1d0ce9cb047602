"""The measured cost of a batch, and the waits that follow from it."""

import pytest

from inference.tensor.costs import BatchCost, HoldPolicy, WaitingRows


def _costly() -> BatchCost:
    cost = BatchCost()
    cost.observe(1, 0.0045)
    cost.observe(32, 0.0175)
    return cost


def _waiting(rows: int, at: float = 10.0, deadline: float = 99.0) -> WaitingRows:
    return WaitingRows(rows=rows, newest_at=at, oldest_at=at, deadline=deadline)


def test_two_sizes_tell_the_fixed_part_from_the_part_per_row():
    cost = _costly()

    assert cost.row_seconds == pytest.approx(0.013 / 31)
    assert cost.fixed_seconds == pytest.approx(0.0045 - 0.013 / 31)
    assert cost.seconds(16) == pytest.approx(0.0045 + 15 * 0.013 / 31)


def test_one_size_is_no_evidence_of_a_fixed_part():
    cost = BatchCost()
    cost.observe(8, 0.080)

    assert cost.fixed_seconds == 0.0
    assert cost.seconds(4) == pytest.approx(0.040)


def test_the_estimate_follows_an_engine_that_becomes_slow():
    cost = _costly()
    for _ in range(40):
        cost.observe(32, 0.175)

    assert cost.seconds(32) == pytest.approx(0.175, rel=0.01)


def test_sparse_traffic_never_waits():
    policy = HoldPolicy(_costly(), 0.05)
    policy.ended(rows=1, waiting=0, now=10.0)

    assert policy.hold_until(_waiting(1, at=10.02), 32, 10.02) == 10.02


def test_clients_that_were_just_answered_are_waited_for():
    cost = _costly()
    policy = HoldPolicy(cost, 0.05)
    policy.ended(rows=32, waiting=0, now=10.0)

    until = policy.hold_until(_waiting(8), 32, 10.0)

    assert until == pytest.approx(10.0 + cost.fixed_seconds * 24 / 8)


def test_a_full_batch_goes_at_once():
    policy = HoldPolicy(_costly(), 0.05)
    policy.ended(rows=32, waiting=10, now=10.0)

    assert policy.hold_until(_waiting(32), 32, 10.0) == 10.0


def test_the_expectation_is_forgotten():
    policy = HoldPolicy(_costly(), 0.05)
    policy.ended(rows=32, waiting=0, now=10.0)

    assert policy.hold_until(_waiting(1, at=10.06), 32, 10.06) == 10.06


def test_a_cheap_model_never_waits():
    cost = BatchCost()
    cost.observe(1, 5e-6)
    cost.observe(32, 11e-6)
    policy = HoldPolicy(cost, 0.05)
    policy.ended(rows=32, waiting=0, now=10.0)

    assert policy.hold_until(_waiting(1), 32, 10.0) == 10.0


def test_no_wait_goes_beyond_the_cap_of_the_oldest_row():
    policy = HoldPolicy(_costly(), 0.05)
    policy.ended(rows=32, waiting=0, now=10.0)
    waiting = WaitingRows(rows=2, newest_at=10.049, oldest_at=10.0, deadline=99.0)

    assert policy.hold_until(waiting, 32, 10.049) == pytest.approx(10.05)


def test_the_earliest_deadline_ends_the_wait():
    cost = _costly()
    policy = HoldPolicy(cost, 0.05)
    policy.ended(rows=32, waiting=0, now=10.0)

    until = policy.hold_until(_waiting(8, deadline=10.036), 32, 10.0)

    assert until == pytest.approx(10.036 - 2 * cost.seconds(32))
