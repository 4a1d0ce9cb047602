"""Batches survive the wire, however it cuts them, and damage is told from data."""

import struct

import numpy as np
import pytest

from inference.tensor.datatypes import BY_NAME, pack_bytes, to_array, to_buffer, unpack_bytes
from inference.worker.frames import BatchDone, RunBatch, Tensor
from inference.worker.wire import Cancel, FrameDecoder, WireError, encode, encode_parts

FP32, INT8, BYTES = BY_NAME["FP32"], BY_NAME["INT8"], BY_NAME["BYTES"]


def _batch(rows: int, width: int) -> tuple[RunBatch, np.ndarray]:
    x = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    parts = [row.tobytes() for row in x]
    flags = Tensor(INT8, (rows,), (bytes(range(rows)),))
    return RunBatch(7, rows, 1.5, [Tensor(FP32, (rows, width), parts), flags]), x


@pytest.mark.parametrize(
    ("width", "chunk"),
    [
        (3, 1),
        (3, 37),
        (64, 1),
        (64, 65_536),
        (20_000, 4096),
        (20_000, 65_536),
        (20_000, 10_000_000),
    ],
)
def test_batches_and_messages_come_through_any_cut(width: int, chunk: int):
    batch, x = _batch(5, width)
    stream = encode(Cancel(1)) + encode(batch) + encode(batch) + encode(Cancel(2))
    decoder = FrameDecoder()

    found = [
        m for at in range(0, len(stream), chunk) for m in decoder.feed(stream[at : at + chunk])
    ]

    assert [type(message) for message in found] == [Cancel, RunBatch, RunBatch, Cancel]
    for message in found[1:3]:
        assert (message.number, message.rows, message.deadline) == (7, 5, 1.5)
        first, second = message.tensors
        np.testing.assert_array_equal(to_array(first.datatype, first.shape, first.data[0]), x)
        assert bytes(second.data[0]) == bytes(range(5))


def test_results_keep_their_invalid_rows_and_times():
    done = BatchDone(3, 2, 1.0, 2.0, [Tensor(FP32, (2, 1), (bytes(8),))], invalid_rows=(1,))

    (found,) = FrameDecoder().feed(encode(done))

    assert (found.invalid_rows, found.started_at, found.ended_at) == ((1,), 1.0, 2.0)
    assert found.tensors[0].shape == (2, 1)


def test_tensors_begin_where_vector_instructions_like_it():
    batch, _ = _batch(3, 5)

    length, *parts = encode_parts(batch)

    body = b"".join(parts)
    assert len(length) == 4
    assert body.index(np.float32(1.0).tobytes()) % 64 == 4


@pytest.mark.parametrize("cut", [2, 20, 60, 200])
def test_a_damaged_batch_is_no_message(cut: int):
    batch, _ = _batch(5, 64)
    body = encode(batch)[4:][:-cut]
    frame = struct.pack(">I", len(body) | 1 << 31) + body

    with pytest.raises(WireError):
        FrameDecoder().feed(frame)


def test_a_batch_beyond_the_limit_is_refused_before_memory_is_taken():
    with pytest.raises(WireError, match="limit"):
        FrameDecoder().feed(struct.pack(">I", 0xFFFF_FFFF) + bytes(64))


def test_text_elements_keep_their_bounds():
    elements = [b"", b"a", "\u00e9".encode()]

    assert unpack_bytes(pack_bytes(elements)) == elements
    array = to_array(BYTES, (3, 1), pack_bytes(elements))
    assert array.tolist() == [[""], ["a"], ["\u00e9"]]
    assert bytes(to_buffer(array)) == pack_bytes(elements)


@pytest.mark.parametrize("data", [b"\x01", b"\x05\x00\x00\x00abc"])
def test_cut_text_elements_are_refused(data: bytes):
    with pytest.raises(ValueError, match=r"inside the length|cut off"):
        unpack_bytes(data)
