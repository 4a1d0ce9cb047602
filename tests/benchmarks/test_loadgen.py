import asyncio

import numpy as np
import pytest

from benchmarks.serving import closedloop, loadgen, tables, wrk


class Responder(asyncio.Protocol):
    """Answers each POST with what the server's plan says."""

    def __init__(self, server):
        self.server = server
        self.buffer = b""

    def connection_made(self, transport):
        self.transport = transport
        self.server.connections += 1

    def data_received(self, data):
        self.buffer += data
        while self.buffer.count(b"\r\n\r\n") and self.buffer.endswith(b"}"):
            self.buffer = b""
            self.server.requests += 1
            self.server.act(self.transport, self.server.requests)


class Server:
    def __init__(self, act):
        self.act = act
        self.requests = self.connections = 0

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Responder(self), "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/infer"
        return self

    async def __aexit__(self, *_):
        self._server.close()


def answer(transport, status=200, headers=""):
    transport.write(f"HTTP/1.1 {status} X\r\n{headers}content-length: 2\r\n\r\n{{}}".encode())


async def run_open(act, schedule, connections=64, grace=10.0):
    async with Server(act) as server:
        payload = loadgen.request_bytes(server.url, b"{}", {})
        client = loadgen.Client(server.url, payload, np.asarray(schedule), connections)
        outcome = await client.run(grace)
    return outcome, server


def test_every_request_is_sent_and_answered_once():
    schedule = np.linspace(0.0, 0.2, 100)
    outcome, server = asyncio.run(run_open(lambda t, n: answer(t), schedule))
    assert server.requests == 100
    assert (outcome.status == 200).all()
    assert (outcome.sent >= outcome.scheduled).all()
    assert (outcome.done >= outcome.sent).all()
    assert server.connections < 100, "connections are used again"


def test_a_slow_answer_does_not_hold_up_the_schedule():
    """All requests leave although none is answered until the last one has arrived."""
    waiting = []

    def act(transport, number):
        waiting.append(transport)
        if number == 20:
            for other in waiting:
                answer(other)

    outcome, server = asyncio.run(run_open(act, np.linspace(0.0, 0.1, 20)))
    assert (outcome.status == 200).all()
    assert server.connections == 20


def test_waiting_for_a_connection_counts_from_the_schedule():
    """With one connection the second request waits inside the client, and its time runs."""
    order = []

    def act(transport, number):
        order.append(number)
        asyncio.get_running_loop().call_later(0.05, answer, transport)

    outcome, server = asyncio.run(run_open(act, np.zeros(3), connections=1))
    assert server.connections == 1
    latency = np.sort(outcome.done - outcome.scheduled)
    assert latency[2] > outcome.done[0] - outcome.sent[0], "more than its own service time"
    assert (np.diff(latency) > 0.03).all()


def test_refusals_broken_connections_and_silence_are_told_apart():
    def act(transport, number):
        if number == 1:
            answer(transport)
        elif number == 2:
            answer(transport, 429, "retry-after: 1\r\n")
        elif number == 3:
            transport.abort()

    outcome, _ = asyncio.run(run_open(act, np.linspace(0.0, 0.06, 4), grace=0.3))
    assert sorted(outcome.status) == [-2, -1, 200, 429]
    summary = loadgen.summarise(outcome, 0.25, 0.0)
    assert summary.unanswered == 2
    assert summary.statuses == {"200": 1, "429": 1}


def test_a_connection_that_the_server_closes_is_replaced():
    def act(transport, number):
        answer(transport, headers="connection: close\r\n")
        transport.close()

    outcome, server = asyncio.run(run_open(act, np.linspace(0.0, 0.1, 10), connections=2))
    assert (outcome.status == 200).all()
    assert server.connections == 10


def test_a_server_that_is_not_there_is_no_answer():
    async def run():
        payload = loadgen.request_bytes("http://127.0.0.1:9/infer", b"{}", {})
        return await loadgen.Client("http://127.0.0.1:9/infer", payload, np.zeros(3), 2).run(5.0)

    assert (asyncio.run(run()).status == -2).all()


def outcome_of(scheduled, seconds, status):
    scheduled = np.asarray(scheduled, dtype=float)
    done = scheduled + np.asarray(seconds)
    return loadgen.Outcome(scheduled, scheduled + 0.001, done, np.asarray(status))


def test_goodput_counts_answers_within_the_deadline_after_the_warm_up():
    outcome = outcome_of(
        [0.5, 1.0, 1.5, 2.0, 3.0], [0.1, 0.1, 0.3, 0.002, 0.1], [200, 200, 200, 429, 200]
    )
    summary = loadgen.summarise(outcome, deadline_seconds=0.25, warm_seconds=1.0)
    assert summary.offered == pytest.approx(4 / 2)
    assert summary.answered == pytest.approx(3 / 2)
    assert summary.goodput == pytest.approx(2 / 2)
    assert summary.refused == pytest.approx(1 / 2)
    assert summary.refusal_p50_ms == pytest.approx(2.0)
    assert summary.lag_p99_ms == pytest.approx(1.0)


def test_arrivals_are_a_poisson_process():
    times = loadgen.poisson(rate=2000.0, seconds=10.0, seed=7)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)
    assert times[-1] < 10.0
    assert (times == loadgen.poisson(2000.0, 10.0, 7)).all()


def test_the_closed_loop_keeps_its_connections_busy(tmp_path):
    body = tmp_path / "body.json"
    body.write_bytes(b"{}")

    async def run():
        async with Server(lambda t, n: answer(t, 200 if n % 10 else 500)) as server:
            load = await asyncio.to_thread(closedloop.measure, server.url, body, 4, 0.3)
        return load, server

    load, server = asyncio.run(run())
    assert server.connections == 4
    assert load.requests + load.errors == server.requests
    assert load.errors == server.requests // 10
    assert load.requests > 20


def test_the_result_of_wrk_is_read():
    text = (
        "Running 2s test @ http://x\n  Requests/sec: 1\n"
        '{"requests": 120, "seconds": 2.0, "p50_ms": 0.5, "p99_ms": 3.25, "max_ms": 9.0, '
        '"errors": {"connect": 0, "read": 1, "write": 0, "status": 20, "timeout": 0}}\n'
    )
    load = wrk.parse(text)
    assert (load.per_second, load.errors, load.p99_ms) == (50.0, 21, 3.25)
    with pytest.raises(wrk.ClientError, match="no result"):
        wrk.parse("unable to connect")


def test_a_table_can_be_pasted():
    text = tables.markdown(["a", "b"], [["1", "2"]])
    assert text == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert tables.middle([3.0, None, 1.0, 2.0]) == 2.0
    assert tables.middle([None]) is None
