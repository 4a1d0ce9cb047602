"""The fast lane gives the same answers as the ordinary way, in order, and lets go of those who leave."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from inference.api.fast_lane import FastLane
from inference.fast_protocol import FastProtocol

ROW = [0.5] * 64
X = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": ROW}
PATH = "/v2/models/mlp/infer"
# Nobody knows it, so that the request takes the ordinary way.
ORDINARY = {"x-nobody-knows": "1"}
CHANGING = {"date", "x-request-id", "content-length"}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch):
    """What the lane decided: True for each request that it took to its end."""
    decisions: list[bool] = []
    submit = FastLane.submit

    def spy(lane, exchange):
        taken = submit(lane, exchange)
        decisions.append(taken)
        return taken

    monkeypatch.setattr(FastLane, "submit", spy)
    return decisions


def _binary(x: np.ndarray) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "x", "datatype": "FP32", "shape": list(x.shape),
        "parameters": {"binary_data_size": x.nbytes},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {
        "inference-header-content-length": str(len(head)),
        "content-type": "application/octet-stream",
    }
    return head + x.tobytes(), headers


def _body(**changes) -> bytes:
    return json.dumps({"inputs": [{**X, **changes}]}).encode()


BINARY, BINARY_HEADERS = _binary(np.full((2, 64), 0.5, np.float32))
JSON = {"content-type": "application/json"}
PLAIN = [
    (_body(), JSON),
    (_body(), {}),
    (json.dumps({"id": "mine \u00e9", "inputs": [X]}).encode(), JSON),
    (_body(data=[ROW]), JSON),
    (_body(shape=[3, 64], data=ROW * 3), JSON),
    (json.dumps({"inputs": [X], "outputs": [{"name": "y"}]}).encode(), JSON),
    (_body(), {**JSON, "x-galen-priority": "low", "x-request-timeout-ms": "5000"}),
    (_body(shape=[33, 64], data=ROW * 33), JSON),
    (BINARY, BINARY_HEADERS),
]
FAULTY = [
    (b"{", JSON),
    (b"[]", JSON),
    (b'{"inputs": 5}', JSON),
    (_body(name="z"), JSON),
    (_body(shape=[1, 63]), JSON),
    (_body(shape=[True, 64]), JSON),
    (_body(data=[*ROW[:-1], "a"]), JSON),
    (_body(data=[*ROW[:-1], 1e99]), JSON),
    (_body(data=ROW[:-1]), JSON),
    (json.dumps({"id": 5, "inputs": [X]}).encode(), JSON),
    (json.dumps({"id": "x" * 257, "inputs": [X]}).encode(), JSON),
    (BINARY[:-1], BINARY_HEADERS),
]
OTHER = [
    (_body(), {**JSON, "x-request-timeout-ms": "soon"}),
    (_body(), {"content-type": "text/plain"}),
    (_body(), {**JSON, "x-galen-canary": "1"}),
    (_body(), {**JSON, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}),
]


def _same(live, body, headers):
    answers = [
        live.client.post(PATH, content=body, headers={**headers, **more}) for more in ({}, ORDINARY)
    ]
    for answer in answers:
        assert answer.headers["x-request-id"].startswith("req-")
    first, second = (
        (
            answer.status_code,
            {name: value for name, value in answer.headers.items() if name not in CHANGING},
            answer.content.replace(answer.headers["x-request-id"].encode(), b"ID"),
        )
        for answer in answers
    )
    assert first == second
    return answers[0]


@pytest.mark.parametrize(("body", "headers"), PLAIN)
def test_plain_requests_take_the_lane_and_are_answered_the_same(tensor_live, seen, body, headers):
    answer = _same(tensor_live, body, headers)

    assert seen == [True]
    assert answer.status_code in {200, 413}


@pytest.mark.parametrize(("body", "headers"), FAULTY)
def test_faulty_requests_leave_the_lane_and_are_answered_the_same(tensor_live, seen, body, headers):
    answer = _same(tensor_live, body, headers)

    assert seen  # once more after parsing, where the head was known
    assert not any(seen)
    assert answer.status_code == 400


@pytest.mark.parametrize(("body", "headers"), OTHER)
def test_requests_that_are_not_plain_never_enter(tensor_live, seen, body, headers):
    _same(tensor_live, body, headers)

    assert seen == []


def test_both_ways_are_counted_once_and_alike(tensor_live, seen):
    def counts():
        return [
            tensor_live.metric(name, model="mlp", **labels)
            for name, labels in (
                ("llm_requests_received_total", {}),
                ("llm_requests_total", {"status": "200"}),
                ("llm_requests_total", {"status": "400"}),
                ("llm_requests_total", {"status": "413"}),
                ("llm_request_latency_seconds_count", {}),
                ("llm_request_latency_seconds_bucket", {"le": "+Inf"}),
            )
        ]

    for body, headers in (*PLAIN[-2:], *FAULTY[-2:]):
        _same(tensor_live, body, headers)
    before = counts()
    for body, headers in (*PLAIN[-2:], *FAULTY[-2:]):
        _same(tensor_live, body, headers)

    assert [after - b for after, b in zip(counts(), before, strict=True)] == [8, 2, 4, 2, 2, 2]


def test_a_request_id_that_is_harmless_comes_back(tensor_live):
    for given, kept in (("abc-1", True), ("a b", False), ("x" * 65, False)):
        answer = tensor_live.client.post(
            PATH, content=_body(), headers={**JSON, "x-request-id": given}
        )
        assert (answer.headers["x-request-id"] == given) is kept
        assert (answer.json()["id"] == given) is kept


def _request(body: bytes = b"", path: str = PATH, extra: str = "") -> bytes:
    body = body or _body()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"{extra}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _connect(live) -> socket.socket:
    url = httpx.URL(live.url)
    connection = socket.create_connection((url.host, url.port), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _read(file) -> tuple[int, dict[str, str], bytes]:
    status = int(file.readline().split()[1])
    headers = {}
    while line := file.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return status, headers, file.read(int(headers["content-length"]))


def test_pipelined_requests_are_answered_in_order_whichever_way_they_take(tensor_live):
    with _connect(tensor_live) as connection, connection.makefile("rb") as file:
        ids = [f"r{number}" for number in range(9)]
        data = b""
        for number, name in enumerate(ids):
            extra = f"X-Request-Id: {name}\r\n" + ("X-Other: 1\r\n" if number % 3 == 1 else "")
            data += _request(extra=extra, path="/v2" if number == 4 else PATH)
        connection.sendall(data)

        answers = [_read(file) for _ in ids]

    assert [headers["x-request-id"] for _, headers, _ in answers] == ids
    assert [status for status, _, _ in answers] == [200] * 4 + [405] + [200] * 4


def test_a_connection_is_kept_or_closed_as_the_client_says(tensor_live):
    with _connect(tensor_live) as connection, connection.makefile("rb") as file:
        for _ in range(3):
            connection.sendall(_request())
            assert _read(file)[0] == 200
        connection.sendall(_request(extra="Connection: close\r\n"))
        status, headers, _ = _read(file)
        assert (status, headers["connection"]) == (200, "close")
        assert file.read() == b""


@pytest.mark.parametrize(("pause", "taken"), [(0.0, [True]), (0.3, [])])
def test_a_body_in_pieces_stays_on_the_lane_only_if_it_comes_soon(tensor_live, seen, pause, taken):
    request = _request()
    with _connect(tensor_live) as connection, connection.makefile("rb") as file:
        for piece in (request[:40], request[40:-100], request[-100:]):
            connection.sendall(piece)
            time.sleep(pause)  # what the client does, not what is waited for
        status, _, body = _read(file)

    assert status == 200
    assert json.loads(body)["model_name"] == "mlp"
    assert seen == taken


def test_a_body_that_never_comes_is_a_timeout(start, tensor_repository):
    with start(models=("mlp",), repository=tensor_repository, body_timeout_seconds=0.3) as live:
        request = _request()
        with _connect(live) as connection, connection.makefile("rb") as file:
            connection.sendall(request[:-1])
            status, _, body = _read(file)

    assert status == 408
    assert json.loads(body)["reason"] == "request_timeout"


def test_chunks_and_expectations_take_the_ordinary_way(tensor_live, seen):
    body = _body()
    answer = tensor_live.client.post(PATH, content=iter([body[:50], body[50:]]), headers=JSON)
    assert answer.status_code == 200
    with _connect(tensor_live) as connection, connection.makefile("rb") as file:
        request = _request(extra="Expect: 100-continue\r\n")
        connection.sendall(request[: -len(body)])
        assert file.readline().startswith(b"HTTP/1.1 100")
        assert file.readline() == b"\r\n"
        connection.sendall(body)
        assert _read(file)[0] == 200
    assert seen == []


def test_a_client_that_leaves_leaves_nothing_behind(start, tools, tensor_repository):
    with start(
        models=("mlp",), repository=tensor_repository, tensor_deadline_seconds=30.0,
        canary_interval_seconds=60.0,
    ) as live:  # fmt: skip
        live.fault("engine_slow", step_seconds=0.7)
        dispatcher = live.service.hosts["mlp"].tensors
        connections = [_connect(live) for _ in range(6)]
        connections[0].sendall(_request())
        tools.eventually(lambda: dispatcher.running == 1, "the first one runs")
        for connection in connections[1:]:
            connection.sendall(_request())
        tools.eventually(lambda: dispatcher.queue.depth == 5, "five wait")

        for connection in connections[1:4]:
            connection.close()

        tools.eventually(lambda: dispatcher.queue.depth == 2, "three have left", 0.6)
        for connection in (connections[0], *connections[4:]):
            with connection.makefile("rb") as file:
                assert _read(file)[0] == 200
            connection.close()
        assert live.metric("llm_requests_total", model="mlp", status="499") == 3
        assert live.metric("llm_requests_cancelled_total", model="mlp") == 3
        assert dispatcher.idle


def test_a_closed_connection_leaves_no_timer(tensor_live, tools, monkeypatch):
    lost = []
    connection_lost = FastProtocol.connection_lost

    def spy(protocol, error):
        lost.append(protocol)
        connection_lost(protocol, error)

    monkeypatch.setattr(FastProtocol, "connection_lost", spy)
    with _connect(tensor_live) as connection, connection.makefile("rb") as file:
        connection.sendall(_request())
        assert _read(file)[0] == 200
    tools.eventually(lambda: lost, "the server sees it")
    tools.eventually(lambda: lost[0].parser is None, "it is done with it")

    assert lost[0].timeout_keep_alive_task is None


def test_an_idle_connection_is_closed_after_its_time_and_not_before(start, tensor_repository):
    with (
        start(models=("mlp",), repository=tensor_repository, keep_alive_seconds=2) as live,
        _connect(live) as connection,
        connection.makefile("rb") as file,
    ):
        for _ in range(4):
            time.sleep(0.7)  # the client thinks, for longer than the limit in all
            connection.sendall(_request())
            assert _read(file)[0] == 200
        assert file.read() == b""


def test_a_deadline_ends_a_request_on_the_lane(start, seen, tensor_repository):
    with start(models=("mlp",), repository=tensor_repository, canary_interval_seconds=60.0) as live:
        live.fault("engine_slow", step_seconds=0.5)
        answer = live.client.post(
            PATH, content=_body(), headers={**JSON, "x-request-timeout-ms": "100"}
        )
    assert answer.status_code == 504
    assert answer.json()["code"] == "deadline_exceeded"
    assert seen == [True]


def test_a_full_line_is_refused_on_the_lane_with_the_time_to_come_back(
    start, seen, tensor_repository
):
    with start(
        models=("mlp",), repository=tensor_repository, tensor_max_queue=2,
        tensor_max_batch_rows=1, tensor_queue_seconds=60.0, tensor_deadline_seconds=30.0,
        canary_interval_seconds=60.0,
    ) as live:  # fmt: skip
        live.fault("engine_slow", step_seconds=0.3)

        def ask(_number: int) -> httpx.Response:
            return httpx.post(live.url + PATH, content=_body(), headers=JSON, timeout=30.0)

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(12)))

        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in refused:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["reason"] == "queue_full"
        rejected = live.metric("llm_requests_rejected_total", model="mlp", reason="queue_full")
        assert rejected == len(refused)


@pytest.fixture
def start(tools, tmp_path):
    def begin(repository, **settings):
        return tools.run_service(repository, tmp_path / "state", **settings)

    return begin


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch):
    """The requests that were parsed, by their number on all connections together."""
    begun: list[int] = []
    begin = FastProtocol.on_message_begin

    def spy(protocol):
        begun.append(1)
        begin(protocol)

    monkeypatch.setattr(FastProtocol, "on_message_begin", spy)
    return begun


def test_a_head_that_comes_again_is_not_parsed_again(tensor_live, seen, parsed):
    rows = [[float(number % 7)] * 64 for number in range(12)]
    with _connect(tensor_live) as connection, connection.makefile("rb") as file:
        answers = []
        for row in rows:
            connection.sendall(_request(_body(data=row)))
            answers.append(_read(file))
    assert len(parsed) == 2  # the first that came after a whole message is learnt from
    assert seen == [True] * len(rows)
    assert [status for status, _, _ in answers] == [200] * len(rows)
    alone = {
        row[0]: tensor_live.client.post(PATH, content=_body(data=row), headers=ORDINARY).json()
        for row in rows
    }
    for row, (_, _, body) in zip(rows, answers, strict=True):
        assert json.loads(body)["outputs"] == alone[row[0]]["outputs"]
    assert len({headers["x-request-id"] for _, headers, _ in answers}) == len(rows)


def test_faults_and_other_heads_are_parsed_after_all(tensor_live, parsed):
    with _connect(tensor_live) as connection, connection.makefile("rb") as file:
        expected = []
        for request, status in [
            (_request(), 200), (_request(), 200), (_request(b"{"), 400), (_request(), 200),
            (_request(_body(name="z")), 400), (_request(extra="X-Request-Id: a\r\n"), 200),
            (_request(path="/v2/models/none/infer"), 404), (_request(), 200), (_request(), 200),
        ]:  # fmt: skip
            connection.sendall(request)
            assert _read(file)[0] == status
            expected.append(status)
        # In pieces, and two at once.
        request = _request()
        connection.sendall(request[:70])
        time.sleep(0.05)  # what the client does, not what is waited for
        connection.sendall(request[70:])
        assert _read(file)[0] == 200
        connection.sendall(request + request)
        assert [_read(file)[0], _read(file)[0]] == [200, 200]
    assert len(parsed) >= 7


def test_a_known_head_inside_a_body_is_a_body(tensor_live, seen):
    """A message that was answered before its end goes on; what looks like a request is its body."""
    known = _request()
    with _connect(tensor_live) as connection, connection.makefile("rb") as file:
        for _ in range(3):
            connection.sendall(known)
            assert _read(file)[0] == 200
        taken = len(seen)
        connection.sendall(
            b"POST /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(known)
        )
        assert _read(file)[0] == 405
        connection.sendall(known)
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        line = file.readline()
        assert line in {b"", b"HTTP/1.1 200 OK\r\n"}  # closed, or the next answer
        rest = file.read(16)
        assert b"model_name" not in rest
    assert len(seen) == taken
