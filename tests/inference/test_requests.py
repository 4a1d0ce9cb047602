import asyncio

import pytest

from inference.errors import EngineFailedError
from inference.requests import GenerationRequest, Ticket
from inference.worker.wire import Finished, Token

REQUEST = GenerationRequest("r", "tiny", "chat", "hi", deadline=10.0, max_tokens=8, stream=True)
END = Finished(1, "abc", "stop", 1, 3, 0, 1.0, 2.0, 3.0, 4.0)


def _collect(ticket):
    async def collect():
        return [event async for event in ticket.events()]

    return asyncio.run(collect())


def test_texts_that_wait_for_a_slow_client_become_one_event():
    ticket = Ticket(REQUEST, 1, 8)
    for text in "abc":
        ticket.put(Token(1, text))
    ticket.put(END)
    assert _collect(ticket) == [Token(1, "abc"), END]


def test_an_error_comes_after_the_texts_before_it():
    ticket = Ticket(REQUEST, 1, 8)
    ticket.put(Token(1, "a"))
    ticket.put(EngineFailedError("broken"))
    events = []

    async def collect():
        async for event in ticket.events():
            events.append(event)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(EngineFailedError):
        asyncio.run(collect())
    assert events == [Token(1, "a")]
