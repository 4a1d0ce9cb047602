"""Keys and values of the sequences that decode together: one row each, left-padded.

Row i holds its tokens at the right end and is masked on the left, so one step appends one column for
all. Nothing is copied when a sequence leaves: its row becomes a hole, which computes for nobody until
the next sequence takes it. Holes, and columns that only padding is left in, are cut out once the work
they wasted is worth as much as the copy, which bounds the waste to twice the best that a batch could
do that knew the future (the ski rental rule; Karlin et al. 1988).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from inference.engines.contract import FloatArray, IntArray, StepInputs
from inference.worker.sequence import DecoderSequence

# Copying the cache of the bundled models takes between a third and a half of a step of the same size.
COPY_COST_STEPS = 0.5


@dataclass(frozen=True, slots=True)
class Joining:
    """A computed prompt: row ``row`` of ``present`` holds its tokens at the right end."""

    sequence: DecoderSequence
    present: Sequence[FloatArray]
    row: int = 0


class Batch:
    """The rows of one engine context.

    Args:
        limit_columns: Most tokens that the engine can attend to.
    """

    def __init__(self, limit_columns: int) -> None:
        self._limit_columns = limit_columns
        self._rows: list[DecoderSequence | None] = []
        self._past: list[FloatArray] = []
        self._starts: IntArray = np.zeros(0, dtype=np.int64)
        self._newest: IntArray = np.zeros((0, 1), dtype=np.int64)
        self._columns = 0
        self._wasted_steps = 0.0
        self._first = 0  # first column that a member needs
        self.members: list[tuple[int, DecoderSequence]] = []
        """Row and sequence of everything that decodes."""
        self.numbers: tuple[int, ...] = ()
        """Numbers of the members' requests."""
        self.any_special = False
        """Whether a member's tokens are not simply the likeliest."""

    @property
    def size_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(math.prod(array.shape) * array.dtype.itemsize for array in self._past)

    @property
    def rows(self) -> int:
        """Rows that a step computes, holes included."""
        return len(self._rows)

    def join(self, joining: Sequence[Joining]) -> None:
        """Add computed prompts, whose first output token is chosen."""
        if not joining:
            return
        holes = [row for row, sequence in enumerate(self._rows) if sequence is None]
        longest = max(item.sequence.tokens_in_cache for item in joining)
        if len(joining) > len(holes) or longest > self._columns or not self._writable():
            holes = self._rebuild(len(joining), longest)
        for row, item in zip(holes, joining, strict=False):
            self._put(row, item)
        self._count_members()

    def leave(self, leaving: AbstractSet[DecoderSequence], *, clean: bool = True) -> None:
        """Take sequences out; those that are not ``clean`` may have left values that spread."""
        for row, sequence in self.members:
            if sequence in leaving:
                self._rows[row] = None
                # A hole sees its own new columns only; seeing nothing at all would make it NaN.
                self._starts[row] = self._columns
                if not clean and self._writable():
                    for array in self._past:
                        array[row] = 0
        self._count_members()
        if not self.members:
            self._rows, self._past, self._columns, self._first = [], [], 0, 0
            self._starts, self._newest = self._starts[:0], self._newest[:0]
            self._wasted_steps = 0.0

    def inputs(self) -> StepInputs:
        """Return the inputs of the next step, after tidying up if that has become worth it."""
        self._tidy()
        columns = self._columns
        if self._starts.any():
            mask = (np.arange(columns + 1) >= self._starts[:, np.newaxis]).astype(np.int64)
        else:
            mask = np.ones((len(self._starts), columns + 1), dtype=np.int64)
        positions = (columns - self._starts)[:, np.newaxis]
        return StepInputs(self._newest, mask, positions, self._past)

    def advance(self, present: list[FloatArray]) -> None:
        """Take the cache that a step returned."""
        self._past = present
        self._columns += 1

    def feed(self, tokens: IntArray) -> None:
        """Set the next input token of each row."""
        self._newest = tokens[:, np.newaxis]

    def _tidy(self) -> None:
        """Cut out holes and empty columns when they have cost enough, or when there is no room."""
        first = self._first
        useful = len(self.members) * (self._columns - first)
        self._wasted_steps += 1.0 - useful / (self.rows * self._columns)
        if self._wasted_steps >= COPY_COST_STEPS or (
            first and self._columns >= self._limit_columns
        ):
            self._rebuild(0, 0)
            self._count_members()

    def _rebuild(self, more: int, longest: int) -> list[int]:
        """Copy what is alive into arrays without waste; return the ``more`` rows that are free."""
        first = self._first
        columns = max(self._columns - first, longest)
        kept = [row for row, _ in self.members]
        shift = columns - self._columns
        self._past = [_copied(array, kept, more, columns) for array in self._past]
        self._starts = np.concatenate([self._starts[kept] + shift, np.full(more, columns)])
        self._newest = np.concatenate([self._newest[kept], np.zeros((more, 1), dtype=np.int64)])
        self._rows = [*(self._rows[row] for row in kept), *[None] * more]
        self._columns = columns
        self._wasted_steps = 0.0
        return list(range(len(kept), len(kept) + more))

    def _put(self, row: int, item: Joining) -> None:
        """Copy one prompt's keys and values into a free row."""
        length = item.sequence.tokens_in_cache
        if not self._past:
            shape = (self.rows, self._columns)
            self._past = [_blank(array, *shape) for array in item.present]
        for array, new in zip(self._past, item.present, strict=True):
            array[row, :, self._columns - length :] = new[item.row, :, new.shape[2] - length :]
        self._rows[row] = item.sequence
        self._starts[row] = self._columns - length
        self._newest[row] = item.sequence.output[-1]

    def _count_members(self) -> None:
        self.members = [(row, s) for row, s in enumerate(self._rows) if s is not None]
        self.numbers = tuple(sequence.request.number for _, sequence in self.members)
        self.any_special = any(sequence.special for _, sequence in self.members)
        starts = self._starts.tolist()
        self._first = min((starts[row] for row, _ in self.members), default=self._columns)

    def _writable(self) -> bool:
        """Say whether rows can be written in place; an engine may keep its outputs elsewhere."""
        return all(isinstance(a, np.ndarray) and a.flags.writeable for a in self._past)


def _copied(array: FloatArray, rows: Sequence[int], more: int, columns: int) -> FloatArray:
    """Return these rows and ``more`` blank ones, cut or padded on the left to ``columns``."""
    old = np.asarray(array)
    new = _blank(old, len(rows) + more, columns)
    width = min(columns, old.shape[2])
    # Row by row: numpy's indexing with a list takes four times as long.
    for to, row in enumerate(rows):
        new[to, :, columns - width :] = old[row, :, old.shape[2] - width :]
    return new


def _blank(like: FloatArray, rows: int, columns: int) -> FloatArray:
    _, heads, _, size = like.shape
    return np.zeros((rows, heads, columns, size), dtype=like.dtype)
