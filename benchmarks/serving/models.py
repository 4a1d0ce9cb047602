"""The two models of the table, in a repository folder that the service reads and the peers share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.serving.apps.onnx_session import Session
from inference.demo.tensors import write_costly, write_tiny_mlp

WIDTH = 64


@dataclass(frozen=True, slots=True)
class ModelUnderTest:
    """A model with one request for it and the right answer."""

    key: str
    title: str
    repository: Path
    model: str
    input: str
    wait_milliseconds: int
    """How long a batcher waits for a batch to fill, where one can be told."""
    row: tuple[float, ...]
    expected: tuple[float, ...]

    @property
    def file(self) -> Path:
        """The ONNX file."""
        return self.repository / self.model / "1" / "model.onnx"


def write_models(folder: Path) -> dict[str, ModelUnderTest]:
    """Write both models and return them by key."""
    tiny = write_tiny_mlp(folder).parent.name
    costly = write_costly(folder).parent.name
    return {
        "A": _under_test("A", "a tiny perceptron", folder, tiny, 1),
        "B": _under_test("B", "64 MiB of weights, three times", folder, costly, 5),
    }


def _under_test(
    key: str, title: str, repository: Path, model: str, wait_milliseconds: int
) -> ModelUnderTest:
    """Describe a model that is in the repository, with an answer by ONNX Runtime itself."""
    row = np.random.default_rng(1).normal(size=WIDTH).round(3)
    session = Session(str(repository / model / "1" / "model.onnx"))
    expected = session.run(row[None].astype(np.float32))[0]
    return ModelUnderTest(
        key=key,
        title=title,
        repository=repository,
        model=model,
        input=session.input,
        wait_milliseconds=wait_milliseconds,
        row=tuple(map(float, row)),
        expected=tuple(map(float, expected)),
    )
