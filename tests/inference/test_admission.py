import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.admission import AdmissionQueue
from inference.errors import DeadlineExceededError, OverloadedError
from inference.estimates import DrainRate, GenerationTime, Typical
from inference.gradient import GradientOptions
from inference.queueing import Priority
from inference.rates import KeyedBuckets, TokenBucket, retry_after
from inference.requests import GenerationRequest, Ticket


def _ticket(number, deadline=1e9, canary=False, priority=Priority.NORMAL):
    request = GenerationRequest(
        "r", "m", "chat", "hi", deadline, 8, canary=canary, priority=priority
    )
    return Ticket(request, number, 8)


def _queue(max_queue=2, slots=1, **options):
    return AdmissionQueue(max_queue, slots, lambda: 0.0, **options)


def test_a_full_queue_refuses_with_the_time_that_it_needs_to_drain():
    queue = _queue(max_queue=2, slots=2)
    queue.drain_rate.observe(3.0)
    for number in range(2):
        queue.admit(_ticket(number), running=2)
    with pytest.raises(OverloadedError) as refusal:
        queue.admit(_ticket(9), running=2)
    assert refusal.value.reason == "queue_full"
    # Three requests ahead of it, 3 s each, two at a time: 4.5 s, and up to half more.
    assert 4.5 <= refusal.value.retry_after_seconds <= 6.75


def test_a_wait_beyond_the_deadline_is_refused_at_once():
    queue = _queue(max_queue=10)
    queue.drain_rate.observe(1.0)
    queue.admit(_ticket(1, deadline=5.0), running=1)
    with pytest.raises(OverloadedError) as refusal:
        queue.admit(_ticket(2, deadline=1.5), running=1)
    assert refusal.value.reason == "deadline_unreachable"
    queue.admit(_ticket(3, deadline=3.5), running=1)


def test_without_a_measurement_nothing_is_predicted():
    queue = _queue(max_queue=10)
    for number in range(10):
        queue.admit(_ticket(number, deadline=0.001), running=1)


def test_a_deadline_that_is_too_short_for_any_answer_is_told_at_once():
    queue = _queue()
    queue.drain_rate.observe(1.0)
    with pytest.raises(DeadlineExceededError) as refusal:
        queue.admit(_ticket(1, deadline=1.5), running=0, service_seconds=4.0, soonest_seconds=2.0)
    assert refusal.value.reason == "deadline_unreachable"
    assert refusal.value.retry_after_seconds is None


def test_where_nobody_waits_one_is_let_through_to_correct_the_estimate():
    queue = _queue(max_queue=9)
    queue.drain_rate.observe(100.0)
    assert queue.admit(_ticket(1, deadline=1.0), running=5, service_seconds=100.0) is None
    with pytest.raises(OverloadedError):
        queue.admit(_ticket(2, deadline=1.0), running=5, service_seconds=100.0)


def test_the_time_of_its_own_answer_counts():
    queue = _queue(max_queue=9)
    queue.drain_rate.observe(1.0)
    queue.admit(_ticket(1), running=1)
    with pytest.raises(OverloadedError):
        queue.admit(_ticket(2, deadline=3.0), running=1, service_seconds=1.5)
    queue.admit(_ticket(3, deadline=3.0), running=1, service_seconds=0.5)


def test_an_old_measurement_refuses_nobody():
    now = [0.0]
    queue = AdmissionQueue(2, 1, lambda: now[0])
    queue.drain_rate.observe(100.0)
    now[0] = 6.0
    assert queue.admit(_ticket(1, deadline=6.5), running=5, service_seconds=50.0) is None


def test_the_wait_is_that_of_the_own_priority():
    queue = _queue(max_queue=10)
    queue.drain_rate.observe(1.0)
    for number in range(4):
        queue.admit(_ticket(number), running=1)
    with pytest.raises(OverloadedError):
        queue.admit(_ticket(8, deadline=2.0), running=1)
    queue.admit(_ticket(9, deadline=2.0, priority=Priority.HIGH), running=1)
    assert queue.pop().number == 9


def test_a_higher_priority_takes_the_place_of_a_lower_one():
    queue = _queue(max_queue=1)
    low, high = _ticket(1, priority=Priority.LOW), _ticket(2, priority=Priority.HIGH)
    assert queue.admit(low, running=1) is None
    assert queue.admit(high, running=1) is low
    with pytest.raises(OverloadedError) as refusal:
        queue.admit(_ticket(3, priority=Priority.HIGH), running=1)
    assert refusal.value.reason == "queue_full"
    assert (queue.depth, queue.pop()) == (1, high)


def test_the_adaptive_limit_refuses_before_the_queue_is_full():
    now = [0.0]
    queue = AdmissionQueue(100, 1, lambda: now[0], gradient=GradientOptions())
    assert queue.limit == 101
    for number in range(60):
        queue.admit(_ticket(number), running=1)
    for _ in range(300):  # one finishes and one comes: the line never gets shorter
        now[0] += 0.1
        queue.finished(0.1, running=0)
    assert queue.limit < 20
    with pytest.raises(OverloadedError) as refusal:
        queue.admit(_ticket(99), running=1)
    assert refusal.value.reason == "concurrency"
    while queue.pop() is not None:
        pass
    assert queue.admit(_ticket(100), running=1) is None


