import mmap
import struct

from inference.worker.heartbeat import (
    SIZE_BYTES,
    Heartbeat,
    HeartbeatReader,
    HeartbeatWriter,
    WorkerState,
)


def _pair():
    memory = mmap.mmap(-1, SIZE_BYTES)
    return HeartbeatWriter(memory), HeartbeatReader(memory), memory


def test_fresh_memory_reads_as_spawned_and_not_ready():
    _, reader, _ = _pair()
    record = reader.read()
    assert record == Heartbeat()
    assert not record.ready


def test_everything_that_is_written_is_read():
    writer, reader, _ = _pair()
    writer.record = Heartbeat(
        state=WorkerState.BUSY, pid=7, steps=9, batch_size=2, invalid_outputs=1,
        cache_hit_tokens=3, cache_query_tokens=4, cache_bytes=5, started_at=1.5, ready_at=2.5,
        step_started_at=3.5, last_step_at=4.5, busy_seconds=0.25, deadline=8.0,
        running_ids=(11, 12), detail="why",
    )  # fmt: skip
    writer.write_detail("why")
    assert reader.read() == writer.record
    assert reader.read().ready


def test_a_writer_that_died_half_way_does_not_block_the_reader():
    writer, reader, memory = _pair()
    writer.record.steps = 5
    writer.write()
    struct.pack_into("<Q", memory, 0, 99)  # odd: a write is under way, for ever
    assert reader.read().steps == 5


def test_a_long_detail_is_cut_at_a_character():
    writer, reader, _ = _pair()
    writer.write_detail("ä" * 5000)
    detail = reader.read().detail
    assert 100 < len(detail) < 5000
    assert set(detail) == {"ä"}


def test_more_running_requests_than_fit_are_cut():
    writer, reader, _ = _pair()
    writer.record.running_ids = tuple(range(1, 200))
    writer.write()
    assert reader.read().running_ids == tuple(range(1, 65))
