"""Everything that Triton's HTTP client can ask, printed as one JSON document.

Runs in the environment of the clients: ``python triton.py HOST:PORT``.
"""

import json
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

NUMBERS = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
           "float16", "float32", "float64")  # fmt: skip
TEXTS = ["plain", "ü€\N{GRINNING FACE}", "", "two\nlines"]


def _inputs(binary):
    rng = np.random.default_rng(7)
    arrays = {}
    for kind in NUMBERS:
        array = rng.integers(0, 2 if kind == "bool" else 100, size=(2, 2)).astype(kind)
        arrays[np_to_triton_dtype(array.dtype)] = array
    arrays["BYTES"] = np.array(TEXTS, dtype=object).reshape(2, 2)
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(f"in_{name}", list(array.shape), name)
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return arrays, inputs


def _same(sent, received):
    if sent.dtype == object:
        texts = [v.decode() if isinstance(v, bytes) else v for v in received.ravel()]
        return texts == list(sent.ravel())
    return bool(np.array_equal(sent, received)) and received.dtype == sent.dtype


def _echo(client, *, binary_in, binary_out):
    arrays, inputs = _inputs(binary_in)
    if not binary_in:  # the client refuses 16-bit floats as JSON
        inputs[9].set_data_from_numpy(arrays["FP16"], binary_data=True)
    outputs = [
        triton.InferRequestedOutput(f"out_{name}", binary_data=binary_out or name == "FP16")
        for name in arrays
    ]
    answer = client.infer("echo", inputs, outputs=outputs, request_id="mine")
    same = {name: _same(array, answer.as_numpy(f"out_{name}")) for name, array in arrays.items()}
    return {"same": same, "id": answer.get_response()["id"]}


def _default_outputs(client):
    arrays, inputs = _inputs(True)
    answer = client.async_infer("echo", inputs, model_version="1").get_result()
    return {name: _same(array, answer.as_numpy(f"out_{name}")) for name, array in arrays.items()}


def _text(client, *, binary):
    tensor = triton.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array(["hi you"], dtype=object), binary_data=binary)
    output = triton.InferRequestedOutput("answer", binary_data=binary)
    answer = client.infer("tiny", [tensor], outputs=[output], parameters={"max_tokens": 5})
    value = answer.as_numpy("answer")[0]
    return value.decode() if isinstance(value, bytes) else value


def _refused(ask):
    try:
        ask()
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    return None


def _mistakes(client):
    tensor = triton.InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 3), np.float32))
    other = triton.InferInput("x", [1, 3], "INT32")
    other.set_data_from_numpy(np.zeros((1, 3), np.int32))
    return {
        "unknown_model": _refused(lambda: client.infer("none", [tensor])),
        "unknown_version": _refused(lambda: client.infer("roots", [tensor], model_version="9")),
        "wrong_type": _refused(lambda: client.infer("roots", [other])),
        "compressed": _refused(
            lambda: client.infer("roots", [tensor], request_compression_algorithm="gzip")
        ),
        "not_offered": _refused(client.get_trace_settings),
        "unknown_metadata": _refused(lambda: client.get_model_metadata("none")),
    }


def main(address):
    with triton.InferenceServerClient(address, concurrency=2, network_timeout=30.0) as client:
        print(
            json.dumps(
                {
                    "live": client.is_server_live(),
                    "ready": client.is_server_ready(),
                    "model_ready": client.is_model_ready("echo"),
                    "version_ready": client.is_model_ready("echo", "1"),
                    "unknown_ready": client.is_model_ready("none"),
                    "server": client.get_server_metadata(),
                    "metadata": client.get_model_metadata("roots"),
                    "index": client.get_model_repository_index(),
                    "binary": _echo(client, binary_in=True, binary_out=True),
                    "json": _echo(client, binary_in=False, binary_out=False),
                    "mixed": _echo(client, binary_in=True, binary_out=False),
                    "default": _default_outputs(client),
                    "text": [_text(client, binary=True), _text(client, binary=False)],
                    "mistakes": _mistakes(client),
                }
            )
        )


main(sys.argv[1])
