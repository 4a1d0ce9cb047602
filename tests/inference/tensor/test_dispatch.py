"""Dynamic batching on an injected clock: who goes together, when, and who is told what."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from inference.breaker import BreakerState
from inference.errors import (
    ClientGoneError,
    DeadlineExceededError,
    EngineFailedError,
    OverloadedError,
    RequestTooLargeError,
    UnavailableError,
)
from inference.queueing import Priority
from inference.settings import InferenceSettings
from inference.tensor.dispatch import TensorDispatcher
from inference.tensor.requests import TensorTicket
from inference.worker.frames import BatchDone, RunBatch, Tensor
from inference.worker.wire import Failed, FrameDecoder, Ready, encode

READY = Ready(1, "onnx", "cpu", 0.1, [["x", "FP32", [-1, -1]]], [["y", "FP32", [-1, -1]]], 0)


@dataclass(order=True)
class _Timer:
    at: float
    number: int
    call: Callable[..., Any] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class _Loop:
    """Clock and event loop of a test."""

    def __init__(self) -> None:
        self.now = 100.0
        self._numbers = itertools.count()
        self.timers: list[_Timer] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[..., Any], *args: Any) -> _Timer:
        return self.call_later(0.0, call, *args)

    def call_later(self, delay: float, call: Callable[..., Any], *args: Any) -> _Timer:
        timer = _Timer(self.now + delay, next(self._numbers), lambda: call(*args))
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float = 0.0) -> None:
        until = self.now + seconds
        while self.timers and min(self.timers).at <= until:
            timer = min(self.timers)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            if not timer.cancelled:
                timer.call()
        self.now = until


class _Link:
    """Takes batches as they come out of the wire."""

    def __init__(self) -> None:
        self.batches: list[RunBatch] = []

    def send(self, message: Any) -> None:
        self.batches += FrameDecoder().feed(encode(message))


class _Case:
    """A dispatcher with everything around it."""

    def __init__(self, **settings: Any) -> None:
        self.loop = _Loop()
        self.link = _Link()
        self.dispatcher = TensorDispatcher(
            "m", InferenceSettings(**settings), self.loop.time, loop=lambda: self.loop,
            chance=lambda: 0.0,
        )  # fmt: skip
        self.ended: dict[str, Any] = {}
        self.dispatcher.attach(self.link, READY)

    def ticket(self, name: str, value: float = 1.0, rows: int = 1, width: int = 2, **more: Any):
        data = np.full((rows, width), value, np.float32)
        more.setdefault("deadline", self.loop.now + 1.0)
        return TensorTicket(
            request_id=name, model="m", rows=rows, shapes=((width,),), data=(data.tobytes(),),
            on_done=self._on_done, **more,
        )  # fmt: skip

    def submit(self, name: str, *args: Any, **more: Any) -> TensorTicket:
        ticket = self.ticket(name, *args, **more)
        self.dispatcher.submit(ticket)
        return ticket

    def arrive(self, *names: str, **more: Any) -> list[TensorTicket]:
        """Requests of one turn of the loop."""
        tickets = [self.submit(name, **more) for name in names]
        self.loop.advance()
        return tickets

    def answer(self, number: int, seconds: float = 0.001, invalid: tuple[int, ...] = ()) -> None:
        """The worker doubles each value."""
        batch = next(batch for batch in self.link.batches if batch.number == number)
        (x,) = batch.tensors
        y = np.frombuffer(x.data[0], np.float32) * 2
        self.loop.advance(seconds)
        now = self.loop.now
        outputs = [Tensor(x.datatype, x.shape, (y.tobytes(),))]
        self.dispatcher.receive(BatchDone(number, batch.rows, now - seconds, now, outputs, invalid))

    def _on_done(self, ticket: TensorTicket, error: Exception | None) -> None:
        assert ticket.request_id not in self.ended
        self.ended[ticket.request_id] = error or ticket.outputs()[0].ravel().tolist()

    @property
    def sizes(self) -> list[int]:
        return [batch.rows for batch in self.link.batches]


def test_requests_of_one_turn_share_a_batch_and_get_their_own_rows():
    case = _Case()
    case.submit("a", 1.0)
    case.submit("b", 2.0, rows=2)
    case.loop.advance()

    case.answer(1)

    assert case.sizes == [3]
    assert case.ended == {"a": [2.0, 2.0], "b": [4.0, 4.0, 4.0, 4.0]}
    assert case.dispatcher.idle
    assert case.dispatcher.pending_since is None


def test_rows_gather_while_a_batch_runs():
    case = _Case()
    case.arrive("a")
    case.arrive("b")
    case.arrive("c")
    assert case.sizes == [1]

    case.answer(1)

    assert case.sizes == [1, 2]


def test_a_full_batch_is_sent_ahead_of_the_running_one_and_no_third():
    case = _Case(tensor_max_batch_rows=4)
    case.arrive("a")

    case.arrive(*(f"r{i}" for i in range(11)))

    assert case.sizes == [1, 4]
    case.answer(1)
    assert case.sizes == [1, 4, 4]
    case.answer(2)
    assert case.sizes == [1, 4, 4]
    case.answer(3)
    assert case.sizes == [1, 4, 4, 3]


def test_a_costly_engine_waits_for_the_clients_that_it_just_answered():
    case = _Case()
    for rows, seconds in ((1, 0.0045), (32, 0.0175)):
        case.dispatcher.cost.observe(rows, seconds)
    case.arrive(*(f"a{i}" for i in range(32)))
    case.answer(1, seconds=0.0175)

    case.arrive("b0")
    case.loop.advance(0.001)
    assert case.sizes == [32]
    case.arrive(*(f"b{i}" for i in range(1, 32)))
    assert case.sizes == [32, 32]
    case.answer(2, seconds=0.0175)

    case.arrive("c")
    case.loop.advance(0.049)
    assert case.sizes == [32, 32]
    case.loop.advance(0.002)
    assert case.sizes == [32, 32, 1]


def test_only_requests_of_one_shape_share_a_batch_and_order_is_kept():
    case = _Case()
    case.submit("a", width=2)
    case.submit("b", width=3)
    case.submit("c", width=2)
    case.loop.advance()
    case.answer(1)
    case.answer(2)

    assert [batch.tensors[0].shape for batch in case.link.batches] == [(2, 2), (1, 3)]
    assert set(case.ended) == {"a", "b", "c"}


def test_high_priority_goes_first_and_canaries_before_it():
    case = _Case(tensor_max_batch_rows=1)
    case.arrive("first")
    case.submit("normal")
    case.submit("high", priority=Priority.HIGH)
    case.submit("canary", canary=True)
    case.loop.advance()

    for number in range(1, 5):
        case.answer(number)

    assert list(case.ended) == ["first", "canary", "high", "normal"]


def test_a_request_of_more_rows_than_a_batch_is_refused():
    case = _Case(tensor_max_batch_rows=4)

    with pytest.raises(RequestTooLargeError, match="5 rows; m takes 4"):
        case.submit("a", rows=5)


def test_the_model_may_take_fewer_rows_than_the_service_would_give():
    case = _Case()
    ready = Ready(1, "onnx", "cpu", 0.1, READY.inputs, READY.outputs, 1)
    case.dispatcher.attach(case.link, ready)

    case.arrive("a", "b", "c")

    assert case.sizes == [1, 1]


def test_a_full_line_refuses_with_the_time_that_it_needs():
    case = _Case(tensor_max_queue=2, tensor_max_batch_rows=1)
    case.dispatcher.cost.observe(1, 0.01)
    case.arrive("a", "b")
    case.arrive("c", "d")

    with pytest.raises(OverloadedError) as refused:
        case.submit("e")

    assert refused.value.reason == "queue_full"
    assert refused.value.retry_after_seconds == 1.0


def test_a_line_that_would_take_too_long_refuses_however_many_it_holds():
    case = _Case(tensor_max_batch_rows=1, tensor_queue_seconds=0.1)
    case.dispatcher.cost.observe(1, 0.04)
    case.arrive("a", "b", "c")

    with pytest.raises(OverloadedError, match=r"about 0\.12 s is longer than 0\.1 s"):
        case.submit("d")


def test_what_cannot_be_in_time_is_refused_at_once():
    case = _Case(tensor_max_batch_rows=1)
    case.dispatcher.cost.observe(1, 0.04)
    case.arrive("a", "b", "c")

    with pytest.raises(OverloadedError) as refused:
        case.submit("d", deadline=case.loop.now + 0.1)

    assert refused.value.reason == "deadline_unreachable"
    with pytest.raises(DeadlineExceededError):
        case.submit("e", deadline=case.loop.now)


def test_one_timer_ends_what_is_late_waiting_or_running():
    case = _Case(tensor_max_batch_rows=1)
    case.arrive("running", "ahead", deadline=case.loop.now + 0.5)
    case.arrive("waiting", deadline=case.loop.now + 0.2)
    assert sum(not timer.cancelled for timer in case.loop.timers) == 1

    case.loop.advance(0.21)
    assert set(case.ended) == {"waiting"}
    case.loop.advance(0.3)

    assert all(isinstance(error, DeadlineExceededError) for error in case.ended.values())
    assert set(case.ended) == {"running", "ahead", "waiting"}
    case.answer(1)
    assert case.dispatcher.queue.rows == 0


def test_a_client_that_leaves_leaves_the_line():
    case = _Case(tensor_max_batch_rows=1)
    running, _ahead, waiting = case.arrive("a", "b", "c")

    case.dispatcher.cancel(waiting)
    case.dispatcher.cancel(running)

    assert case.dispatcher.queue.depth == 0
    case.answer(1)
    case.answer(2)
    assert case.sizes == [1, 1]
    assert isinstance(case.ended["a"], ClientGoneError)
    assert isinstance(case.ended["c"], ClientGoneError)


def test_only_the_row_that_is_not_finite_fails():
    case = _Case()
    case.submit("a")
    case.submit("b", rows=2)
    case.submit("c")
    case.loop.advance()

    case.answer(1, invalid=(2,))

    assert case.ended["a"] == [2.0, 2.0]
    assert isinstance(case.ended["b"], EngineFailedError)
    assert case.ended["c"] == [2.0, 2.0]


def test_a_batch_that_fails_is_halved_until_the_culprit_is_alone():
    case = _Case()
    for name in "abcdefgh":
        case.submit(name, 13.0 if name == "f" else 1.0)
    case.loop.advance()

    seen = 0
    while seen < len(case.link.batches):
        batch = case.link.batches[seen]
        seen += 1
        if 13.0 in np.frombuffer(batch.tensors[0].data[0], np.float32):
            case.dispatcher.receive(Failed(batch.number, "step_failed", "no"))
        else:
            case.answer(batch.number)

    assert {name for name, end in case.ended.items() if isinstance(end, Exception)} == {"f"}
    assert len(case.ended) == 8
    assert case.dispatcher.idle
    assert case.dispatcher.stats.splits == 3


def test_a_crash_names_each_request_of_the_batch_as_a_suspect_and_spares_the_others():
    case = _Case(tensor_max_batch_rows=2)
    case.arrive("a", "b", "c", "d", "e")

    suspects = case.dispatcher.lose("died", planned=False, blamed=(1,), retry_after_seconds=2.0)

    assert {ticket.request_id for ticket, _ in suspects} == {"a", "b"}
    message = suspects[0][1](77)
    assert (message.number, message.rows, message.deadline) == (77, 1, float("inf"))
    assert set(case.ended) == {"a", "b"}
    assert isinstance(case.ended["a"], EngineFailedError)
    assert case.ended["a"].retry_after_seconds == 2.0
    case.dispatcher.attach(case.link, READY)
    case.answer(3)
    case.answer(4)
    assert [case.ended[name] for name in "cde"] == [[2.0, 2.0]] * 3


def test_who_was_spared_once_is_not_spared_again_but_always_in_a_planned_restart():
    case = _Case(tensor_max_batch_rows=1)
    case.arrive("a", "b")
    for _ in range(3):
        assert not case.dispatcher.lose("p", planned=True, blamed=(1, 2), retry_after_seconds=1.0)
        case.dispatcher.attach(case.link, READY)
    case.dispatcher.lose("died", planned=False, blamed=(), retry_after_seconds=1.0)
    case.dispatcher.attach(case.link, READY)
    assert not case.ended

    case.dispatcher.lose("died", planned=False, blamed=(), retry_after_seconds=1.0)

    assert {type(error) for error in case.ended.values()} == {EngineFailedError}


def test_a_paused_dispatcher_keeps_what_waits():
    case = _Case()
    case.dispatcher.pause()
    case.arrive("a")
    assert case.sizes == []

    case.dispatcher.attach(case.link, READY)

    assert case.sizes == [1]


def _paused(**settings):
    """A model whose circuit breaker is open."""
    case = _Case(breaker_least_requests=2, breaker_open_seconds=0.1, **settings)
    for number in (1, 2):
        case.arrive(f"bad{number}")
        case.dispatcher.receive(Failed(number, "step_failed", "no"))
    assert case.dispatcher.breaker.state is BreakerState.OPEN
    return case


def test_an_engine_that_fails_most_of_the_time_is_given_a_pause():
    case = _paused()
    with pytest.raises(UnavailableError) as refusal:
        case.submit("user")
    assert refusal.value.reason == "circuit_open"
    assert case.submit("canary", canary=True)


def test_one_probe_decides_and_its_failure_doubles_the_pause():
    case = _paused()
    case.loop.advance(0.11)
    case.arrive("probe")
    with pytest.raises(UnavailableError):
        case.submit("user")
    case.dispatcher.receive(Failed(3, "step_failed", "no"))
    case.loop.advance(0.11)
    assert case.dispatcher.breaker.state is BreakerState.OPEN
    case.loop.advance(0.11)
    assert case.dispatcher.breaker.state is BreakerState.HALF_OPEN


def test_an_answered_probe_closes_the_breaker():
    case = _paused()
    case.loop.advance(0.11)
    case.arrive("probe")
    case.answer(3)
    assert case.ended["probe"] == [2.0, 2.0]
    assert case.dispatcher.breaker.state is BreakerState.CLOSED


def test_a_probe_whose_client_leaves_makes_room_for_the_next():
    case = _paused()
    case.loop.advance(0.11)
    case.dispatcher.cancel(case.submit("gone"))
    assert case.submit("next")
