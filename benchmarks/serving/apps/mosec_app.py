"""mosec: Rust front, one Python worker, batches of at most 32; waits 1 ms (A) or 5 ms (B) for one."""

import os

import numpy as np
import orjson
from mosec import Server, Worker
from onnx_session import Session


class Model(Worker):
    """Rows in, rows out. Overriding the codec is mosec's documented way to a faster JSON."""

    def __init__(self) -> None:
        self._session = Session(os.environ["MODEL"])

    def deserialize(self, data: bytes) -> list:
        return orjson.loads(data)["data"]

    def forward(self, data: list) -> list:
        return list(self._session.run(np.asarray(data, dtype=np.float32)))

    def serialize(self, data: np.ndarray) -> bytes:
        return orjson.dumps({"data": data}, option=orjson.OPT_SERIALIZE_NUMPY)


if __name__ == "__main__":
    server = Server()
    wait_milliseconds = int(os.environ["WAIT_MILLISECONDS"])
    server.append_worker(Model, num=1, max_batch_size=32, max_wait_time=wait_milliseconds)
    server.run()
