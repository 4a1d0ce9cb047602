"""Tensor models over HTTP: a real service with real workers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from inference.model import read_metadata


def _post(live, model, inputs, headers=None, **body):
    return live.client.post(
        f"/v2/models/{model}/infer", json={"inputs": inputs, **body}, headers=headers
    )


def _tensor(name, datatype, array, shape=None):
    values = np.asarray(array)
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(shape or values.shape),
        "data": values.ravel().tolist(),
    }


@pytest.fixture(scope="module")
def golden(tensor_repository):
    (example,) = read_metadata(tensor_repository / "mlp" / "1").golden
    return example


def test_a_request_is_answered_with_everything_that_the_protocol_asks(tensor_live, golden):
    x = golden.inputs["x"]

    answer = _post(
        tensor_live, "mlp", [_tensor("x", "FP32", x)], {"X-Request-Id": "abc"}, id="mine"
    )

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == "abc"
    assert answer.headers["x-galen-model"] == "mlp"
    assert answer.headers["x-galen-degradation"] == "0"
    body = answer.json()
    (y,) = body["outputs"]
    assert (body["model_name"], body["model_version"], body["id"]) == ("mlp", "1", "mine")
    assert (y["name"], y["datatype"], y["shape"]) == ("y", "FP32", [2, 10])
    np.testing.assert_allclose(
        np.reshape(y["data"], y["shape"]), golden.outputs["y"], rtol=1e-3, atol=1e-3
    )


def test_nested_data_is_the_same_as_flat_data(tensor_live, golden):
    x = golden.inputs["x"]
    flat = _post(tensor_live, "mlp", [_tensor("x", "FP32", x)]).json()

    nested = _post(tensor_live, "mlp", [{**_tensor("x", "FP32", x), "data": x.tolist()}]).json()

    assert nested["outputs"] == flat["outputs"]


def test_the_model_is_described_by_itself(tensor_live):
    answer = tensor_live.client.get("/v2/models/mlp").json()

    assert answer["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}]
    assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}]
    assert answer["platform"] == "onnxruntime"
    assert tensor_live.client.get("/v2").json()["extensions"] == [
        "model_repository",
        "binary_tensor_data",
    ]


def test_many_clients_at_once_get_their_own_answers(tensor_live):
    def ask(number: int) -> bool:
        x = np.full((1 + number % 3, 1 + number % 2), float(number), np.float32)
        answer = _post(tensor_live, "roots", [_tensor("x", "FP32", x)])
        (y,) = answer.json()["outputs"]
        return y["shape"] == list(x.shape) and np.allclose(y["data"], np.sqrt(x.ravel()))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(400)))
    assert tensor_live.metric("llm_requests_total", model="roots", status="200") >= 400
    assert tensor_live.metric("tensor_rows_total", model="roots") >= 400
    assert tensor_live.metric("tensor_batch_rows_count", model="roots") <= 600


def test_a_value_without_a_root_fails_alone(tensor_live):
    answer = _post(tensor_live, "roots", [_tensor("x", "FP32", [[-1.0]])])

    assert answer.status_code == 503
    assert answer.json()["code"] == "engine_failed"
    assert answer.json()["reason"] == "invalid_output"
    assert _post(tensor_live, "roots", [_tensor("x", "FP32", [[1.0]])]).status_code == 200


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"name": "z"}, "inputs[0].name: 'z' is no input; there are x"),
        ({"datatype": "INT64"}, "inputs[0].datatype: 'INT64'; x is FP32"),
        ({"shape": [64]}, "inputs[0].shape: [64] does not fit [-1, 64]"),
        ({"shape": [0, 64]}, "inputs[0].shape"),
        ({"shape": [1, -64]}, "inputs[0].shape"),
        ({"shape": [True, 64]}, "inputs[0].shape"),
        ({"shape": [2, 64]}, "inputs[0].data: 64 values; the shape [2, 64] has 128"),
        ({"data": [0.0] * 63 + ["a"]}, "inputs[0].data[63]: str"),
        ({"data": [0.0] * 5 + [1e300] + [0.0] * 58}, "inputs[0].data[5]: a number"),
        ({"data": [[0.0] * 63, [0.0]]}, "inputs[0].data: 2 rows"),
        ({"data": [[0.0] * 63]}, "inputs[0].data: axis 1 must have 64 values"),
        ({"data": "a"}, "inputs[0].data: must be a list"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_place_named(tensor_live, tensor, words):
    right = _tensor("x", "FP32", np.zeros((1, 64)))

    answer = _post(tensor_live, "mlp", [{**right, **tensor}])

    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert answer.json()["code"] == "invalid_input"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "inputs must be a list"),
        (b'{"inputs": []}', "inputs must be a list"),
        (b'{"inputs": [5]}', "inputs[0]: must be a tensor"),
    ],
)
def test_bodies_that_are_no_request_are_refused(tensor_live, body, words):
    answer = tensor_live.client.post("/v2/models/mlp/infer", content=body)

    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_inputs_must_be_complete_and_of_one_batch(tensor_live):
    one = _tensor("in_FP32", "FP32", [[1.0]])

    assert "'in_BOOL' is missing" in _post(tensor_live, "echo", [one]).json()["error"]
    assert "comes twice" in _post(tensor_live, "echo", [one, one]).json()["error"]


def test_outputs_can_be_chosen_by_name(tensor_live):
    inputs = [_tensor("x", "FP32", [[4.0]])]

    wrong = _post(tensor_live, "roots", inputs, outputs=[{"name": "z"}])
    right = _post(tensor_live, "roots", inputs, outputs=[{"name": "y"}])

    assert wrong.json()["error"] == "outputs[0].name: 'z' is no output; there are y"
    assert right.json()["outputs"][0]["data"] == [2.0]


def test_too_many_rows_and_too_many_bytes_are_too_large(tensor_live):
    rows = _post(tensor_live, "roots", [_tensor("x", "FP32", np.ones((33, 1)))])
    assert rows.status_code == 413
    assert rows.json()["code"] == "too_large"
    assert rows.json()["reason"] == "too_many_rows"


def test_a_deadline_that_cannot_be_met_is_said_at_once(tensor_live):
    inputs = [_tensor("x", "FP32", [[1.0]])]

    wrong = _post(tensor_live, "roots", inputs, {"X-Request-Timeout-Ms": "soon"})

    assert wrong.status_code == 400


def test_a_language_model_and_a_tensor_model_know_each_other_apart(tensor_live):
    answer = tensor_live.client.post("/v1/completions", json={"model": "mlp", "prompt": "hi"})
    assert answer.status_code == 400
    assert "/v2/models/mlp/infer" in answer.json()["error"]["message"]

    text = _tensor("text", "BYTES", ["hi"])
    assert _post(tensor_live, "tiny", [text]).status_code == 200


def test_no_tensor_model_stands_in_for_a_language_model(tensor_live):
    service = tensor_live.service

    assert service.routing.chain("tiny") == ()
    assert "tiny" not in service.routing.chain("mlp")


def test_a_crash_costs_one_batch_and_the_model_comes_back(start, tools, tensor_repository):
    with start(models=("mlp", "roots"), repository=tensor_repository) as live:
        tools.eventually(lambda: live.client.get("/v2/models/roots/ready").status_code == 200, "up")
        live.admin.post(
            "/admin/faults", json={"fault": "engine_crash", "parameters": {"model": "mlp"}}
        )
        tools.eventually(
            lambda: live.metric("engine_restarts_total", model="mlp", reason="crash") == 1, "crash"
        )
        assert _post(live, "roots", [_tensor("x", "FP32", [[4.0]])]).status_code == 200
        zeros = [_tensor("x", "FP32", np.zeros((1, 64)))]
        tools.eventually(lambda: _post(live, "mlp", zeros).status_code == 200, "an answer")


def test_wrong_values_are_seen_by_the_canary(start, tools, tensor_repository):
    with start(models=("mlp",), repository=tensor_repository) as live:
        live.fault("corrupt_output", kind="wrong")
        tools.eventually(lambda: live.metric("health_status", layer="canary") == 0, "noticed")
        assert live.client.get("/v2/models/mlp/ready").status_code == 503


@pytest.fixture
def start(tools, tmp_path):
    def begin(repository, **settings):
        return tools.run_service(repository, tmp_path / "state", **settings)

    return begin
