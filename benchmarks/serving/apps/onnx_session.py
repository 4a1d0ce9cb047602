"""The session that every peer runs: the same file, one thread, as the service itself does.

These scripts run in environments of their own, which have no Galen: they import nothing of it.
"""

import numpy as np
import onnxruntime


class Session:
    """An ONNX model with one input and one output of float32 rows."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.input = self._session.get_inputs()[0].name
        self.run(np.zeros((1, 64), dtype=np.float32))

    def run(self, rows: np.ndarray) -> np.ndarray:
        """Return the output rows of input rows."""
        return self._session.run(None, {self.input: rows})[0]
