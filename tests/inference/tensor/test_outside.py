"""Tensor requests are audited and bounded like all others, whichever way they take."""

import json
import socket

import pytest

pytestmark = pytest.mark.integration

BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 4.0]}]}
).encode()
HEAD = (
    f"POST /v2/models/roots/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n"
).encode()


def test_access_to_tensor_models_is_audited_where_it_is_wanted(tools, tensor_repository, tmp_path):
    settings = {"models": ("roots",), "audit_access": True}
    with tools.run_service(tensor_repository, tmp_path / "state", **settings) as live:
        answer = live.client.post("/v2/models/roots/infer", content=BODY)
        assert answer.status_code == 200
    lines = (tmp_path / "state" / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    (entry,) = (json.loads(line) for line in lines)
    assert (entry["route"], entry["model"]) == ("/v2/models/{model}/infer", "roots")
    assert (entry["status"], entry["request_id"]) == (200, answer.headers["x-request-id"])


def test_what_comes_after_a_request_does_not_take_its_answer_away(tensor_live):
    address = ("127.0.0.1", int(tensor_live.url.rpartition(":")[2]))
    with socket.create_connection(address, 20.0) as client:
        client.sendall(HEAD + BODY + b"nonsense\r\n\r\n")
        received = b""
        while chunk := client.recv(65536):
            received += chunk
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert json.loads(received.partition(b"\r\n\r\n")[2])["outputs"][0]["data"] == [1.0, 2.0]
