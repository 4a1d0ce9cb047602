"""Computing prompts: several in one execution, long ones in pieces.

Prompts are computed between the steps of the sequences that decode, so each execution has a budget of
tokens: it bounds how long the others wait, how often a deadline or a cancellation is noticed, and how
long a worker goes without a step. Every other group begins with the shortest prompt instead of the
oldest one: a short prompt does not wait for a long one, and a long one is not starved.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from inference.engines.contract import FloatArray, StepInputs
from inference.worker.sequence import DecoderSequence

# Rows of one execution are padded to the longest; a row that is mostly padding waits for the next.
_LEAST_FILLED = 0.5


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that are computed together, each up to its token ``ends[i]``."""

    sequences: Sequence[DecoderSequence]
    ends: Sequence[int]

    @property
    def width(self) -> int:
        """Tokens per row, padding included."""
        return max(
            end - sequence.computed for sequence, end in zip(self.sequences, self.ends, strict=True)
        )


class PrefillQueue:
    """Prompts that hold a slot and are not computed yet.

    Args:
        budget_tokens: Most tokens of one execution, padding included.
        batched: Whether prompts may be computed together.
    """

    def __init__(self, budget_tokens: int, *, batched: bool = True) -> None:
        self._budget_tokens = budget_tokens
        self._batched = batched
        self._oldest_first = True
        self.sequences: list[DecoderSequence] = []

    def add(self, sequence: DecoderSequence) -> None:
        """Queue a prompt; the probes of the canary go ahead of users."""
        if sequence.request.canary:
            self.sequences.insert(0, sequence)
        else:
            self.sequences.append(sequence)

    def remove(self, sequences: AbstractSet[DecoderSequence]) -> None:
        """Forget prompts."""
        if self.sequences:
            self.sequences = [s for s in self.sequences if s not in sequences]

    def next_group(self, room_tokens: int) -> Group | None:
        """Choose what to compute next.

        Args:
            room_tokens: What is left of the budget of a step. A prompt is cut to the whole budget
                only, not to what is left of it.

        Returns:
            None if no prompt waits or the next one has no room.
        """
        if not self.sequences:
            return None
        canary = self.sequences[0].request.canary
        if self._oldest_first or canary:
            lead = self.sequences[0]
        else:
            lead = min(self.sequences, key=lambda sequence: sequence.remaining)
        width = min(lead.remaining, self._budget_tokens)
        if width > room_tokens:
            return None
        self._oldest_first = canary or not self._oldest_first
        chosen = [lead]
        for sequence in self.sequences:
            if sequence is lead or lead.alone or sequence.alone or not self._batched:
                continue
            fits = (len(chosen) + 1) * width <= room_tokens
            if fits and _LEAST_FILLED * width <= sequence.remaining <= width:
                chosen.append(sequence)
        ends = [s.computed + min(s.remaining, width) for s in chosen]
        return Group(chosen, ends)


def row_inputs(ids: Sequence[int], start: int, end: int, past: Sequence[FloatArray]) -> StepInputs:
    """Build the inputs that compute the tokens ``start`` to ``end`` of one prompt."""
    return StepInputs(
        np.array([ids[start:end]], dtype=np.int64),
        np.ones((1, end), dtype=np.int64),
        np.arange(start, end, dtype=np.int64)[np.newaxis],
        past,
    )


def group_inputs(group: Group, empty: Sequence[FloatArray]) -> StepInputs:
    """Build the inputs that compute a group.

    Rows are right-aligned without a gap between what is known and what is new, because some models
    count positions by columns. A row with fewer new tokens than the others therefore computes its
    newest known ones again.

    Args:
        group: What to compute.
        empty: A cache of no tokens, for its shapes.
    """
    if len(group.sequences) == 1:
        sequence, end = group.sequences[0], group.ends[0]
        return row_inputs(sequence.ids, sequence.computed, end, sequence.past or empty)
    width = group.width
    rows = list(zip(group.sequences, group.ends, strict=True))
    known = [max(0, end - width) for end in group.ends]
    columns = max(known)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    for row, (sequence, end) in enumerate(rows):
        tokens = sequence.ids[known[row] : end]
        ids[row, width - len(tokens) :] = tokens
    starts = np.array([columns + width - end for end in group.ends])[:, np.newaxis]
    axis = np.arange(columns + width)
    mask = (axis >= starts).astype(np.int64)
    positions = np.maximum(axis[columns:] - starts, 0)
    return StepInputs(ids, mask, positions, _past(group.sequences, known, empty))


def _past(
    sequences: Sequence[DecoderSequence], known: Sequence[int], empty: Sequence[FloatArray]
) -> list[FloatArray]:
    """Put the known keys and values of the rows side by side."""
    joined = []
    for part, like in enumerate(empty):
        _, heads, _, size = like.shape
        array = np.zeros((len(sequences), heads, max(known), size), dtype=like.dtype)
        for row, (sequence, length) in enumerate(zip(sequences, known, strict=True)):
            if length:
                array[row, :, max(known) - length :] = sequence.past[part][0, :, :length]
        joined.append(array)
    return joined


def own_past(present: Sequence[FloatArray], row: int, length: int) -> list[FloatArray]:
    """Return the keys and values [1, heads, length, head_dim] of a row, without the other rows."""
    arrays = [np.asarray(array) for array in present]
    views = [array[row : row + 1, :, array.shape[2] - length :] for array in arrays]
    # A view of one row of many would keep all of them in memory.
    return [
        view if view.nbytes == array.nbytes else view.copy()
        for view, array in zip(views, arrays, strict=True)
    ]
