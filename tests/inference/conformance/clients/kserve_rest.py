"""Everything that KServe's REST client can ask, printed as one JSON document.

Runs in the environment of the clients: ``python kserve_rest.py http://HOST:PORT``.
"""

import asyncio
import json
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def _roots(client, url, *, binary):
    array = np.array([[1.0, 4.0, 9.0], [16.0, 25.0, 36.0]], np.float32)
    tensor = InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    request = InferRequest("roots", [tensor], request_id="mine", parameters={})
    headers = {}
    answer = await client.infer(url, request, model_name="roots", response_headers=headers)
    output = answer.outputs[0].as_numpy()
    return {
        "right": bool(np.array_equal(output, np.sqrt(array))),
        "shape": list(output.shape),
        "id": answer.id,
        "model": answer.model_name,
        "header": headers.get("x-galen-model"),
    }


async def _text(client, url, *, binary):
    array = np.array(["hi you"], dtype=object)
    tensor = InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(array, binary_data=binary)
    answer = await client.infer(
        url, InferRequest("tiny", [tensor], parameters={"max_tokens": 5}), model_name="tiny"
    )
    value = answer.outputs[0].as_numpy().ravel()[0]
    return value.decode() if isinstance(value, bytes) else value


async def _refused(client, url):
    tensor = InferInput("x", [1], "FP32", data=[1.0])
    try:
        await client.infer(url, InferRequest("none", [tensor]), model_name="none")
    except httpx.HTTPStatusError as error:
        return {"status": error.response.status_code, "message": str(error)}
    return None


async def main(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30.0, retries=0))
    found = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "roots"),
        "unknown_ready": await client.is_model_ready(url, "none"),
        "binary": await _roots(client, url, binary=True),
        "json": await _roots(client, url, binary=False),
        "text": [await _text(client, url, binary=flag) for flag in (True, False)],
        "refused": await _refused(client, url),
    }
    await client.close()
    print(json.dumps(found))


asyncio.run(main(sys.argv[1]))
