"""What the worker asks of an engine, in the three parts that TensorRT made the field's terms.

A `Runtime` loads a model folder into an `Engine` (weights, immutable, with a `Signature`); an
`Engine` makes a `Context` (the state of one execution); `Context.run` takes named tensors and returns
named tensors, whatever the model is. What a decoder's step means in those terms is written in
`inference.engines.decoding`. Failures are typed, because the supervisor and the health layers tell
them apart: a load that fails is not a step that fails, and a device that is lost ends the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class EngineError(Exception):
    """Anything that an engine can report; says whether trying again can help."""

    code = "engine_failed"
    """What a `Failed` message carries; the front makes the client's error from it."""
    retryable = False
    fatal = False
    """Whether this process cannot use its device any more: it has to end, and another one start."""


class EngineLoadError(EngineError):
    """The model could not be loaded: the file, the driver or the version does not fit."""


class EngineStepError(EngineError):
    """One step failed; the engine is fit for the next one."""

    code = "step_failed"
    retryable = True


class OutOfMemoryError(EngineStepError):
    """The device, or the host, has no memory for this step; a smaller one may still fit."""

    code = "memory_limit"


class DeviceLostError(EngineStepError):
    """The device is gone, or its state is: nothing works any more in this process."""

    code = "device_lost"
    fatal = True


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a runtime can work on this machine, and why not."""

    supported: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model."""

    name: str
    dtype: np.dtype[Any]
    """``object`` for text."""
    shape: tuple[int | str, ...]
    """A size that varies has a name; two axes of one name have one size. ``?`` is no name."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What goes into a model and what comes out, in the model's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec | None:
        """Return the input of a name."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    def output(self, name: str) -> TensorSpec | None:
        """Return the output of a name."""
        return next((tensor for tensor in self.outputs if tensor.name == name), None)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the parts of a loaded model really are, as the library tells when it is asked."""

    weights: str
    inputs: str
    outputs: str
    wanted: str
    """The device that was asked for."""
    reason: str = ""
    """Why it is not that one; empty when it is."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``; ``mixed`` when the parts are in different places."""
        places = {self.weights, self.inputs, self.outputs}
        return places.pop() if len(places) == 1 else "mixed"

    @property
    def fell_back(self) -> bool:
        """Whether something computes elsewhere than it should."""
        return self.device != self.wanted


class ResidentTensor(Protocol):
    """An output that stayed on the device, to be fed to a later run of the same context.

    ``numpy.asarray(tensor)`` copies it to the host: that is how a batch is put together anew. Its
    memory is given back when nobody holds it any more.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Copy to the host."""
        ...


Tensor = Array | ResidentTensor


class Context(Protocol):
    """The state of one execution; used by one thread at a time."""

    def run(
        self,
        feeds: Mapping[str, Tensor],
        fetches: Sequence[str] | None = None,
        resident: frozenset[str] = frozenset(),
    ) -> dict[str, Tensor]:
        """Compute outputs from inputs.

        Args:
            feeds: Every input of the signature, by name.
            fetches: Outputs that are wanted, in the order of the result; None is all of them.
            resident: Fetches that the next run is fed with. They may stay on the device, as
                `ResidentTensor`; all others, and all on an engine of the host, are arrays.

        Raises:
            EngineStepError: the run failed.
            OutOfMemoryError: for lack of memory.
            DeviceLostError: and the process cannot go on.
        """
        ...

    def close(self) -> None:
        """Give back the memory of the execution; may be called twice."""
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

    @property
    def signature(self) -> Signature:
        """Inputs and outputs."""
        ...

    def placement(self) -> Placement:
        """Ask the library anew where weights, inputs and outputs are; cheap.

        Raises:
            DeviceLostError: the device does not answer any more.
        """
        ...

    def create_context(self) -> Context:
        """Make an execution context.

        Raises:
            EngineLoadError: there is not enough memory for one.
        """
        ...

    def close(self) -> None:
        """Give back everything, the memory of contexts included; may be called twice."""
        ...


class Runtime(Protocol):
    """A library that loads models."""

    def is_supported(self) -> Support:
        """Say whether this machine can run it; cheap, raises nothing."""
        ...

    def load(self, folder: Path, file: str | None = None) -> Engine:
        """Load the model of a version folder.

        Args:
            folder: The version.
            file: Name of a variant's file in it; None is the runtime's usual name.

        Raises:
            EngineLoadError: with the reason that the library gave.
        """
        ...


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Shape of the key-value cache of one sequence: [layers, 2, heads, tokens, head_dim]."""

    layers: int
    heads: int
    """Heads of keys and values; with grouped queries, fewer than those of queries."""
    head_dim: int
    dtype: str = "float32"

    def empty(self, batch: int = 1) -> list[FloatArray]:
        """Return a cache of no tokens: 2 * layers arrays [batch, heads, 0, head_dim]."""
        shape = (batch, self.heads, 0, self.head_dim)
        return [np.zeros(shape, dtype=self.dtype) for _ in range(2 * self.layers)]


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
    """2 * layers tensors [B, heads, P, head_dim]: key and value of layer 0, of layer 1, ..."""


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What one step computes."""

    logits: FloatArray
    """[B, T, vocabulary]."""
    present: list[FloatArray]
    """Like `StepInputs.past` with P + T tokens."""
