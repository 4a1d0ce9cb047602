from __future__ import annotations

import threading

import pytest
from structlog.testing import capture_logs

from collectors.contract import Sample
from collectors.scraping.buffer import Batch, SampleBuffer


def _batch(size: int, value: float = 0.0) -> Batch:
    return Batch([Sample(1.0, "host/a", "host_load", value)] * size)


def _values(buffer: SampleBuffer, most: int | None = None) -> list[float]:
    return [batch.samples[0].value for batch in buffer.take(most)]


def test_the_oldest_is_dropped_first_and_all_is_counted() -> None:
    buffer = SampleBuffer(max_samples=10)
    for number in range(5):
        buffer.put(_batch(4, number))
    assert (buffer.waiting, buffer.dropped) == (8, 12)
    assert _values(buffer) == [3.0, 4.0]
    assert (buffer.waiting, buffer.dropped) == (0, 12)


def test_a_spell_of_dropping_is_said_once_at_each_end() -> None:
    buffer = SampleBuffer(max_samples=10)
    with capture_logs() as logged:
        for _ in range(3):
            for _ in range(4):
                buffer.put(_batch(4))
            buffer.take()
        assert [row["event"] for row in logged] == ["scraped_samples_dropped"]
        buffer.put(_batch(4))
        buffer.take()
        buffer.take()
    assert [row["event"] for row in logged] == [
        "scraped_samples_dropped",
        "scraped_samples_taken_again",
    ]


def test_a_batch_that_never_fits_is_dropped_itself() -> None:
    buffer = SampleBuffer(max_samples=10)
    buffer.put(_batch(11))
    assert (buffer.waiting, buffer.dropped) == (0, 11)


def test_a_backlog_comes_in_parts() -> None:
    buffer = SampleBuffer(max_samples=100)
    for number in range(5):
        buffer.put(_batch(10, number))
    assert _values(buffer, 25) == [0.0, 1.0]
    assert _values(buffer, 5) == [2.0]
    assert buffer.waiting == 20
    assert _values(buffer) == [3.0, 4.0]


def test_nothing_is_lost_between_threads() -> None:
    buffer, taken, done = SampleBuffer(max_samples=10_000_000), 0, threading.Event()

    def put() -> None:
        for _ in range(5000):
            buffer.put(_batch(3))
        done.set()

    thread = threading.Thread(target=put)
    thread.start()
    while not done.is_set() or buffer.waiting:
        taken += sum(len(batch.samples) for batch in buffer.take())
    thread.join()
    assert taken == 15_000


def test_a_bound_is_positive() -> None:
    with pytest.raises(ValueError, match="max_samples"):
        SampleBuffer(max_samples=0)
