"""From tokens to text: decoded only when somebody wants it, and never half a character.

A byte-level token may end inside a character, and a tokenizer may write a token differently behind
another one. So the newest tokens are decoded together with a few before them, and the text that
those few gave already is cut off, as Text Generation Inference and vLLM do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

# What a tokenizer shows for bytes that are no character, or none yet.
_INCOMPLETE = "\ufffd"


class TextStream:
    """The text of a growing answer, and how much of it was sent.

    Args:
        decode: Turns tokens into text.
        stops: Texts that end the answer; neither they nor what follows is part of it.
        concatenates: Whether each token's text is the same wherever it stands, as with byte-level
            tokenizers; what was decoded once is then not decoded again.
    """

    __slots__ = (
        "_concatenates", "_context", "_decode", "_read", "_sent", "_stops", "stopped", "text",
    )  # fmt: skip

    def __init__(
        self, decode: Decode, stops: Sequence[str] = (), *, concatenates: bool = False
    ) -> None:
        self._decode = decode
        self._concatenates = concatenates
        self._stops = stops
        self._context = 0  # first token that is decoded again
        self._read = 0  # tokens whose text is complete
        self._sent = 0  # characters
        self.text = ""
        """Everything that cannot change any more."""
        self.stopped = False
        """Whether a stop text was met; `text` ends before it."""

    def read(self, tokens: Sequence[int], *, last: bool = False) -> None:
        """Take in all tokens so far; ``last`` gives up waiting for the rest of a character."""
        if self.stopped or len(tokens) == self._read:
            return
        again = self._context < self._read
        known = self._decode(tokens[self._context : self._read]) if again else ""
        text = self._decode(tokens[self._context :])
        if not last and (len(text) <= len(known) or text.endswith(_INCOMPLETE)):
            return
        self._context, self._read = self._read, len(tokens)
        if self._concatenates:
            self._context = self._read
        before = len(self.text)
        self.text += text[len(known) :]
        if self._stops:
            self._find_stop(before)

    def take(self, *, last: bool = False) -> str:
        """Return the text that was not taken yet, as far as no stop text can begin in it."""
        until = len(self.text)
        if self._stops and not (last or self.stopped):
            until -= max((_overlap(self.text, stop) for stop in self._stops), default=0)
        if until <= self._sent:
            return ""
        text = self.text[self._sent : until]
        self._sent = until
        return text

    def _find_stop(self, before: int) -> None:
        """Cut the text at the first stop text that ends in what is new."""
        found = (self.text.find(stop, max(0, before - len(stop) + 1)) for stop in self._stops)
        cut = min((at for at in found if at >= 0), default=-1)
        if cut >= 0:
            self.text = self.text[:cut]
            self.stopped = True


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of the text could be the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
