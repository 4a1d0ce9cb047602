"""Proof, at load, that a decoder's cache and padding mean what continuous batching takes them for.

A signature says which tensors there are and not what the model does with them. Exports exist that
ignore their cache, or count positions by columns; they would answer fluently and wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inference.engines.contract import EngineLoadError, EngineStepError, FloatArray
from inference.engines.decoding import DecoderInterface, StepContext
from inference.worker.prefill import Group, group_inputs, own_past, row_inputs
from inference.worker.sequence import DecoderSequence

# As a share of the largest logit. Another order of additions gives 1e-6 in single and 1e-3 in half
# precision; a wrong position or a missing past gives 0.1 and more.
_TOLERANCE = {"float32": 1e-3, "float16": 2e-2}
_TOKENS = 6


def probe_tokens(vocabulary: int) -> list[int]:
    """Return tokens spread over the vocabulary, each different where there are enough."""
    return [(1 + 7 * n) % vocabulary for n in range(1, _TOKENS + 1)]


def check_cache(
    context: StepContext, interface: DecoderInterface, ids: Sequence[int], name: str
) -> None:
    """Compare a prompt computed at once with the same in two pieces.

    Raises:
        EngineLoadError: they differ, or the model cannot do one of them.
    """
    empty, half = interface.shape.empty(), len(ids) // 2
    try:
        whole = context.execute(row_inputs(ids, 0, len(ids), empty)).logits[0, -1]
        first = context.execute(row_inputs(ids, 0, half, empty))
        rest = context.execute(row_inputs(ids, half, len(ids), first.present)).logits[0, -1]
    except EngineStepError as error:
        raise EngineLoadError(f"{name} cannot compute a prompt in two pieces: {error}") from error
    off = _difference(whole, rest)
    if off > _TOLERANCE[interface.shape.dtype]:
        raise EngineLoadError(
            f"{name}: a prompt in two pieces gives other logits than at once (by {off:.1%} of the "
            "largest): the model does not continue from its past; export it with use_cache=True"
        )


def padding_problem(context: StepContext, interface: DecoderInterface, ids: Sequence[int]) -> str:
    """Say why rows of different lengths cannot be computed together, or nothing if they can."""
    if not interface.can_pad:
        return "the model has no attention_mask"
    rows = [list(ids), list(ids[: len(ids) // 2])]
    empty = interface.shape.empty()
    try:
        alone = [context.execute(row_inputs(r, 0, len(r), empty)).logits[0, -1] for r in rows]
        together = context.execute(group_inputs(_group(rows), empty)).logits[:, -1]
        # A step of a batch: each past was computed at other columns than it stands in now.
        group = _group(rows)
        for sequence in group.sequences:
            known = sequence.computed = len(sequence.ids) - 1
            first = context.execute(row_inputs(sequence.ids, 0, known, empty))
            sequence.past = own_past(first.present, 0, known)
        step = context.execute(group_inputs(group, empty)).logits[:, -1]
    except EngineStepError as error:
        return str(error)
    off = max(
        _difference(a, b) for rows in (together, step) for a, b in zip(alone, rows, strict=True)
    )
    if off > _TOLERANCE[interface.shape.dtype]:
        return f"padding on the left changes the logits by {off:.1%} of the largest"
    return ""


def _group(rows: Sequence[Sequence[int]]) -> Group:
    return Group([DecoderSequence.bare(row) for row in rows], [len(row) for row in rows])


def _difference(a: FloatArray, b: FloatArray) -> float:
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=1e-9))
    both = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)) or not both.any():
        return float("inf")
    return float(np.abs(a[both] - b[both]).max()) / scale
