"""The binary tensor data extension, both ways, for tensors and for text."""

import json

import numpy as np
import pytest

from inference.tensor.datatypes import BY_NAME, pack_bytes, to_array, unpack_bytes

VALUES = {
    "BOOL": [[True, False]], "UINT8": [[0, 255]], "UINT16": [[0, 65535]],
    "UINT32": [[0, 2**32 - 1]], "UINT64": [[0, 2**64 - 1]], "INT8": [[-128, 127]],
    "INT16": [[-(2**15), 2**15 - 1]], "INT32": [[-(2**31), 2**31 - 1]],
    "INT64": [[-(2**63), 2**63 - 1]], "FP16": [[0.5, -2.0]], "FP32": [[0.1, -3e38]],
    "FP64": [[0.1, 1e300]], "BYTES": [["", "\u00e9\u4e2d"]],
}  # fmt: skip


def _raw(name: str) -> bytes:
    datatype = BY_NAME[name]
    if name == "BYTES":
        return pack_bytes(text.encode() for text in VALUES[name][0])
    return np.array(VALUES[name], dtype=datatype.dtype).tobytes()


def _post(live, model, document, binary=b"", length=None, **headers):
    head = json.dumps(document).encode()
    return live.client.post(
        f"/v2/models/{model}/infer",
        content=head + binary,
        headers={
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(len(head) if length is None else length),
            **headers,
        },
    )


def _split(answer):
    """Return the JSON part and the binary data of each output."""
    if "inference-header-content-length" not in answer.headers:
        return answer.json(), {}
    length = int(answer.headers["inference-header-content-length"])
    document, rest = json.loads(answer.content[:length]), answer.content[length:]
    found = {}
    for tensor in document["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is not None:
            found[tensor["name"]], rest = rest[:size], rest[size:]
    assert rest == b""
    return document, found


def _echo_inputs(binary: bool):
    inputs, payload = [], b""
    for name, values in VALUES.items():
        tensor = {"name": f"in_{name}", "datatype": name, "shape": [1, 2]}
        if binary or name == "FP16":
            tensor["parameters"] = {"binary_data_size": len(_raw(name))}
            payload += _raw(name)
        else:
            tensor["data"] = values[0]
        inputs.append(tensor)
    return inputs, payload


def test_every_datatype_goes_in_and_out_as_binary_data(tensor_live):
    inputs, payload = _echo_inputs(binary=True)
    document = {"inputs": inputs, "parameters": {"binary_data_output": True}}

    answer = _post(tensor_live, "echo", document, payload)

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    body, found = _split(answer)
    assert [tensor["datatype"] for tensor in body["outputs"]] == list(VALUES)
    for name in VALUES:
        assert found[f"out_{name}"] == _raw(name), name


def test_every_datatype_with_a_json_form_goes_in_and_out_as_json(tensor_live):
    inputs, payload = _echo_inputs(binary=False)

    answer = _post(tensor_live, "echo", {"inputs": inputs}, payload)

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    for tensor in answer.json()["outputs"]:
        values = VALUES[tensor["datatype"]][0]
        if tensor["datatype"] == "FP32":
            values = [0.1, -3e38]
            assert "0.1," in answer.text
        assert tensor["data"] == values
        assert tensor["shape"] == [1, 2]


def test_each_output_says_for_itself_whether_it_is_binary(tensor_live):
    inputs, payload = _echo_inputs(binary=True)
    document = {
        "inputs": inputs,
        "parameters": {"binary_data_output": True},
        "outputs": [
            {"name": "out_INT8", "parameters": {"binary_data": False}},
            {"name": "out_BYTES"},
        ],
    }

    body, found = _split(_post(tensor_live, "echo", document, payload))

    assert [tensor["name"] for tensor in body["outputs"]] == ["out_INT8", "out_BYTES"]
    assert body["outputs"][0]["data"] == [-128, 127]
    assert unpack_bytes(found["out_BYTES"]) == [b"", "\u00e9\u4e2d".encode()]


def test_half_precision_has_no_json_form(tensor_live):
    inputs, payload = _echo_inputs(binary=False)
    inputs[9] = {"name": "in_FP16", "datatype": "FP16", "shape": [1, 2], "data": [1.0, 2.0]}

    answer = _post(tensor_live, "echo", {"inputs": inputs})

    assert answer.status_code == 400
    assert answer.json()["code"] == "unsupported"
    assert "inputs[9]: FP16" in answer.json()["error"]
    del payload


X = {"name": "x", "datatype": "FP32", "shape": [1, 2]}


@pytest.mark.parametrize(
    ("tensor", "binary", "words"),
    [
        ({"parameters": {"binary_data_size": 8}}, b"1234", "4 are left"),
        ({"parameters": {"binary_data_size": 4}}, b"1234", "4 bytes; [1, 2] of FP32 has 8"),
        ({"parameters": {"binary_data_size": -1}}, b"", "must be a number of bytes"),
        ({"parameters": {"binary_data_size": 8}, "data": [1, 2]}, bytes(8), "has both"),
        ({"data": [1, 2]}, b"12", "2 bytes of binary data belong to no input"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tensor_live, tensor, binary, words):
    answer = _post(tensor_live, "roots", {"inputs": [{**X, **tensor}]}, binary)

    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999"])
def test_a_header_length_that_does_not_fit_is_refused(tensor_live, length):
    answer = _post(tensor_live, "roots", {"inputs": []}, length=length)

    assert answer.status_code == 400
    assert "Inference-Header-Content-Length" in answer.json()["error"]


def test_text_that_is_not_utf8_is_refused(tensor_live):
    inputs, _ = _echo_inputs(binary=False)
    bad = pack_bytes([b"\xff", b""])
    inputs[12] = {
        "name": "in_BYTES", "datatype": "BYTES", "shape": [1, 2],
        "parameters": {"binary_data_size": len(bad)},
    }  # fmt: skip

    answer = _post(tensor_live, "echo", {"inputs": inputs}, _raw("FP16") + bad)

    assert answer.status_code == 400
    assert "inputs[12]: BYTES that cannot be read" in answer.json()["error"]


def test_a_language_model_takes_and_gives_binary_text(tensor_live):
    text = pack_bytes([b"hello"])
    tensor = {
        "name": "text", "datatype": "BYTES", "shape": [1],
        "parameters": {"binary_data_size": len(text)},
    }  # fmt: skip
    plain = tensor_live.client.post(
        "/v2/models/tiny/infer",
        json={"inputs": [{**tensor, "parameters": {}, "data": ["hello"]}]},
    ).json()

    document = {
        "inputs": [tensor],
        "outputs": [{"name": "answer", "parameters": {"binary_data": True}}],
    }
    body, found = _split(_post(tensor_live, "tiny", document, text))

    assert unpack_bytes(found["answer"]) == [plain["outputs"][0]["data"][0].encode()]
    assert body["parameters"]["finish_reason"] == plain["parameters"]["finish_reason"]


def test_large_batches_go_through_whole(tensor_live):
    x = np.random.default_rng(1).random((32, 100_000)).astype(np.float32)
    tensor = {**X, "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}

    answer = _post(tensor_live, "roots", document, x.tobytes(), **{"x-request-timeout-ms": "900"})

    assert answer.status_code == 200, answer.text
    y = to_array(BY_NAME["FP32"], x.shape, _split(answer)[1]["y"])
    np.testing.assert_allclose(y, np.sqrt(x), rtol=1e-6)
