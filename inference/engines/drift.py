"""How far the outputs of a variant are from the original's, and whether its answers are still right.

A language model whose folder has golden prompts is compared on those: all scores along each prompt
and its answer, and the answers that it gives by itself. Any other model gets random inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from inference.engines.contract import (
    Array,
    CacheShape,
    Context,
    EngineError,
    FloatArray,
    Signature,
    StepInputs,
    StepOutputs,
)
from inference.engines.decoding import DecoderContext, derive_interface
from inference.model import DecoderMetadata, ModelFormatError, read_metadata

_MAX_ANSWER_TOKENS = 128


class Drift(BaseModel):
    """Differences from the original model."""

    model_config = ConfigDict(frozen=True)

    relative: float = Field(description="Mean difference over the mean size of the original.")
    max_abs: float
    mean_abs: float
    cosine: float = Field(description="Of all outputs as one vector; 1 is the same direction.")
    top1_agreement: float = Field(description="Share of rows with the same largest output.")
    golden_right: int | None = Field(description="Golden prompts answered to the letter.")
    golden_total: int | None


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared."""

    context: Context
    signature: Signature


@dataclass(frozen=True, slots=True)
class _Decoder:
    """A side as a decoder."""

    context: DecoderContext
    shape: CacheShape


@dataclass(frozen=True, slots=True)
class GoldenRun:
    """A golden prompt."""

    prompt: tuple[int, ...]
    """Token ids."""
    expected: str


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """The golden prompts of a language model."""

    metadata: DecoderMetadata
    tokenizer: Any
    runs: tuple[GoldenRun, ...]


def read_golden(model: Path) -> GoldenSet | None:
    """Read the golden prompts beside a model; None where there are none to be read."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - heavy, and most commands do not need it

    from inference.worker.prompts import PromptEncoder  # noqa: PLC0415 - as above

    try:
        metadata = read_metadata(model.parent)
        if not isinstance(metadata, DecoderMetadata) or not metadata.golden:
            return None
        tokenizer = Tokenizer.from_buffer((model.parent / metadata.tokenizer).read_bytes())
    except (ModelFormatError, OSError, ValueError):
        return None  # a model on its own is compared on random inputs
    encoder = PromptEncoder(tokenizer, metadata)
    runs = tuple(
        GoldenRun(tuple(encoder.encode(golden.task, golden.text)), golden.expected)
        for golden in metadata.golden
    )
    return GoldenSet(metadata, tokenizer, runs)


def measure_drift(
    original: Side,
    variant: Side,
    feeds: Sequence[Mapping[str, Array]],
    golden: GoldenSet | None,
) -> Drift:
    """Compare two contexts of the same model.

    Raises:
        EngineError: one of them does not run.
    """
    if golden is None:
        pairs = [(_first(original.context, feed), _first(variant.context, feed)) for feed in feeds]
        right: int | None = None
    else:
        before, after = (_as_decoder(side, golden.metadata) for side in (original, variant))
        pairs = []
        right = 0
        for run in golden.runs:
            # Along the original's own answer, so that one other word is one difference.
            text = (*run.prompt, *_answer(before, golden, run))
            scores = [_step(one, text).logits[0] for one in (before, after)]
            pairs.append((scores[0], scores[1]))
            right += _is_right(golden, run, _answer(after, golden, run))
    total = None if golden is None else len(golden.runs)
    return _compare(pairs, right, total)


def _compare(
    pairs: Sequence[tuple[FloatArray, FloatArray]], right: int | None, total: int | None
) -> Drift:
    ours = np.concatenate([variant.ravel() for _, variant in pairs]).astype(np.float64)
    theirs = np.concatenate([original.ravel() for original, _ in pairs]).astype(np.float64)
    gap = np.abs(ours - theirs)
    same = [np.argmax(a, axis=-1).ravel() == np.argmax(b, axis=-1).ravel() for a, b in pairs]
    norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return Drift(
        relative=float(gap.mean() / max(np.abs(theirs).mean(), 1e-12)),
        max_abs=float(gap.max()),
        mean_abs=float(gap.mean()),
        cosine=float(ours @ theirs / norms) if norms else 1.0,
        top1_agreement=float(np.concatenate(same).mean()),
        golden_right=right,
        golden_total=total,
    )


def _first(context: Context, feed: Mapping[str, Array]) -> FloatArray:
    """Run once and return the first output with fractions, as rows."""
    for output in context.run(feed).values():
        array = np.asarray(output)
        if np.issubdtype(array.dtype, np.floating) and array.size:
            return array.astype(np.float32).reshape(array.shape[0] if array.ndim else 1, -1)
    raise EngineError("no output is a floating-point number: there is nothing to compare")


def _answer(decoder: _Decoder, golden: GoldenSet, run: GoldenRun) -> list[int]:
    """Answer a prompt greedily, token by token."""
    ends = set(map(golden.tokenizer.token_to_id, golden.metadata.end_tokens))
    outputs = _step(decoder, run.prompt)
    answer: list[int] = []
    room = min(_MAX_ANSWER_TOKENS, golden.metadata.max_context_tokens - len(run.prompt))
    while len(answer) < room:
        token = int(np.argmax(outputs.logits[0, -1]))
        if token in ends:
            break
        answer.append(token)
        length = len(run.prompt) + len(answer)
        step = StepInputs(
            np.array([[token]], np.int64),
            np.ones((1, length), np.int64),
            np.array([[length - 1]], np.int64),
            outputs.present,
        )
        outputs = decoder.context.execute(step)
    return answer


def _is_right(golden: GoldenSet, run: GoldenRun, answer: Sequence[int]) -> bool:
    """Compare as the canary does: by text."""
    text: str = golden.tokenizer.decode(answer, skip_special_tokens=True)
    return text.strip() == run.expected.strip()


def _as_decoder(side: Side, metadata: DecoderMetadata) -> _Decoder:
    interface = derive_interface(
        side.signature, metadata.name, heads=metadata.heads, head_dim=metadata.head_dim
    )
    return _Decoder(DecoderContext(side.context, interface), interface.shape)


def _step(decoder: _Decoder, ids: Sequence[int]) -> StepOutputs:
    """Run a whole text after an empty cache."""
    length = len(ids)
    return decoder.context.execute(
        StepInputs(
            np.array([ids], np.int64),
            np.ones((1, length), np.int64),
            np.arange(length, dtype=np.int64)[np.newaxis],
            decoder.shape.empty(),
        )
    )
