"""The dispatcher of a language model, with a link that only listens and a clock that is set."""

import asyncio

import pytest

from inference.breaker import BreakerState
from inference.dispatch import Dispatcher
from inference.errors import (
    DeadlineExceededError,
    EngineFailedError,
    OverloadedError,
    UnavailableError,
)
from inference.queueing import Priority
from inference.requests import GenerationRequest
from inference.settings import InferenceSettings
from inference.worker.wire import Cancel, Failed, Finished, Generate, Ready


class Link:
    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


class Bench:
    """One slot, two places in the queue, a breaker that needs two failures."""

    def __init__(self, **settings):
        self.now = 100.0
        self.ended = []
        values = {"slots": 1, "max_queue": 2, "breaker_least_requests": 2,
                  "breaker_open_seconds": 1.0, **settings}  # fmt: skip
        self.dispatcher = Dispatcher(
            "m", InferenceSettings(**values), lambda: self.now,
            lambda *ended: self.ended.append(ended),
        )  # fmt: skip
        self.link = Link()
        self.dispatcher.attach(self.link, Ready(1, "onnx", "cpu", 0.1))

    def submit(self, seconds=50.0, **fields):
        request = GenerationRequest("r", "m", "chat", "hi", self.now + seconds, 8, **fields)
        return self.dispatcher.submit(request, 8)

    def finish(self, ticket, seconds=0.1):
        begun, self.now = self.now, self.now + seconds
        self.dispatcher.receive(
            Finished(ticket.number, "x", "stop", 1, 2, 0, begun, begun, begun, self.now)
        )

    def fail(self, ticket, code="step_failed"):
        self.dispatcher.receive(Failed(ticket.number, code, "no"))

    def opened(self):
        for _ in range(2):
            self.fail(self.submit())
        assert self.dispatcher.breaker.state is BreakerState.OPEN
        return self

    @property
    def generated(self):
        return [message.number for message in self.link.sent if isinstance(message, Generate)]


def run(scenario):
    """Run a scenario inside a loop, for the timers of deadlines."""

    async def main():
        scenario()

    asyncio.run(main())


def test_the_freed_slot_goes_to_the_higher_priority():
    def scenario():
        bench = Bench()
        running = bench.submit()
        low, high = bench.submit(priority=Priority.LOW), bench.submit(priority=Priority.HIGH)
        bench.finish(running)
        assert bench.generated == [running.number, high.number]
        bench.finish(high)
        assert bench.generated[-1] == low.number

    run(scenario)


def test_a_displaced_request_is_told_and_counted_once():
    def scenario():
        bench = Bench()
        bench.submit()
        low = [bench.submit(priority=Priority.LOW) for _ in range(2)]
        bench.submit(priority=Priority.HIGH)
        ((ticket, error),) = bench.ended
        assert ticket is low[1]
        assert isinstance(error, OverloadedError)
        assert error.reason == "displaced"
        assert error.retry_after_seconds >= 1.0
        assert bench.dispatcher.queue.depth == 2

    run(scenario)


def test_cancelling_frees_the_queue_at_once_and_the_slot_when_the_worker_says_so():
    def scenario():
        bench = Bench()
        running, waiting = bench.submit(), bench.submit()
        bench.dispatcher.cancel(waiting)
        assert bench.dispatcher.queue.depth == 0
        bench.dispatcher.cancel(running)
        assert bench.link.sent[-1] == Cancel(running.number)
        assert bench.dispatcher.running == 1
        bench.fail(running, "cancelled")
        assert (bench.dispatcher.running, len(bench.ended)) == (0, 2)
        assert bench.dispatcher.breaker.counts() == (0, 0)

    run(scenario)


def test_a_probe_that_finds_no_room_leaves_its_place_to_the_next():
    def scenario():
        bench = Bench(max_queue=1).opened()
        # Canaries hold the slot and a user from before fills the queue.
        bench.now += 1.1
        bench.submit(canary=True)
        assert bench.dispatcher.breaker.refusing
        with pytest.raises(UnavailableError) as refusal:
            bench.submit()
        assert refusal.value.reason == "circuit_open"

    run(scenario)


def test_a_canary_is_let_through_an_open_breaker_and_may_close_it():
    def scenario():
        bench = Bench().opened()
        early = bench.submit(canary=True)
        bench.finish(early)
        assert bench.dispatcher.breaker.state is BreakerState.OPEN
        bench.now += 1.1
        bench.finish(bench.submit(canary=True))
        assert bench.dispatcher.breaker.state is BreakerState.CLOSED
        assert isinstance(bench.ended[0][1], EngineFailedError)

    run(scenario)


def test_a_request_stuck_in_its_slot_is_the_engines_failure_and_a_short_deadline_is_not():
    def scenario():
        bench = Bench()
        bench.finish(bench.submit(), seconds=1.0)
        short = bench.submit(seconds=2.0)
        bench.now += 2.0
        bench.fail(short, "deadline")
        assert bench.dispatcher.breaker.counts() == (1, 0)
        stuck = bench.submit(seconds=9.0)
        bench.now += 9.0
        bench.fail(stuck, "deadline")
        assert isinstance(bench.ended[-1][1], DeadlineExceededError)
        assert bench.dispatcher.breaker.counts()[1] == 1

    run(scenario)


def test_a_slot_that_was_held_until_a_deadline_counts_as_long_as_it_was_held():
    def scenario():
        bench = Bench(max_queue=9, circuit_breaker=False)
        bench.finish(bench.submit())
        stuck = bench.submit(seconds=3.0)
        bench.now += 3.0
        bench.fail(stuck, "deadline")
        assert bench.dispatcher.queue.drain_rate.service_seconds > 1.0
        bench.submit()
        bench.submit()
        with pytest.raises(OverloadedError) as refusal:
            bench.submit(seconds=2.0)
        assert refusal.value.reason == "deadline_unreachable"

    run(scenario)


def test_no_slot_is_wasted_on_what_has_no_time_left_while_others_wait():
    def scenario():
        bench = Bench(max_queue=9, circuit_breaker=False)
        bench.finish(bench.submit(), seconds=1.0)
        running = bench.submit()
        late, last = bench.submit(seconds=2.9), bench.submit(seconds=40.0)
        bench.finish(running, seconds=2.5)
        assert bench.generated[-1] == last.number
        assert bench.ended[-1][0] is late
        assert bench.ended[-1][1].reason == "deadline_unreachable"

    run(scenario)


def test_the_last_one_is_given_its_slot_whatever_the_estimate_says():
    def scenario():
        bench = Bench(max_queue=9, circuit_breaker=False)
        bench.finish(bench.submit(), seconds=1.0)
        running, late = bench.submit(), bench.submit(seconds=2.9)
        bench.finish(running, seconds=2.5)
        assert bench.generated[-1] == late.number

    run(scenario)
