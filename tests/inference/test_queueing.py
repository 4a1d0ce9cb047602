from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.queueing import Priority, PriorityQueue

HIGH, NORMAL, LOW = Priority


@dataclass(eq=False)
class Item:
    priority: Priority
    enqueued_at: float = 0.0


def _queue(*items, ageing=1.0):
    queue = PriorityQueue[Item](ageing)
    for item in items:
        queue.push(item)
    return queue


def _drain(queue):
    popped = []
    while (item := queue.pop()) is not None:
        popped.append(item)
    return popped


def test_the_higher_priority_goes_first_and_equals_keep_their_order():
    items = [Item(LOW, 0.0), Item(NORMAL, 0.1), Item(HIGH, 0.2), Item(NORMAL, 0.3), Item(HIGH, 0.4)]
    popped = _drain(_queue(*items))
    assert [items.index(item) for item in popped] == [2, 4, 1, 3, 0]


def test_what_has_waited_long_enough_passes_a_higher_newcomer():
    old = Item(LOW, 0.0)
    assert _queue(old, Item(HIGH, 1.9)).pop().priority is HIGH
    assert _queue(old, Item(HIGH, 2.1)).pop() is old


def test_low_does_not_starve_under_a_stream_of_high():
    low = Item(LOW, 0.0)
    queue = _queue(low)
    now = 0.0
    while True:  # one high arrives for each one that is served
        now += 0.1
        queue.push(Item(HIGH, now))
        if queue.pop() is low:
            break
        assert now < 3.0, "low waits for ever"


def test_a_full_line_gives_up_the_last_of_the_lowest_lane():
    first, last, normal = Item(LOW, 0.0), Item(LOW, 0.1), Item(NORMAL, 0.2)
    queue = _queue(first, last, normal)
    assert queue.displace(Item(NORMAL, 0.3)) is last
    assert queue.displace(Item(LOW, 0.3)) is None
    assert queue.displace(Item(HIGH, 0.3)) is first
    assert queue.displace(Item(HIGH, 0.3)) is normal
    assert len(queue) == 0


def test_one_that_has_aged_past_the_newcomer_is_not_displaced():
    assert _queue(Item(LOW, 0.0)).displace(Item(NORMAL, 1.5)) is None


def test_an_item_that_is_put_back_is_the_next_of_its_lane():
    back = Item(NORMAL, 0.5)
    queue = _queue(Item(NORMAL, 0.0), Item(HIGH, 0.0))
    queue.push_front(back)
    assert [item.priority for item in queue] == [HIGH, NORMAL, NORMAL]
    assert _drain(queue)[1] is back


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.sampled_from(Priority), st.floats(0, 1)),
            st.tuples(st.sampled_from(["pop", "remove", "displace"]), st.sampled_from(Priority),
                      st.floats(0, 1)),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_nothing_is_lost_and_nothing_comes_twice(steps):
    queue = PriorityQueue[Item](0.7)
    inside: list[Item] = []
    now = 0.0
    for action, priority, seconds in steps:
        now += seconds
        if action == "push":
            inside.append(Item(priority, now))
            queue.push(inside[-1])
        elif action == "remove" and inside:
            assert queue.remove(inside[0])
            assert not queue.remove(inside.pop(0))
        elif action == "displace":
            out = queue.displace(Item(priority, now))
            if out is not None:
                assert out.priority > priority
                inside.remove(out)
        elif action == "pop":
            out = queue.pop()
            assert (out is None) == (not inside)
            if out is not None:
                turn = min(item.enqueued_at + 0.7 * item.priority for item in inside)
                assert out.enqueued_at + 0.7 * out.priority == pytest.approx(turn)
                inside.remove(out)
        assert len(queue) == len(inside)
        assert set(queue) == set(inside)
        assert queue.ahead_of(LOW) == len(inside)
