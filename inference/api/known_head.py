"""Heads of HTTP requests that were parsed before, known again by their bytes.

A client that keeps its connection sends the same head with each request, but for the length of the
body. Parsing it means ten calls back into Python, a third of what a small request costs. The same
bytes at the beginning of a message mean the same, so that comparing them is enough.
"""

from __future__ import annotations

import re

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,10})[ \t]*\r\n", re.IGNORECASE)
_MOST_DIGITS = 10


class KnownHead:
    """The bytes of a head around the value of its ``Content-Length``."""

    __slots__ = ("_after", "_before", "_last", "_last_bytes", "_most_bytes")

    def __init__(self, before: bytes, after: bytes, most_bytes: int) -> None:
        self._before = before
        self._after = after
        self._most_bytes = most_bytes
        # The newest head whole, and the bytes of head and body: many bodies are equally long.
        self._last, self._last_bytes = b"", -1

    @classmethod
    def learn(cls, message: bytes, body: bytes, most_bytes: int) -> KnownHead | None:
        """Return the head of a message, or None if the message is not exactly a head and its body.

        Args:
            message: The bytes of one whole request, as they came.
            body: What the parser found to be its body.
            most_bytes: Longest body that is to be recognised.
        """
        at = message.find(_END) + len(_END)
        if at < len(_END) or message[at:] != body:
            return None
        found = _LENGTH.search(message, 0, at)
        if found is None or int(found[1]) != len(body):
            return None
        return cls(message[: found.start(1)], message[found.end(1) : at], most_bytes)

    def body_of(self, message: bytes) -> bytes | None:
        """Return the body if the bytes are this head, any length, and a body that long."""
        if len(message) == self._last_bytes and message.startswith(self._last):
            return message[len(self._last) :]
        before, after = self._before, self._after
        if not message.startswith(before):
            return None
        start = len(before)
        end = message.find(after, start, start + _MOST_DIGITS + len(after))
        if end < 0:
            return None
        digits = message[start:end]
        # `isdigit` of bytes is true for ASCII digits only.
        if not digits.isdigit():
            return None
        length, at = int(digits), end + len(after)
        if not 0 < length <= self._most_bytes or len(message) != at + length:
            return None
        self._last, self._last_bytes = message[:at], len(message)
        return message[at:]
