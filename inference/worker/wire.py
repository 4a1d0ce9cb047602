"""Messages between the front and a worker, length-prefixed, over a Unix socket pair.

A frame is four bytes of length, big endian, and a msgpack array ``[tag, field, ...]``. Both ends
are one program version, so fields go by position; a frame that does not fit is a `WireError`. With
the highest bit of the length set the body is a batch of tensors (`inference.worker.frames`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import msgpack

from inference.worker.frames import BatchDone, Buffer, RunBatch, decode_batch, encode_batch

MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_BATCH_BYTES = 1024 * 1024 * 1024
_LENGTH = struct.Struct(">I")
_BATCH_FLAG = 1 << 31
_SCRATCH_BYTES = 128 * 1024


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
    stream_interval_seconds: float = 0.02
    prefill_tokens_per_step: int = 256
    device: str = "auto"
    allow_device_fallback: bool = True
    variant: str = ""
    """Name of a variant in ``model.toml``; empty is the model itself."""


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
    ignore_eos: bool = False
    """Go on after an end token."""
    min_tokens: int = 0
    """No end token before the answer has this length."""
    messages: list[list[str]] = field(default_factory=list)
    """The conversation as ``[role, content]``, for models with a chat template; ``text`` is then
    its last question."""


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
    variant: str = ""
    """As in `Start`."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    version: int
    engine: str
    device: str
    """The device that computes, as the library says."""
    load_seconds: float
    inputs: list[list[Any]] = field(default_factory=list)
    """Of a tensor model, as `TensorInfo.to_wire`."""
    outputs: list[list[Any]] = field(default_factory=list)
    max_batch_rows: int = 0
    """Rows that the model takes together; 0 where that is the front's choice."""
    wanted_device: str = ""
    device_reason: str = ""
    """Why the two differ."""
    variant: str = ""
    unbatched_reason: str = ""
    """Why a language model decodes each sequence by itself; empty if it decodes them together."""


@dataclass(frozen=True, slots=True)
class DeviceChanged:
    """A check after `Ready` found the model elsewhere than then."""

    device: str
    reason: str


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
    looked_up_at: float = 0.0
    """When the prefix cache had been asked; computing the prompt began then."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request without an answer; its slot is free."""

    number: int
    code: str
    """``cancelled``, ``deadline``, ``invalid_output``, ``prompt_too_long``, ``step_failed``,
    ``memory_limit``, ``device_lost``."""
    message: str


Plain = (
    Start | Generate | Cancel | ClearCache | InjectFault | Load | Ready | Loaded | Token
    | Finished | Failed | DeviceChanged
)  # fmt: skip
Message = Plain | RunBatch | BatchDone
MESSAGES: tuple[type[Plain], ...] = (
    Start, Generate, Cancel, ClearCache, InjectFault, Load, Ready, Loaded, Token, Finished, Failed,
    DeviceChanged,
)  # fmt: skip
Request = Generate | RunBatch
"""What a worker starts and ends: has a ``number`` and a ``deadline``."""
_TAG_OF = {kind: tag for tag, kind in enumerate(MESSAGES)}
_NAMES = {kind: tuple(item.name for item in fields(kind)) for kind in MESSAGES}


def encode(message: Message) -> bytes:
    """Return the frame of a message.

    Raises:
        WireError: the message is larger than a frame may be.
    """
    return b"".join(encode_parts(message))


def encode_parts(message: Message) -> list[Buffer]:
    """Return the frame of a message in parts; large tensors are not copied.

    Raises:
        WireError: the message is larger than a frame may be.
    """
    if not isinstance(message, RunBatch | BatchDone):
        return [_encode_plain(message)]
    parts, length = encode_batch(message)
    if length > MAX_BATCH_BYTES:
        raise WireError(f"a batch takes {length} bytes, limit {MAX_BATCH_BYTES}")
    return [_LENGTH.pack(length | _BATCH_FLAG), *parts]


def _encode_plain(message: Plain) -> bytes:
    kind = type(message)
    values = [getattr(message, name) for name in _NAMES[kind]]
    body: bytes = msgpack.packb([_TAG_OF[kind], *values], use_bin_type=True)
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"{kind.__name__} takes {len(body)} bytes, limit {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Turns a stream of bytes back into messages, however it was cut.

    Bytes are read straight into `get_buffer`. A frame that is larger than the scratch buffer gets
    memory of its own, so that a large batch is copied by the kernel only.
    """

    def __init__(self) -> None:
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._filled = 0
        self._large: memoryview | None = None
        self._large_filled = 0
        self._large_is_batch = False

    def get_buffer(self) -> memoryview:
        """Return where the next bytes go; never empty."""
        if self._large is not None:
            return self._large[self._large_filled :]
        return self._view[self._filled :]

    def received(self, count: int) -> list[Message]:
        """Take note of bytes that were put there; return the messages that they complete.

        Raises:
            WireError: a frame is too long or is not a message; the stream cannot be continued.
        """
        if self._large is None:
            self._filled += count
            return self._scan()
        self._large_filled += count
        if self._large_filled < len(self._large):
            return []
        body, self._large = self._large, None
        return [_decode(body, is_batch=self._large_is_batch)]

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes from elsewhere; see `received`."""
        messages: list[Message] = []
        rest = memoryview(data)
        while rest:
            target = self.get_buffer()
            count = min(len(target), len(rest))
            target[:count] = rest[:count]
            messages += self.received(count)
            rest = rest[count:]
        return messages

    def _scan(self) -> list[Message]:
        """Take whole frames out of the scratch buffer and move what is left to its beginning."""
        messages: list[Message] = []
        start, filled = 0, self._filled
        while filled - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._scratch, start)
            is_batch = bool(length & _BATCH_FLAG)
            length &= ~_BATCH_FLAG
            limit = MAX_BATCH_BYTES if is_batch else MAX_FRAME_BYTES
            if length > limit:
                raise WireError(f"frame of {length} bytes, limit {limit}")
            body = start + _LENGTH.size
            if filled - body < length:
                if _LENGTH.size + length > _SCRATCH_BYTES:
                    self._begin_large(self._view[body:filled], length, is_batch=is_batch)
                    start = filled
                break
            start = body + length
            messages.append(_decode(memoryview(bytes(self._view[body:start])), is_batch=is_batch))
        self._filled = filled - start
        if start and self._filled:
            self._scratch[: self._filled] = self._scratch[start:filled]
        return messages

    def _begin_large(self, beginning: memoryview, length: int, *, is_batch: bool) -> None:
        self._large = memoryview(bytearray(length))
        self._large[: len(beginning)] = beginning
        self._large_filled = len(beginning)
        self._large_is_batch = is_batch


def _decode(body: memoryview, *, is_batch: bool) -> Message:
    """Rebuild one message."""
    try:
        if is_batch:
            return decode_batch(body)
        tag, *values = msgpack.unpackb(body, raw=False)
        kind: Callable[..., Message] = MESSAGES[tag]
        return kind(*values)
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise WireError(f"not a message: {error}") from error
