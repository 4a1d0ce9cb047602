"""Messages between the front and a worker: length-prefixed msgpack over a Unix socket pair.

A frame is four bytes of length, big endian, and a msgpack array ``[tag, field, ...]``. Both ends
are one program version, so fields go by position; a frame that does not fit is a `WireError`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgpack

MAX_FRAME_BYTES = 4 * 1024 * 1024
_LENGTH = struct.Struct(">I")


class WireError(Exception):
    """The other end sent something that is not a message."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault to inject, with its parameters."""

    name: str
    parameters: Mapping[str, float | str | bool]


@dataclass(frozen=True, slots=True)
class Start:
    """First message to a worker: what to load and with which limits."""

    folder: str
    engine: str
    threads: int
    cache_bytes: int
    faults: list[list[Any]]
    """Persistent faults as ``[name, parameters]``."""


@dataclass(frozen=True, slots=True)
class Generate:
    """Answer one prompt. ``deadline`` is CLOCK_MONOTONIC seconds."""

    number: int
    task: str
    text: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: list[str]
    stream: bool
    deadline: float
    canary: bool
    """Computed anew and not counted: a cached answer would prove nothing."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up a request; the worker answers with `Failed` once its slot is free."""

    number: int


@dataclass(frozen=True, slots=True)
class ClearCache:
    """Forget the prefix cache."""


@dataclass(frozen=True, slots=True)
class InjectFault:
    """Make something go wrong, for drills."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Load:
    """Load another version beside the running one, prove it on its golden prompts, and swap."""

    version: int
    folder: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    version: int
    engine: str
    device: str
    load_seconds: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """The end of a `Load`: an empty reason means that the new version serves now."""

    version: int
    reason: str
    load_seconds: float


@dataclass(frozen=True, slots=True)
class Token:
    """More text of a streamed answer."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer; ``text`` is the whole of it. Times are CLOCK_MONOTONIC seconds."""

    number: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    started_at: float
    """When the worker took the request up; what came before was waiting."""
    prefilled_at: float
    """When the prompt was computed."""
    first_token_at: float
    last_token_at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request without an answer; its slot is free."""

    number: int
    code: str
    """``cancelled``, ``deadline``, ``invalid_output``, ``prompt_too_long``, ``step_failed``."""
    message: str


Message = (
    Start | Generate | Cancel | ClearCache | InjectFault | Load | Ready | Loaded | Token
    | Finished | Failed
)  # fmt: skip
MESSAGES: tuple[type[Message], ...] = (
    Start, Generate, Cancel, ClearCache, InjectFault, Load, Ready, Loaded, Token, Finished, Failed,
)  # fmt: skip
Request = Generate
"""What a worker starts and ends: has a ``number`` and a ``deadline``."""
_TAG_OF = {kind: tag for tag, kind in enumerate(MESSAGES)}
_NAMES = {kind: tuple(item.name for item in fields(kind)) for kind in MESSAGES}


def encode(message: Message) -> bytes:
    """Return the frame of a message.

    Raises:
        WireError: the message is larger than a frame may be.
    """
    kind = type(message)
    values = [getattr(message, name) for name in _NAMES[kind]]
    body: bytes = msgpack.packb([_TAG_OF[kind], *values], use_bin_type=True)
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"{kind.__name__} takes {len(body)} bytes, limit {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Turns a stream of bytes back into messages, however it was cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes and return the messages that they complete.

        Raises:
            WireError: a frame is too long or is not a message; the stream cannot be continued.
        """
        self._buffer += data
        messages: list[Message] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise WireError(f"frame of {length} bytes, limit {MAX_FRAME_BYTES}")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(_decode(bytes(self._buffer[start + _LENGTH.size : end])))
            start = end
        del self._buffer[:start]
        return messages


def _decode(body: bytes) -> Message:
    """Rebuild one message."""
    try:
        tag, *values = msgpack.unpackb(body, raw=False)
        kind: Callable[..., Message] = MESSAGES[tag]
        return kind(*values)
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise WireError(f"not a message: {error}") from error
