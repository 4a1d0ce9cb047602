from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cramjam
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from collectors.access import HttpAccess
from collectors.contract import Sample
from collectors.remote_write import (
    RemoteWriteClient,
    SpoolSender,
    Verdict,
    encode_write_request,
)
from collectors.spool import Spool

DATE = "Thu, 01 Jan 1970 00:17:10 GMT"  # half a minute after the clock of these tests
URL = "http://receiver.test/api/v1/write"

Series = tuple[list[tuple[str, str]], list[tuple[int, float]]]


def fields(data: bytes) -> list[tuple[int, Any]]:
    """Decode one protobuf message; written against the wire format, not against the encoder."""
    found: list[tuple[int, Any]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            found.append((tag >> 3, varint()))
        elif tag & 7 == 1:
            found.append((tag >> 3, struct.unpack("<d", data[at : at + 8])[0]))
            at += 8
        else:
            size = varint()
            found.append((tag >> 3, data[at : at + size]))
            at += size
    return found


def decode(request: bytes) -> list[Series]:
    series = []
    for number, content in fields(request):
        assert number == 1
        labels, points = [], []
        for part, inner in fields(content):
            values = dict(fields(inner))
            if part == 1:
                labels.append((values[1].decode(), values[2].decode()))
            else:
                stamp = values[2] - 2**64 if values[2] >= 2**63 else values[2]
                points.append((stamp, values[1]))
        series.append((labels, points))
    return series


def test_a_sample_becomes_a_series_with_the_labels_of_its_entity() -> None:
    sample = Sample(
        12.3456, "host/box1/gpu/0", "gpu_temperature_celsius", 71.5, {"simulated": "true"}
    )
    [(labels, points)] = decode(encode_write_request([sample], {"job": "galen", "cluster": ""}))
    assert labels == [
        ("__name__", "gpu_temperature_celsius"),
        ("entity", "host/box1/gpu/0"),
        ("gpu_id", "0"),
        ("host", "box1"),
        ("job", "galen"),
        ("simulated", "true"),
    ]
    assert points == [(12346, 71.5)]


names = st.text(min_size=1, max_size=12)
samples = st.builds(
    Sample,
    st.floats(-1e9, 1e10),
    names.map(lambda name: f"host/{name}"),
    st.sampled_from(["host_load", "gpu_power_watts"]),
    st.floats(allow_nan=False),
)


@given(st.lists(samples, max_size=20), st.lists(samples, max_size=20))
def test_what_is_encoded_can_be_read_and_joined(first: list[Sample], second: list[Sample]) -> None:
    decoded = decode(encode_write_request(first, {}) + encode_write_request(second, {}))
    read = {
        (dict(labels)["entity"], dict(labels)["__name__"], stamp): value
        for labels, points in decoded
        for stamp, value in points
    }
    wanted = {
        (s.entity, s.signal, round(s.time_seconds * 1000)): s.value for s in [*first, *second]
    }
    assert read == wanted
    for labels, points in decoded:
        assert labels == sorted(labels)
        assert points == sorted(points)


class Receiver:
    """Answers from a list, then with 204; keeps what was accepted."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.accepted: list[bytes] = []
        self.client = httpx.Client(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else httpx.Response(204)
        if isinstance(answer, Exception):
            raise answer
        if answer.is_success:
            self.accepted.append(bytes(cramjam.snappy.decompress_raw(request.read())))
        return answer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_request_is_what_the_specification_asks_for() -> None:
    receiver = Receiver()
    client = RemoteWriteClient(URL, receiver.client, access=HttpAccess(token=SecretStr("s3cret")))
    assert client.send(b"payload").verdict is Verdict.DELIVERED
    headers = receiver.requests[0].headers
    assert headers["Content-Type"] == "application/x-protobuf"
    assert headers["Content-Encoding"] == "snappy"
    assert headers["X-Prometheus-Remote-Write-Version"] == "0.1.0"
    assert headers["Authorization"] == "Bearer s3cret"
    assert receiver.accepted == [b"payload"]


@pytest.mark.parametrize(
    ("answer", "verdict", "wait"),
    [
        (httpx.Response(200), Verdict.DELIVERED, None),
        (httpx.Response(400, text="out of order"), Verdict.REFUSED, None),
        (httpx.Response(401), Verdict.REFUSED, None),
        (httpx.Response(429, headers={"Retry-After": "7"}), Verdict.RETRY, 7.0),
        (httpx.Response(503, headers={"Retry-After": DATE}), Verdict.RETRY, 30.0),
        (httpx.Response(503, headers={"Retry-After": "soon"}), Verdict.RETRY, None),
        (httpx.Response(503, headers={"Retry-After": "-5"}), Verdict.RETRY, None),
        (httpx.Response(503, headers={"Retry-After": "1e99"}), Verdict.RETRY, 3600.0),
        (httpx.Response(302, headers={"Location": "/"}), Verdict.RETRY, None),
        (httpx.ConnectError("refused"), Verdict.RETRY, None),
        (httpx.ReadTimeout("too slow"), Verdict.RETRY, None),
    ],
)  # fmt: skip
def test_each_answer_has_its_verdict(
    answer: httpx.Response | Exception, verdict: Verdict, wait: float | None
) -> None:
    client = RemoteWriteClient(URL, Receiver(answer).client, clock=lambda: 1000.0)
    delivery = client.send(b"payload")
    assert (delivery.verdict, delivery.retry_after_seconds) == (verdict, wait)
    assert delivery.reason or verdict is Verdict.DELIVERED


@pytest.mark.parametrize("url", ["ftp://box/write", "http://", "http://[::1", "me:secret@box"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="not an address") as refused:
        RemoteWriteClient(url, httpx.Client())
    assert "secret" not in str(refused.value)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool.sqlite", max_bytes=100_000)


Make = Callable[..., SpoolSender]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(spool: Spool, clock: Clock) -> Make:
    def build(receiver: Receiver, batch_samples: int = 2) -> SpoolSender:
        return SpoolSender(
            spool,
            RemoteWriteClient(URL, receiver.client),
            batch_samples=batch_samples,
            backoff_seconds=(1.0, 8.0),
            monotonic=clock,
            rng=random.Random(0),
        )

    return build


def drain(sender: SpoolSender, clock: Clock) -> list[float]:
    """Step until nothing waits, letting pauses pass; return the pauses."""
    pauses = []
    while (wait := sender.step()) is not None:
        if wait:
            pauses.append(wait)
            clock.now += wait
    return pauses


def test_an_outage_loses_nothing_and_pauses_grow(spool: Spool, make: Make, clock: Clock) -> None:
    for letter in "abcde":
        spool.append(letter.encode(), samples=1)
    outage = [httpx.ConnectError("refused") for _ in range(6)]
    receiver = Receiver(httpx.Response(204), *outage)
    pauses = drain(make(receiver), clock)
    assert receiver.accepted == [b"ab", b"cd", b"e"]
    for pause, longest in zip(pauses, [1, 2, 4, 8, 8, 8], strict=True):
        assert longest / 2 <= pause <= longest
    assert spool.state().waiting_samples == 0


def test_nothing_is_sent_before_the_server_asks_for_it(
    spool: Spool, make: Make, clock: Clock
) -> None:
    spool.append(b"a", samples=1)
    receiver = Receiver(httpx.Response(429, headers={"Retry-After": "60"}))
    sender = make(receiver)
    assert sender.step() == 60.0
    clock.now += 59
    assert sender.step() == 1.0
    assert len(receiver.requests) == 1
    clock.now += 1
    assert sender.step() == 0.0
    assert receiver.accepted == [b"a"]


def test_one_bad_poll_is_parked_alone_and_not_repeated(
    spool: Spool, make: Make, clock: Clock
) -> None:
    for letter in "abc":
        spool.append(letter.encode(), samples=2)
    whole, first, second = httpx.Response(400), httpx.Response(204), httpx.Response(400)
    receiver = Receiver(whole, first, second)
    assert drain(make(receiver, batch_samples=6), clock) == []
    assert receiver.accepted == [b"a", b"c"]
    assert len(receiver.requests) == 4
    assert (spool.state().waiting_samples, spool.state().parked_samples) == (0, 2)


def test_an_outage_amid_single_polls_keeps_their_order(
    spool: Spool, make: Make, clock: Clock
) -> None:
    for letter in "abc":
        spool.append(letter.encode(), samples=1)
    answers = [httpx.Response(400), httpx.Response(204), httpx.ConnectError("refused")]
    receiver = Receiver(*answers)
    assert len(drain(make(receiver, batch_samples=3), clock)) == 1
    assert b"".join(receiver.accepted) == b"abc"
    assert spool.state().parked_samples == 0


def test_a_refusal_of_the_sender_parks_the_batch_without_dividing_it(
    spool: Spool, make: Make, clock: Clock
) -> None:
    spool.append(b"a", samples=1)
    spool.append(b"b", samples=1)
    receiver = Receiver(httpx.Response(403))
    drain(make(receiver), clock)
    assert len(receiver.requests) == 1
    assert spool.state().parked_samples == 2
    assert spool.unpark() == 2
    drain(make(receiver), clock)
    assert receiver.accepted == [b"ab"]
