"""Clients that are slow, huge, gone or wrong."""

import socket

import httpx
import pytest

pytestmark = pytest.mark.integration

PARTS = (
    ("/v1/completions", b'{"prompt": "hello", "max_tokens": 64}'),
    ("/v1/completions", b'{"prompt": "hello", "max_tokens": 64, "stream": true}'),
    ("/v2/models/tiny/infer",
     b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hello"]}]}'),
)  # fmt: skip


@pytest.mark.parametrize(("path", "body"), PARTS, ids=["plain", "stream", "oip"])
def test_a_client_that_leaves_frees_its_slot(start, tools, path, body):
    """vLLM #10087: middleware hid the disconnect, and the engine went on for nobody."""
    with start(slots=1, canary_interval_seconds=30.0) as live:
        live.fault("engine_slow", step_seconds=0.05)
        with socket.create_connection(("127.0.0.1", httpx.URL(live.url).port)) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            tools.eventually(lambda: live.metric("llm_active_requests") == 1, "it runs")
        tools.eventually(lambda: live.metric("llm_active_requests") == 0, "the slot is free")
        assert live.metric("llm_batch_size", model="tiny") == 0
        assert live.metric("llm_requests_cancelled_total", model="tiny") == 1


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"[]", b"null", b'{"inputs": 7}', b"\xff\xfe", b'{"inputs": [' + b"[" * 5000],
    ids=["cut", "empty", "list", "null", "type", "bytes", "deep"],
)
def test_malformed_json_is_answered_in_the_protocols_own_shape(live, body):
    """KServe answers malformed JSON with 422 and ``{"detail": ...}``; the protocol says ``error``."""
    headers = {"content-type": "application/json"}
    answer = live.client.post("/v2/models/tiny/infer", content=body, headers=headers)
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)
    assert "Traceback" not in answer.text
    answer = live.client.post("/v1/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_input"


def test_an_endless_head_is_cut_off(tools, repository, tmp_path):
    """vLLM CVE-2025-48956: a request head without a limit filled the memory."""
    with tools.serve(repository, tmp_path) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as attacker:
            attacker.sendall(b"GET /health HTTP/1.1\r\nX-Long: ")
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                _send_for_ever(attacker)
        with httpx.Client(base_url=f"http://127.0.0.1:{served.port}") as client:
            assert client.post("/v1/completions", json={"prompt": "hello"}).status_code == 200


def _send_for_ever(connection):
    while True:
        connection.sendall(b"x" * 65536)
