"""The service against generated requests: our own OpenAPI document, and the protocol's public one.

Schemathesis invents valid and invalid requests from a document and checks that status, body,
content type and headers of each answer are what the document says. Seed and number of examples are
fixed, so that a run is repeatable and short.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
OIP = HERE.parents[2].parent / "shared" / "protocol" / "open_inference_rest.yaml"
_CASES = re.compile(r"(\d+) generated")


def _run(document, live, tmp_path, *options, examples=10, token=""):
    """Run schemathesis as a user would; return its exit status and what it printed."""
    authorization = ["--header", f"Authorization: Bearer {token}"] if token else []
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "--config-file", str(HERE / "schemathesis.toml"),
        "run", str(document), "--url", live.url, "--seed", "20261121", "--no-color",
        "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing",
        "--request-timeout", "20", "--workers", "1", "--warnings", "off",
        *authorization, *options,
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _cases(output):
    found = _CASES.search(output)
    assert found, output
    return int(found.group(1))


@pytest.fixture
def document(live, tmp_path):
    """Our own document as a file, which a test may spoil.

    The tasks that a model knows are in its metadata, as the names of models are in their list.
    """
    content = live.client.get("/openapi.json").json()
    tasks = sorted(live.service.hosts["tiny"].metadata().prompts)
    for name in ("CompletionBody", "ChatBody", "InferParameters"):
        content["components"]["schemas"][name]["properties"]["task"]["anyOf"][0]["enum"] = tasks
    for operations in content["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "X-Galen-Task":
                    parameter["schema"]["enum"] = tasks
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_the_protocols_do_what_our_document_says(document, live, tmp_path):
    status, output = _run(document, live, tmp_path, "--exclude-path-regex", "^/admin/")
    assert status == 0, output
    assert _cases(output) > 200
    assert live.complete().status_code == 200


def test_administration_does_what_our_document_says(document, own_repository, tools, tmp_path):
    with tools.run_service(own_repository, tmp_path / "own", allow_faults=False) as own:
        only = ("--include-path-regex", "^/(admin|v2/repository/models)/")
        status, output = _run(document, own, tmp_path, *only, examples=3, token=tools.token)
        assert status == 0, output
        assert _cases(output) > 100


def test_a_wrong_document_is_found_out(document, live, tmp_path):
    content = json.loads(document.read_bytes())
    content["components"]["schemas"]["ModelList"]["properties"]["object"]["const"] = "set"
    content["components"]["schemas"]["CompletionBody"]["properties"]["n"] = {"const": 2}
    del content["paths"]["/v1/models/{model}"]["get"]["responses"]["404"]
    document.write_text(json.dumps(content), encoding="utf-8")
    status, output = _run(
        document, live, tmp_path, "--include-path-regex", "^/v1/(models|completions)", examples=3
    )
    assert status == 1, output
    assert "POST /v1/completions" in output
    assert "GET /v1/models" in output
    assert "GET /v1/models/{model}" in output


def test_every_operation_says_what_it_answers(document):
    content = json.loads(document.read_bytes())
    for path, operations in content["paths"].items():
        for method, operation in operations.items():
            where = f"{method.upper()} {path}"
            assert operation["summary"], where
            assert any(status.startswith("2") for status in operation["responses"]), where
            for status, response in operation["responses"].items():
                assert response["description"], f"{where} {status}"
                assert response["content"], f"{where} {status}"
                for name in ("X-Request-Id", "X-Galen-Degradation"):
                    assert name in response["headers"], f"{where} {status}"
                if status == "429":
                    assert "Retry-After" in response["headers"], where
            assert ("401" in operation["responses"]) >= path.startswith("/admin"), where


def _overlaid(source):
    """Mend what is wrong in the public document of the protocol, and fill in what it leaves out."""
    text = source.read_text(encoding="utf-8")
    # Paths are templates of OpenAPI, not of a shell.
    content = yaml.safe_load(text.replace("${", "{"))
    paths = content["paths"]
    # The protocol's text says /v2; both are answered here, one of them is in the document.
    paths["/v2"] = paths.pop("/v2/")
    error = {
        "application/json": {"schema": {"$ref": "#/components/schemas/inference_error_response"}}
    }
    for path, operations in paths.items():
        for method in ("get", "post"):
            if method not in operations:
                continue
            responses = operations[method]["responses"]
            if path.endswith(("/ready", "/live")):
                responses["503"] = {"description": "Not so"}
            for status in (404, 408, 413, 415, 422, 429, 500, 503, 504):
                # The document knows 200 and 400 only, which would make honest refusals a fault.
                responses.setdefault(str(status), {"description": "Refused", "content": error})
            operations[method]["responses"].setdefault(
                "400", {"description": "Bad request", "content": error}
            )
    return content


def test_the_open_inference_protocols_own_document_is_kept(live, tmp_path):
    if not OIP.exists():
        pytest.skip(f"the public document of the protocol is not at {OIP}")
    content = _overlaid(OIP)
    infer = next(ops["post"] for ops in content["paths"].values() if "post" in ops)
    infer["requestBody"]["content"]["application/json"]["example"] = {
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hi you"]}]
    }
    for operations in content["paths"].values():
        for parameter in operations.get("parameters", ()):
            value = {"MODEL_NAME": "tiny", "MODEL_VERSION": "1"}[parameter["name"]]
            parameter["schema"]["enum"] = [value]
    # Writers of JSON say null for what is absent, and the service takes it so.
    request = content["components"]["schemas"]["inference_request"]["properties"]
    for optional in ("id", "outputs"):
        request[optional]["nullable"] = True
    path = tmp_path / "oip.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    status, output = _run(path, live, tmp_path)
    assert status == 0, output
    assert _cases(output) > 50
