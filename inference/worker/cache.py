"""The prefix cache: keys and values of prompt beginnings that were computed before.

As in vLLM, prompts are cut into blocks and a block is found by everything up to its end, so two
prompts share what they have in common; whole prompts (all but the last token, whose logits must be
computed anew) are found as well. The least recently used prompt leaves when the limit is reached.

The beginnings that a model's prompt templates have in common are pinned: computed when the model is
loaded, found whatever their length, and kept for as long as the model is.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from inference.engines.contract import FloatArray

BLOCK_TOKENS = 8
# A quarter of the limit at most: templates must not crowd out the prompts of users.
_PINNED_SHARE = 0.25
_DIGEST_BYTES = 16

Key = bytes


@dataclass(slots=True)
class _Entry:
    """Keys and values of one prompt and the index keys that lead to it."""

    present: list[FloatArray]
    size_bytes: int
    keys: list[Key] = field(default_factory=list)


class PrefixCache:
    """Keys and values by prompt prefix, limited in bytes; 0 switches it off."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._index: dict[Key, tuple[Key, int]] = {}
        self._pinned: dict[Key, list[FloatArray]] = {}
        self._pinned_lengths: set[int] = set()
        self._pinned_bytes = 0
        self.size_bytes = 0
        """Bytes of all keys and values, the pinned ones included."""

    def lookup(self, ids: Sequence[int]) -> tuple[int, list[FloatArray]]:
        """Return the number of leading tokens that are known, and their cache [1, H, tokens, D].

        At least one token of the prompt is left to compute; nothing known is an empty list.
        """
        if not self._index and not self._pinned:
            return 0, []
        for length, key in reversed(list(self._keys(ids))):
            if (found := self._index.get(key)) is not None:
                self._entries.move_to_end(found[0])
                present = self._entries[found[0]].present
                return length, [array[:, :, :length] for array in present]
            if (pinned := self._pinned.get(key)) is not None:
                return length, pinned
        return 0, []

    def insert(self, ids: Sequence[int], present: Sequence[FloatArray]) -> None:
        """Remember a computed prompt; ``present`` is [1, H, len(ids), D] per layer and part."""
        size = sum(array.nbytes for array in present)
        if size > self._limit_bytes - self._pinned_bytes:
            return
        owner = _digest(b"owner", ids)
        if owner in self._entries:
            return
        entry = _Entry(list(present), size)
        for length, key in self._keys(ids):
            if key not in self._index:
                self._index[key] = (owner, length)
                entry.keys.append(key)
        if not entry.keys:
            return
        self._entries[owner] = entry
        self.size_bytes += size
        while self.size_bytes > self._limit_bytes:
            self._evict()

    def knows(self, ids: Sequence[int]) -> bool:
        """Say whether inserting a prompt would add nothing."""
        return not self._limit_bytes or all(key in self._index for _, key in self._keys(ids))

    def pin(self, ids: Sequence[int], present: Sequence[FloatArray]) -> bool:
        """Keep the keys and values of a template's beginning; say whether there was room."""
        size = sum(array.nbytes for array in present)
        if self._pinned_bytes + size > self._limit_bytes * _PINNED_SHARE:
            return False
        self._pinned_lengths.add(len(ids))
        (key,) = (key for length, key in self._keys([*ids, 0]) if length == len(ids))
        if key not in self._pinned:
            self._pinned[key] = list(present)
            self._pinned_bytes += size
            self.size_bytes += size
        return True

    def clear(self) -> None:
        """Forget the prompts of users; what is pinned comes from the model alone and stays."""
        self._entries.clear()
        self._index.clear()
        self.size_bytes = self._pinned_bytes

    def _keys(self, ids: Sequence[int]) -> Iterator[tuple[int, Key]]:
        """Yield prefix lengths and their keys, shortest first: blocks, pinned, all but one token.

        A key is a hash over the key of the blocks before and the tokens since, so that a prompt of n
        tokens is hashed once and not once for each prefix. 128 bits: nobody meets, or makes, two
        prompts with one key.
        """
        whole = len(ids) - 1
        lengths = {*range(BLOCK_TOKENS, whole + 1, BLOCK_TOKENS), whole, *self._pinned_lengths}
        chain, done = b"", 0
        for length in sorted(lengths):
            if not 0 < length <= whole:
                continue
            key = _digest(chain, ids[done:length])
            yield length, key
            if length % BLOCK_TOKENS == 0:
                chain, done = key, length

    def _evict(self) -> None:
        _, entry = self._entries.popitem(last=False)
        self.size_bytes -= entry.size_bytes
        for key in entry.keys:
            del self._index[key]


def _digest(chain: bytes, ids: Sequence[int]) -> Key:
    tokens = np.asarray(ids, dtype=np.int64).tobytes()
    return hashlib.blake2b(chain + tokens, digest_size=_DIGEST_BYTES).digest()