def test_bounds_can_be_changed():
    queue = _queue(max_queue=1, gradient=GradientOptions())
    queue.admit(_ticket(1), running=1)
    queue.max_queue, queue.slots = 2, 3
    assert (queue.max_queue, queue.slots, queue.limit) == (2, 3, 5)
    queue.admit(_ticket(2), running=1)


def test_canaries_pass_a_full_queue_and_have_a_bound_of_their_own():
    queue = _queue(max_queue=1)
    queue.admit(_ticket(1), running=9)
    for number in range(4):
        queue.admit(_ticket(10 + number, canary=True), running=9)
    with pytest.raises(OverloadedError):
        queue.admit(_ticket(99, canary=True), running=9)
    assert queue.depth == 1
    assert [queue.pop().number for _ in range(5)] == [10, 11, 12, 13, 1]
    assert queue.pop() is None


def test_a_requeued_ticket_is_the_next():
    queue = _queue(max_queue=5)
    queue.admit(_ticket(1), running=1)
    queue.requeue(_ticket(7))
    assert queue.pop().number == 7


def test_removing_says_whether_it_waited():
    queue = _queue()
    ticket = _ticket(1)
    queue.admit(ticket, running=1)
    assert queue.remove(ticket)
    assert not queue.remove(ticket)


@given(st.lists(st.floats(0.001, 60), min_size=1, max_size=50), st.integers(1, 64))
def test_the_predicted_wait_lies_within_what_was_observed(seconds, slots):
    rate = DrainRate(lambda: 0.0)
    for value in seconds:
        rate.observe(value)
    wait = rate.wait_seconds(slots, slots)
    assert min(seconds) * 0.999 <= wait <= max(seconds) * 1.001


@given(
    st.floats(0.1, 1000),
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 50)), max_size=30),
)
def test_the_bucket_never_lets_more_through_than_rate_and_burst(rate, steps):
    now = [0.0]
    bucket = TokenBucket(rate, lambda: now[0])
    passed = 0
    for seconds, tries in steps:
        now[0] += seconds
        passed += sum(bucket.take() == 0.0 for _ in range(tries))
    assert passed <= rate * now[0] + max(1.0, rate) + 1e-6


def test_the_bucket_says_when_the_next_token_comes():
    now = [0.0]
    bucket = TokenBucket(0.5, lambda: now[0])
    assert bucket.take() == 0.0
    assert bucket.take() == pytest.approx(2.0)
    now[0] = 2.0
    assert bucket.take() == 0.0
    bucket.set_rate(None)
    assert [bucket.take() for _ in range(100)] == [0.0] * 100


def test_forgotten_clients_keep_memory_bounded_and_others_limited():
    now = [0.0]
    buckets = KeyedBuckets(1.0, most=3, clock=lambda: now[0])
    assert [buckets.take(client) for client in "abc"] == [0.0] * 3
    assert buckets.take("a") == pytest.approx(1.0)
    assert buckets.take("d") == 0.0  # b was seen longest ago and is forgotten
    assert len(buckets) == 3
    assert buckets.take("a") > 0.0
    assert buckets.take("b") == 0.0


@given(st.one_of(st.none(), st.floats(0, 1e6)), st.floats(0, 1))
def test_the_time_to_come_back_is_spread_and_bounded(wait, chance):
    seconds = retry_after(wait, lambda: chance)
    assert max(1.0, min(30.0, wait or 0.0)) <= seconds <= 45.0
    assert retry_after(wait, lambda: 0.0) <= retry_after(wait, lambda: 1.0) / 1.49


def test_the_time_of_an_answer_follows_its_task_and_its_limit():
    times = GenerationTime(lambda: 0.0)
    assert times.seconds("chat", 64) is None
    times.observe("chat", first_token_seconds=0.1, rest_seconds=0.9, tokens=10)
    times.observe("sentiment", first_token_seconds=0.1, rest_seconds=0.0, tokens=1)
    assert times.seconds("chat", 64) == pytest.approx(0.1 + 9 * 0.1)
    assert times.seconds("chat", 4) == pytest.approx(0.1 + 3 * 0.1)
    assert times.seconds("sentiment", 64) == pytest.approx(0.1)
    assert times.seconds("poem", 64) is None


def test_an_estimate_that_nothing_confirms_is_no_estimate():
    now = [0.0]
    rate = DrainRate(lambda: now[0])
    assert not rate.fresh
    rate.observe(1.0)
    assert rate.fresh
    now[0] = 5.1
    assert not rate.fresh
    assert rate.wait_seconds(2, 1) == 2.0


def test_a_stall_that_everything_running_saw_does_not_change_what_is_typical():
    typical = Typical()
    for _ in range(24):
        typical.observe(0.1, 0.0)
    for _ in range(8):
        typical.observe(5.0, 0.0)
    assert typical.value == pytest.approx(0.1)
    for _ in range(24):
        typical.observe(5.0, 0.0)
    assert typical.value == pytest.approx(5.0, rel=0.35)


def test_a_slow_phase_is_forgotten_after_a_canary():
    typical = Typical()
    for _ in range(32):
        typical.observe(5.0, 0.0)
    typical.observe(0.1, 6.0)
    assert typical.value == pytest.approx(0.1)
