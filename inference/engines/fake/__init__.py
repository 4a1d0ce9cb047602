"""A device that computes real results and fails on demand, behind TensorRT's own calls.

It stands in for ``tensorrt`` and ``cuda.bindings.runtime`` at the narrowest seam, so that everything
above runs as it is: `inference.engines.tensorrt`, the worker, the service. It is part of the product:
``engine = "fake_tensorrt"`` serves any ONNX model of the repository on it, and whoever runs GPU services
can rehearse their failures on a laptop.
"""

from __future__ import annotations

from pathlib import Path

from inference.engines.contract import Support
from inference.engines.cuda import Cuda
from inference.engines.fake.device import FakeDevice
from inference.engines.fake.library import make_module
from inference.engines.fake.program import FaultProgram, PlannedFault
from inference.engines.onnx import MODEL_FILE
from inference.engines.tensorrt import TensorRtEngine, TensorRtRuntime

KIND = "fake_tensorrt"
PROGRAM_FILE = "fake_device.json"
"""In the version folder: a JSON list of planned faults; see `PlannedFault`."""


class FakeTensorRtRuntime:
    """Loads ``model.onnx`` as if it were a plan, on a device of its own."""

    def is_supported(self) -> Support:
        """It runs wherever ONNX Runtime does."""
        return Support(True)

    def load(self, folder: Path, file: str | None = None) -> TensorRtEngine:
        """Load a model; faults come from ``folder/fake_device.json``, now and in each step."""
        device = FakeDevice(FaultProgram(folder / PROGRAM_FILE))
        runtime = TensorRtRuntime(KIND, make_module(device), Cuda(device.cuda), file=MODEL_FILE)
        return runtime.load(folder, file)


__all__ = [
    "KIND",
    "PROGRAM_FILE",
    "FakeDevice",
    "FakeTensorRtRuntime",
    "FaultProgram",
    "PlannedFault",
    "make_module",
]
