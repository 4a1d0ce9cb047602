"""KServe's model server, Open Inference Protocol over REST; it has no batcher inside the process."""

import os

import kserve
import numpy as np
from onnx_session import Session


class Model(kserve.Model):
    """Rows in, rows out."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._session = Session(os.environ["MODEL"])
        self.ready = True

    def predict(self, payload, *_headers):  # KServe passes the headers of both ways
        rows = payload.inputs[0].as_numpy()
        answer = self._session.run(np.asarray(rows, np.float32))
        output = kserve.InferOutput("output", list(answer.shape), "FP32")
        output.set_data_from_numpy(answer, binary_data=False)
        return kserve.InferResponse(payload.id or "0", self.name, [output])


if __name__ == "__main__":
    server = kserve.ModelServer(
        http_port=int(os.environ["PORT"]),
        workers=1,
        enable_grpc=False,
        enable_latency_logging=False,
    )
    server.start([Model("model")])
