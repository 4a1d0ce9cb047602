"""A decoder's step in terms of named tensors: the usual past/present interface."""

from __future__ import annotations

from typing import Protocol, cast

from inference.engines.contract import (
    CacheShape,
    Context,
    EngineLoadError,
    FloatArray,
    Signature,
    StepInputs,
    StepOutputs,
    Tensor,
    cache_names,
)

PAST_PREFIX, PRESENT_PREFIX, LOGITS = "past_key_values", "present", "logits"
STEP_INPUTS = ("input_ids", "attention_mask", "position_ids")


class StepContext(Protocol):
    """What continuous batching runs on."""

    def execute(self, inputs: StepInputs) -> StepOutputs:
        """Run one step; raises what `Context.run` raises."""
        ...


class DecoderContext:
    """Runs steps of a decoder on a context of any engine.

    Args:
        context: Runs the model.
        shape: The cache of one sequence.
        resident: Leave keys and values on the device between steps: `StepOutputs.present` then
            holds `ResidentTensor` objects where the engine has a device. They go into the next
            step as they are; whoever changes the batch takes ``numpy.asarray`` of each.
    """

    def __init__(self, context: Context, shape: CacheShape, *, resident: bool = False) -> None:
        self._context = context
        self._past = cache_names(shape.layers, PAST_PREFIX)
        present = cache_names(shape.layers, PRESENT_PREFIX)
        self._fetches = [LOGITS, *present]
        self._resident = frozenset(present) if resident else frozenset[str]()

    def execute(self, inputs: StepInputs) -> StepOutputs:
        """Run one step; see `StepContext.execute`."""
        feeds: dict[str, Tensor] = dict(zip(self._past, inputs.past, strict=True))
        feeds["input_ids"] = inputs.input_ids
        feeds["attention_mask"] = inputs.attention_mask
        feeds["position_ids"] = inputs.position_ids
        logits, *present = self._context.run(feeds, self._fetches, self._resident).values()
        return StepOutputs(cast("FloatArray", logits), cast("list[FloatArray]", present))


def check_decoder(signature: Signature, shape: CacheShape, name: str) -> None:
    """Compare tensor names with the decoder interface.

    Raises:
        EngineLoadError: with the names that the model ``name`` lacks.
    """
    wanted_in = {*STEP_INPUTS, *cache_names(shape.layers, PAST_PREFIX)}
    wanted_out = {LOGITS, *cache_names(shape.layers, PRESENT_PREFIX)}
    missing = sorted(
        (wanted_in - {tensor.name for tensor in signature.inputs})
        | (wanted_out - {tensor.name for tensor in signature.outputs})
    )
    if missing:
        raise EngineLoadError(f"{name} lacks the tensors {', '.join(missing)}")
