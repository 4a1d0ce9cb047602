"""The protocol's clients by Triton and KServe, each in its own environment, against tensors."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
PYTHON = Path(
    os.environ.get("GALEN_CONFORMANCE_PYTHON", ROOT / ".venv-conformance" / "bin" / "python")
)


@pytest.fixture(scope="module")
def clients():
    """Run a script with the clients' interpreter and return what it printed."""
    if not PYTHON.exists():
        missing = f"no clients at {PYTHON}: `make test` installs requirements-conformance.lock"
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail(missing)
        pytest.skip(missing)

    def run(script, address):
        path = ROOT / "tests" / "inference" / "conformance" / "clients" / script
        done = subprocess.run(
            [PYTHON, "-I", path, address], capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def text(tensor_live):
    """What the language model answers by the other protocol."""
    answer = tensor_live.client.post(
        "/v1/completions", json={"model": "tiny", "prompt": "hi you", "max_tokens": 5}
    )
    return answer.json()["choices"][0]["text"]


def test_tritons_client(tensor_live, clients, text):
    found = clients("triton.py", tensor_live.url.removeprefix("http://"))
    assert found["live"] is found["ready"] is found["model_ready"] is found["version_ready"] is True
    assert found["unknown_ready"] is False
    assert "binary_tensor_data" in found["server"]["extensions"]
    assert found["metadata"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]
    assert {entry["name"]: entry["state"] for entry in found["index"]}["echo"] == "READY"
    for way in ("binary", "json", "mixed"):
        assert set(found[way]["same"].values()) == {True}, way
        assert len(found[way]["same"]) == 13
        assert found[way]["id"] == "mine"
    assert set(found["default"].values()) == {True}
    assert found["text"] == [text, text]
    mistakes = found["mistakes"]
    assert {name: refused and refused["status"] for name, refused in mistakes.items()} == {
        "unknown_model": "404",
        "unknown_version": "404",
        "wrong_type": "400",
        "compressed": "415",
        "not_offered": "404",
        "unknown_metadata": "404",
    }
    assert "no model 'none'" in mistakes["unknown_model"]["message"]
    assert "gzip" in mistakes["compressed"]["message"]


def test_kserves_rest_client(tensor_live, clients, text):
    found = clients("kserve_rest.py", tensor_live.url)
    assert found["live"] is found["ready"] is found["model_ready"] is True
    assert found["unknown_ready"] is False
    expected = {"right": True, "shape": [2, 3], "id": "mine", "model": "roots", "header": "roots"}
    assert found["binary"] == found["json"] == expected
    assert found["text"] == [text, text]
    assert found["refused"]["status"] == 404
    assert "no model 'none'" in found["refused"]["message"]
