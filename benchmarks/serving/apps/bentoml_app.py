"""BentoML: adaptive batching with batches of at most 32; everything else as it comes."""

import os

import bentoml
import numpy as np
from onnx_session import Session

LATENCY_MILLISECONDS = int(os.environ.get("LATENCY_MILLISECONDS", "2000"))


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Model:
    """Rows in, rows out."""

    def __init__(self) -> None:
        self._session = Session(os.environ["MODEL"])

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=LATENCY_MILLISECONDS)
    def predict(self, data: np.ndarray) -> np.ndarray:
        return self._session.run(data.astype(np.float32))
