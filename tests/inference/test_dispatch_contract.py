"""What an engine host relies on, for the dispatcher of every kind of model."""

import asyncio
import itertools
from typing import Any

import numpy as np
import pytest

from inference.dispatch import Dispatcher
from inference.errors import EngineFailedError
from inference.requests import GenerationRequest
from inference.settings import InferenceSettings
from inference.tensor.dispatch import TensorDispatcher
from inference.tensor.requests import TensorTicket
from inference.worker.frames import BatchDone, Tensor
from inference.worker.wire import Finished, Ready

CLOCK = 100.0


class _Link:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


class _Kind:
    """One request at a time of one kind of model."""

    def __init__(self) -> None:
        self.ends: dict[str, Any] = {}
        self.link = _Link()


class _Generation(_Kind):
    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = Dispatcher(
            "m", InferenceSettings(slots=1), lambda: CLOCK, lambda ticket, event: None
        )
        self.ready = Ready(1, "onnxruntime", "cpu", 0.1)
        self._tickets: dict[str, Any] = {}

    def submit(self, name: str, **more: Any) -> None:
        request = GenerationRequest(
            request_id=name, model="m", task="chat", text=name, deadline=CLOCK + 50,
            max_tokens=4, **more,
        )  # fmt: skip
        self._tickets[name] = self.dispatcher.submit(request, 4)

    def answer(self, message: Any) -> Finished:
        values = {"number": message.number, "text": "x", "finish_reason": "stop"}
        numbers = dict.fromkeys(
            name for name in Finished.__dataclass_fields__ if name not in values
        )
        return Finished(**values, **dict.fromkeys(numbers, 1))

    async def end_of(self, name: str) -> Any:
        try:
            return await asyncio.wait_for(self._tickets[name].result(), 5)
        except EngineFailedError as error:
            return error


class _Tensors(_Kind):
    def __init__(self) -> None:
        super().__init__()
        settings = InferenceSettings(tensor_max_batch_rows=1)
        self.dispatcher = TensorDispatcher("m", settings, lambda: CLOCK)
        ends = [["x", "FP32", [-1, 1]]], [["y", "FP32", [-1, 1]]]
        self.ready = Ready(1, "onnxruntime", "cpu", 0.1, *ends)
        self._values = itertools.count()

    def submit(self, name: str, **more: Any) -> None:
        data = np.float32(next(self._values)).tobytes()
        ticket = TensorTicket(
            request_id=name, model="m", rows=1, shapes=((1,),), data=(data,), deadline=CLOCK + 50,
            on_done=lambda ticket, error: self.ends.setdefault(name, error or "answer"), **more,
        )  # fmt: skip
        self.dispatcher.submit(ticket)

    def answer(self, message: Any) -> BatchDone:
        (x,) = message.tensors
        y = Tensor(x.datatype, x.shape, (b"".join(x.data),))
        return BatchDone(message.number, message.rows, CLOCK, CLOCK, [y])

    async def end_of(self, name: str) -> Any:
        return self.ends[name]


@pytest.fixture(params=[_Generation, _Tensors])
def kind(request: pytest.FixtureRequest):
    return request.param


def _run(kind, scenario) -> None:
    async def main() -> None:
        case = kind()
        await scenario(case, case.dispatcher, case.link)

    asyncio.run(main())


async def _turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_nothing_is_sent_before_a_worker_is_there_and_all_in_order_after(kind):
    async def scenario(case, dispatcher, link):
        assert dispatcher.idle
        case.submit("a")
        case.submit("b")
        await _turn()
        assert not link.sent
        assert dispatcher.queue.depth == 2
        assert dispatcher.pending_since is None
        assert not dispatcher.idle

        dispatcher.attach(link, case.ready)
        assert dispatcher.pending_since == CLOCK
        answered = 0
        while answered < len(link.sent):  # it grows
            dispatcher.receive(case.answer(link.sent[answered]))
            answered += 1

        numbers = [message.number for message in link.sent]
        assert len(numbers) == 2
        assert numbers == sorted(set(numbers))
        assert dispatcher.idle
        assert dispatcher.pending_since is None
        assert not isinstance(await case.end_of("a"), Exception)

    _run(kind, scenario)


def test_a_pause_keeps_what_waits_and_lets_what_runs_end(kind):
    async def scenario(case, dispatcher, link):
        dispatcher.attach(link, case.ready)
        case.submit("a")
        await _turn()
        dispatcher.pause()
        case.submit("b")
        await _turn()
        running = len(link.sent)
        assert dispatcher.running == running
        dispatcher.receive(case.answer(link.sent[0]))
        assert len(link.sent) == running
        assert dispatcher.queue.depth == 1

    _run(kind, scenario)


def test_after_a_planned_restart_everything_is_asked_again(kind):
    async def scenario(case, dispatcher, link):
        dispatcher.attach(link, case.ready)
        case.submit("a")
        await _turn()
        number = link.sent[0].number

        suspects = dispatcher.lose("p", planned=True, blamed=(number,), retry_after_seconds=1.0)

        assert list(suspects) == []
        assert dispatcher.running == 0
        assert dispatcher.pending_since is None
        dispatcher.attach(link, case.ready)
        assert len(link.sent) == 2
        dispatcher.receive(case.answer(link.sent[1]))
        assert not isinstance(await case.end_of("a"), Exception)

    _run(kind, scenario)


def test_who_was_worked_on_at_a_crash_is_a_suspect_and_told_when_to_come_back(kind):
    async def scenario(case, dispatcher, link):
        dispatcher.attach(link, case.ready)
        case.submit("a")
        await _turn()
        case.submit("b")
        await _turn()

        ((suspect, make),) = dispatcher.lose(
            "died", planned=False, blamed=(link.sent[0].number,), retry_after_seconds=7.0
        )

        error = await case.end_of("a")
        assert isinstance(error, EngineFailedError)
        assert error.retry_after_seconds == 7.0
        assert tuple(suspect.identity)
        assert make(77).number == 77
        assert make(77).deadline == float("inf")
        sent = len(link.sent)
        dispatcher.attach(link, case.ready)
        dispatcher.receive(case.answer(link.sent[sent]))
        assert not isinstance(await case.end_of("b"), Exception)

    _run(kind, scenario)


def test_golden_examples_are_no_users_and_no_suspects(kind):
    async def scenario(case, dispatcher, link):
        dispatcher.attach(link, case.ready)
        case.submit("g", canary=True, golden=True)
        await _turn()
        assert dispatcher.running == 1
        assert dispatcher.active_users == 0
        assert dispatcher.idle

        suspects = dispatcher.lose(
            "died", planned=False, blamed=(link.sent[0].number,), retry_after_seconds=1.0
        )

        assert list(suspects) == []

    _run(kind, scenario)


def test_answers_that_nobody_waits_for_are_let_go(kind):
    async def scenario(case, dispatcher, link):
        dispatcher.attach(link, case.ready)
        case.submit("a")
        await _turn()
        message = link.sent[0]
        dispatcher.receive(case.answer(message))
        dispatcher.receive(case.answer(message))
        assert dispatcher.idle

    _run(kind, scenario)
