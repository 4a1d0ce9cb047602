"""What the worker asks of an engine, in the three parts that TensorRT made the field's terms.

A `Runtime` loads a model folder into an `Engine` (weights, immutable); an `Engine` makes a
`Context` (the state of one execution); a `Context` executes one step. Failures are typed, because
the supervisor and the health layers tell them apart: a load that fails is not a step that fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class EngineError(Exception):
    """Anything that an engine can report; says whether trying again can help."""

    retryable = False


class EngineLoadError(EngineError):
    """The model could not be loaded: the file, the driver or the version does not fit."""


class EngineStepError(EngineError):
    """One step failed; the engine may or may not survive it."""

    retryable = True


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a runtime can work on this machine, and why not."""

    supported: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Shape of the key-value cache of one sequence: [layers, 2, heads, tokens, head_dim]."""

    layers: int
    heads: int
    head_dim: int

    def empty(self, batch: int = 1) -> list[FloatArray]:
        """Return a cache of no tokens: 2 * layers arrays [batch, heads, 0, head_dim]."""
        shape = (batch, self.heads, 0, self.head_dim)
        return [np.zeros(shape, dtype=np.float32) for _ in range(2 * self.layers)]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step of a left-padded batch of B sequences, T new tokens after P cached ones."""

    input_ids: IntArray
    """[B, T] token ids."""
    attention_mask: IntArray
    """[B, P + T]; 0 hides padding on the left."""
    position_ids: IntArray
    """[B, T]; counted without the padding."""
    past: Sequence[FloatArray]
    """2 * layers arrays [B, heads, P, head_dim]: key and value of layer 0, of layer 1, ..."""


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What one step computes."""

    logits: FloatArray
    """[B, T, vocabulary]."""
    present: list[FloatArray]
    """Like `StepInputs.past` with P + T tokens."""


class Context(Protocol):
    """The state of one execution; used by one thread at a time."""

    def execute(self, inputs: StepInputs) -> StepOutputs:
        """Run one step.

        Raises:
            EngineStepError: the step failed.
        """
        ...


class Engine(Protocol):
    """A loaded model."""

    @property
    def kind(self) -> str:
        """Name of the runtime, as in the metric ``model_info``."""
        ...

    @property
    def device(self) -> str:
        """The device that computes, as verified after loading, not as wished for."""
        ...

    def create_context(self) -> Context:
        """Make an execution context.

        Raises:
            EngineLoadError: there is not enough memory for one.
        """
        ...


class Runtime(Protocol):
    """A library that loads models."""

    def is_supported(self) -> Support:
        """Say whether this machine can run it; cheap, raises nothing."""
        ...

    def load(self, folder: Path, shape: CacheShape) -> Engine:
        """Load the model of a version folder.

        Raises:
            EngineLoadError: with the reason that the library gave.
        """
        ...


def cache_names(layers: int, prefix: str) -> list[str]:
    """Return the tensor names of a cache in order, e.g. ``present.0.key``, ``present.0.value``."""
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
