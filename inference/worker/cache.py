"""The prefix cache: keys and values of prompt beginnings that were computed before.

As in vLLM, prompts are cut into blocks and a block is found by everything up to its end, so two
prompts share what they have in common; whole prompts (all but the last token, whose logits must be
computed anew) are found as well. The least recently used prompt leaves when the limit is reached.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.engines.contract import CacheShape, FloatArray

BLOCK_TOKENS = 8


@dataclass(slots=True)
class _Entry:
    """Keys and values of one prompt and the index keys that lead to it."""

    present: list[FloatArray]
    size_bytes: int
    keys: list[tuple[int, ...]] = field(default_factory=list)


class PrefixCache:
    """Keys and values by prompt prefix, limited in bytes; 0 switches it off."""

    def __init__(self, limit_bytes: int, shape: CacheShape) -> None:
        self._limit_bytes = limit_bytes
        self._shape = shape
        self._entries: OrderedDict[tuple[int, ...], _Entry] = OrderedDict()
        self._index: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.size_bytes = 0

    def lookup(self, ids: Sequence[int]) -> tuple[int, list[FloatArray]]:
        """Return the number of leading tokens that are known, and their cache [1, H, tokens, D].

        At least one token of the prompt is left to compute.
        """
        prompt = tuple(ids)
        for length in _prefix_lengths(len(prompt)):
            owner = self._index.get(prompt[:length])
            if owner is not None:
                self._entries.move_to_end(owner)
                present = self._entries[owner].present
                return length, [array[:, :, :length] for array in present]
        return 0, self._shape.empty()

    def insert(self, ids: Sequence[int], present: Sequence[FloatArray]) -> None:
        """Remember a computed prompt; ``present`` is [1, H, len(ids), D] per layer and part."""
        prompt = tuple(ids)
        size = sum(array.nbytes for array in present)
        if prompt in self._entries or size > self._limit_bytes:
            return
        entry = _Entry(list(present), size)
        for length in _prefix_lengths(len(prompt)):
            key = prompt[:length]
            if key not in self._index:
                self._index[key] = prompt
                entry.keys.append(key)
        if not entry.keys:
            return
        self._entries[prompt] = entry
        self.size_bytes += size
        while self.size_bytes > self._limit_bytes:
            self._evict()

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._index.clear()
        self.size_bytes = 0

    def _evict(self) -> None:
        _, entry = self._entries.popitem(last=False)
        self.size_bytes -= entry.size_bytes
        for key in entry.keys:
            del self._index[key]


def _prefix_lengths(length: int) -> list[int]:
    """Return the prefix lengths that are indexed, longest first: all but one, then blocks."""
    whole = length - 1
    blocks = range(whole - whole % BLOCK_TOKENS, 0, -BLOCK_TOKENS)
    lengths = [whole] if whole > 0 and whole % BLOCK_TOKENS else []
    return [*lengths, *blocks]
