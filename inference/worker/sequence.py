"""One request on its way through the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from inference.engines.contract import FloatArray
from inference.worker.text import TextStream
from inference.worker.wire import Failed, Finished, Generate

NEVER = float("inf")
ALWAYS = float("-inf")


@dataclass(slots=True, eq=False)
class DecoderSequence:
    """A request that holds a slot, and what was computed for it. Times are of the worker's clock."""

    request: Generate
    ids: Sequence[int]
    """The prompt."""
    limit_tokens: int
    """Length of the answer at which it ends, whatever the model says."""
    end_ids: frozenset[int]
    """Tokens that end the answer; none if the request ignores them."""
    rng: np.random.Generator
    text: TextStream
    started_at: float
    computed: int = 0
    """Prompt tokens whose keys and values are in `past`, while the prompt is computed."""
    past: Sequence[FloatArray] = ()
    """Keys and values [1, heads, computed, head_dim]; empty once it decodes in a batch."""
    cached_tokens: int = 0
    alone: bool = False
    """Compute its prompt by itself: it was in a group that failed."""
    output: list[int] = field(default_factory=list)
    look_at: float = NEVER
    """When to look at the text: for a stream's next event; always, if a stop text could end it."""
    send_at: float = ALWAYS
    """When a stream may send its next event."""
    looked_up_at: float = 0.0
    prefilled_at: float = 0.0
    first_token_at: float = 0.0

    @classmethod
    def bare(cls, ids: Sequence[int]) -> DecoderSequence:
        """Return a prompt that nobody waits for."""
        request = Generate(0, "", "", 1, 0.0, 1.0, 0, [], False, NEVER, True)
        text = TextStream(lambda _tokens: "")
        return cls(request, ids, 1, frozenset(), np.random.default_rng(0), text, 0.0)

    @property
    def remaining(self) -> int:
        """Prompt tokens that are not computed yet."""
        return len(self.ids) - self.computed

    @property
    def special(self) -> bool:
        """Whether its tokens are chosen in another way than by the largest logit."""
        return self.request.temperature > 0.0 or self.request.min_tokens > 0

    @property
    def tokens_in_cache(self) -> int:
        """Tokens whose keys and values are stored while it decodes; not the newest one."""
        return len(self.ids) + len(self.output) - 1

    def failed(self, code: str, message: str) -> Failed:
        """Return the message that ends it without an answer."""
        return Failed(self.request.number, code, message)

    def finished(self, reason: str, now: float) -> Finished:
        """Return the message that ends it with its text."""
        return Finished(
            number=self.request.number,
            text=self.text.text,
            finish_reason=reason,
            prompt_tokens=len(self.ids),
            completion_tokens=len(self.output),
            cached_tokens=self.cached_tokens,
            started_at=self.started_at,
            prefilled_at=self.prefilled_at,
            first_token_at=self.first_token_at,
            last_token_at=now,
            looked_up_at=self.looked_up_at,
        )
