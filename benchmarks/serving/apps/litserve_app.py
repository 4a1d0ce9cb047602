"""LitServe: one worker, batches of at most 32, the faster of its two queues (ZeroMQ)."""

import os

import litserve
import numpy as np
from onnx_session import Session


class Model(litserve.LitAPI):
    """Rows in, rows out."""

    def setup(self, _device: str) -> None:
        self._session = Session(os.environ["MODEL"])

    def decode_request(self, request: dict) -> np.ndarray:
        return np.asarray(request["data"], dtype=np.float32)

    def batch(self, inputs: list) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(x)

    def unbatch(self, output: np.ndarray) -> list:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict:
        return {"data": output.tolist()}


if __name__ == "__main__":
    wait_seconds = int(os.environ["WAIT_MILLISECONDS"]) / 1000
    api = Model(max_batch_size=32, batch_timeout=wait_seconds)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=1,
        timeout=float(os.environ.get("TIMEOUT_SECONDS", "30")),
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
