"""Slow, huge, numerous and rude clients on raw sockets, against the real server."""

import contextlib
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture
def start(tools, repository, tmp_path):
    def begin(**settings):
        return tools.run_service(repository, tmp_path / "state", **settings)

    return begin


def _connect(live, timeout=20.0):
    return socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2])), timeout)


def _all(connection):
    """Read until the server closes."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def _post(body, path="/v1/completions", headers=""):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def _error(answer):
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
SMUGGLED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
)
ASK = _post(b'{"prompt": "hello", "max_tokens": 2}')


def test_a_head_that_never_ends_is_a_408(start):
    with start(head_timeout_seconds=0.3) as live, _connect(live) as slow:
        slow.sendall(b"GET /v1/models HTTP/1.1\r\nX-Slow: ")
        answer = _all(slow)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert _error(answer)["reason"] == "head_timeout"
        assert _error(answer)["code"] == "deadline_exceeded"
        assert live.metric("http_connections_cut_total", reason="head_timeout") == 1


def test_a_head_that_drips_is_not_given_more_time(start):
    with start(head_timeout_seconds=0.5) as live, _connect(live) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        _drip(slow, b"X: y\r\n")
        assert live.metric("http_connections_cut_total", reason="head_timeout") == 1


@pytest.mark.parametrize("said", [b"", b"\r\n"])
def test_a_connection_that_asks_nothing_is_closed(start, said):
    with start(head_timeout_seconds=0.3) as live, _connect(live) as silent:
        silent.sendall(said)
        assert _all(silent) == b""


def test_a_silent_second_request_is_closed_after_the_keep_alive_time(start):
    with start(keep_alive_seconds=1) as live, _connect(live) as idle:
        idle.sendall(GET)
        assert _all(idle).startswith(b"HTTP/1.1 200 ")


def test_the_time_for_a_head_does_not_count_the_answer(start):
    with start(head_timeout_seconds=0.4) as live, _connect(live) as client:
        live.fault("engine_slow", step_seconds=0.3)
        client.sendall(
            _post(b'{"prompt": "hello", "max_tokens": 3}', headers="Connection: close\r\n")
        )
        assert _all(client).startswith(b"HTTP/1.1 200 ")


def test_a_head_that_is_too_large_or_has_too_many_lines_is_a_431(live):
    with _connect(live) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000)
        answer = _all(client)
        assert answer.startswith(b"HTTP/1.1 431 ")
    with _connect(live) as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n")
        answer = _all(client)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert _error(answer)["reason"] == "too_many_headers"


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        SMUGGLED,
        b"GET / HTTP/1.1\r\nX : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_400_in_the_usual_shape(live, sent, caplog):
    with _connect(live) as client:
        client.sendall(sent)
        answer = _all(client)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert _error(answer)["reason"] == "invalid_http"
        assert b"x-request-id: req-" in answer
    assert not caplog.records, "a stranger's bytes must not fill the log"


def test_a_body_that_drips_is_a_408_long_before_the_whole_time(start):
    with start(body_timeout_seconds=60.0, body_bytes_per_second=1000.0) as live:
        with _connect(live) as slow:
            begun = time.monotonic()
            slow.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"
            )
            thread = threading.Thread(target=_drip, args=(slow, b"x"))
            thread.start()
            answer = slow.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert time.monotonic() - begun < 30.0
            slow.shutdown(socket.SHUT_RDWR)
            thread.join()
        assert live.complete().status_code == 200


def _drip(connection, piece):
    """Send a piece from time to time until the connection is closed."""
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(piece)
            time.sleep(0.05)


def test_a_body_that_is_too_long_is_refused_before_it_is_read(live):
    size = live.service.settings.max_body_bytes + 1
    with _connect(live) as client:
        client.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")
    with _connect(live) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        for _ in range(size // 65536 + 1):
            client.sendall(block)
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_bodies_together_have_a_limit(start, tools):
    with start(max_body_bytes_in_flight=100_000, body_timeout_seconds=20.0) as live:
        with _connect(live) as first, _connect(live) as second:
            half = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n"
            first.sendall(half + b"x" * 60_000)
            tools.eventually(lambda: live.service.body_bytes_in_flight == 60_000, "it is held")
            second.sendall(half + b"x" * 60_000)
            answer = second.recv(65536)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert _error(answer)["code"] == "memory_limit"
            assert b"retry-after: 1" in answer
            first.close()
            tools.eventually(lambda: live.service.body_bytes_in_flight == 0, "it is given back")
        assert live.complete().status_code == 200
        assert live.service.body_bytes_in_flight == 0


def test_bodies_for_administration_are_bounded_before_anybody_is_asked_who_sends_them(start):
    with start(body_timeout_seconds=0.5) as live:
        with _connect(live) as client:
            client.sendall(_post(b"x" * 70_000, "/admin/engine/restart"))
            answer = client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert _error(answer)["reason"] == "request_too_large"
        with _connect(live) as client:
            client.sendall(_post(b"", "/admin/faults").replace(b"Length: 0", b"Length: 9") + b"{")
            assert client.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_over_the_limit_of_connections_models_are_refused_and_probes_are_answered(start, tools):
    with start(max_connections=4) as live:
        idle = [_connect(live) for _ in range(4)]
        try:
            tools.eventually(lambda: live.service.connections.open >= 4, "they are open")
            with _connect(live) as client:
                client.sendall(ASK)
                answer = _all(client)
                assert answer.startswith(b"HTTP/1.1 429 ")
                assert _error(answer)["reason"] == "too_many_connections"
                assert b"connection: close" in answer
            for path in (b"/health/live", b"/health/ready", b"/metrics", b"/v2/health/ready"):
                with _connect(live) as client:
                    client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert _all(client).startswith(b"HTTP/1.1 200 "), path
            idle += [_connect(live) for _ in range(40)]
            tools.eventually(
                lambda: live.service.connections.refused["closed_at_once"] >= 20, "cut off"
            )
            assert live.service.connections.open <= 4 + 16
        finally:
            for connection in idle:
                connection.close()
        tools.eventually(lambda: live.complete().status_code == 200, "room again")
        assert live.metric("http_connections_refused_total", reason="too_many_connections") >= 5
        assert live.metric("http_connections_open") >= 1


def test_one_address_may_have_a_limit_of_its_own(start, tools):
    with start(max_connections_per_address=3) as live:
        idle = [_connect(live) for _ in range(3)]
        try:
            with _connect(live) as client:
                client.sendall(ASK)
                answer = _all(client)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert _error(answer)["code"] == "rate_limited"
            assert _error(answer)["reason"] == "too_many_connections_per_address"
        finally:
            for connection in idle:
                connection.close()
        tools.eventually(lambda: live.complete().status_code == 200, "room again")


def test_pipelined_requests_are_answered_in_their_order(live):
    with _connect(live) as client:
        asks = [_post(json.dumps({"prompt": "hi", "max_tokens": n}).encode()) for n in (1, 2, 3)]
        client.sendall(b"".join(asks) + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answers = _all(client).split(b"HTTP/1.1 200 OK")[1:]
    bodies = [json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in answers]
    assert [b["usage"]["completion_tokens"] for b in bodies[:3]] == [1, 2, 3]
    assert bodies[3]["object"] == "list"


def test_a_client_that_leaves_a_pipeline_frees_the_slot_of_the_request_that_runs(start, tools):
    with start(slots=1) as live:
        live.fault("engine_slow", step_seconds=0.1)
        with _connect(live) as client:
            client.sendall(_post(b'{"prompt": "hello", "max_tokens": 64}') + GET + ASK)
            tools.eventually(lambda: live.metric("llm_active_requests") == 1, "it runs")
        tools.eventually(lambda: live.metric("llm_active_requests") == 0, "the slot is free")
        assert live.metric("llm_requests_cancelled_total", model="tiny") == 1
        assert live.metric("llm_requests_received_total", model="tiny") == 1


def test_what_comes_after_a_request_does_not_take_its_answer_away(live):
    with _connect(live) as client:
        client.sendall(ASK + b"nonsense\r\n\r\n")
        answer = _all(client)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_pipeline_that_is_too_long_ends_after_the_answer_under_way(live):
    with _connect(live) as client:
        client.sendall(ASK + GET * 100)
        answer = _all(client)
    assert 0 < answer.count(b"HTTP/1.1 ") <= 2
    assert live.metric("http_connections_cut_total", reason="pipeline_too_long") == 1
    assert live.complete().status_code == 200


@contextmanager
def _deaf(live):
    """Connect as a client that does not read, with as little room in the kernel as may be."""
    listener = live.sockets[0]
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.connect(listener.getsockname())
        yield client


LONG = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_client_that_does_not_read_its_stream_loses_its_slot(start, tools):
    with start(write_timeout_seconds=0.5, slots=1) as live:
        live.client.get("/openapi.json")
        live.fault("engine_slow", step_seconds=0.1)
        with _deaf(live) as client:
            stream = _post(b'{"prompt": "hello", "max_tokens": 64, "stream": true}')
            client.sendall(LONG + stream)
            tools.eventually(lambda: live.metric("llm_active_requests") == 1, "it runs")
            tools.eventually(
                lambda: live.metric("http_connections_cut_total", reason="slow_reader") == 1,
                "it is cut off",
            )
            tools.eventually(lambda: live.metric("llm_active_requests") == 0, "the slot is free")
        assert live.metric("llm_requests_cancelled_total", model="tiny") == 1


def test_an_answer_that_nobody_takes_does_not_keep_a_connection(start, tools):
    with start(write_timeout_seconds=0.5, write_buffer_bytes=1024) as live:
        with _deaf(live) as client:
            client.sendall(LONG)
            tools.eventually(
                lambda: live.service.connections.cut["slow_reader"] == 1, "it is cut off"
            )
            assert len(_all(client)) < 40_000
        assert live.complete().status_code == 200


def test_forwarded_addresses_are_believed_from_trusted_proxies_only(start):
    spoofed = {"x-forwarded-for": "203.0.113.9"}
    seen = []
    with start() as live:
        live.app.service.metrics.finished = lambda *_: None
        original = live.app._routes

        async def spy(scope, receive, send):
            seen.append(scope["client"][0])
            await original(scope, receive, send)

        live.app._routes = spy
        assert live.complete(headers=spoofed).status_code == 200
    assert seen == ["127.0.0.1"]
