"""Prometheus remote write 1.0: encoding, one request, and a sender that empties a spool.

https://prometheus.io/docs/specs/prw/remote_write_spec/ . A write request is protobuf in snappy's block
format. Requests of this kind may be joined by joining their bytes, so each poll is encoded once, when
it is taken, and a batch is a concatenation.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import cramjam
import httpx
import structlog

from collectors.access import AccessError, HttpAccess
from collectors.backoff import Backoff, retry_after_seconds
from collectors.contract import Sample, SeriesKey
from collectors.exporter import labels_of
from collectors.spool import Record, Spool

log = structlog.get_logger(__name__)

_HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
    "User-Agent": "galen-agent",
}
_REASON_CHARACTERS = 300
# These speak of what was sent, so a part of it may pass; the others speak of the sender.
_ABOUT_THE_SAMPLES = frozenset({400, 413, 422})


def encode_write_request(samples: Iterable[Sample], extra_labels: Mapping[str, str]) -> bytes:
    """Encode samples as one ``prometheus.WriteRequest``, one time series a signal and entity.

    Args:
        samples: of any order; of two at the same millisecond the later one counts.
        extra_labels: added to every series; those of the entity win.
    """
    points: dict[SeriesKey, dict[int, float]] = {}
    described: dict[SeriesKey, Mapping[str, str]] = {}
    for sample in samples:
        key = SeriesKey(sample.entity, sample.signal)
        points.setdefault(key, {})[round(sample.time_seconds * 1000)] = sample.value
        described[key] = sample.labels
    request = bytearray()
    for key, values in points.items():
        labels = {**extra_labels, **labels_of(key.entity, described[key]), "__name__": key.signal}
        series = bytearray()
        # The specification wants labels sorted by name, none empty, and samples by time.
        for name in sorted(name for name, text in labels.items() if text):
            label = _text(1, name) + _text(2, labels[name])
            series += _field(1, label)
        for milliseconds, value in sorted(values.items()):
            point = b"\x09" + struct.pack("<d", value) + b"\x10" + _varint(milliseconds)
            series += _field(2, point)
        request += _field(1, bytes(series))
    return bytes(request)


def _varint(number: int) -> bytes:
    number &= 0xFFFF_FFFF_FFFF_FFFF  # a negative int64 is its two's complement
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode("utf-8", "replace"))


class Verdict(StrEnum):
    """What became of one request."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Delivery:
    """The outcome of one request and why."""

    verdict: Verdict
    reason: str = ""
    retry_after_seconds: float | None = None
    divisible: bool = False
    """Whether a part of what was refused may be accepted by itself."""


class RemoteWriteClient:
    """Sends write requests to one address, each once.

    Args:
        url: the whole address, such as ``http://prometheus:9090/api/v1/write``.
        client: of HTTP, with the TLS of ``access``; it belongs to the caller.
        access: credentials.
        deadline_seconds: the longest that connecting, and each read of the answer, may take.
        clock: the wall clock that a ``Retry-After`` date is compared with.

    Raises:
        ValueError: when the address is not one of HTTP; it is not repeated in the message.
    """

    def __init__(
        self,
        url: str,
        client: httpx.Client,
        *,
        access: HttpAccess | None = None,
        deadline_seconds: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"this is not an address: {error}") from error
        if self._url.scheme not in {"http", "https"} or not self._url.host:
            # The address itself is left out: it may hold a password.
            raise ValueError("not an address such as http://prometheus:9090/api/v1/write")
        self._client = client
        self._deadline_seconds = deadline_seconds
        self._clock = clock
        self._access = access or HttpAccess()

    def send(self, request: bytes) -> Delivery:
        """Send an encoded write request and say what became of it."""
        body = bytes(cramjam.snappy.compress_raw(request))
        try:
            with self._client.stream(
                "POST",
                self._url,
                content=body,
                headers=self._access.request_headers() | _HEADERS,
                timeout=self._deadline_seconds,
            ) as response:
                said = next(response.iter_bytes(_REASON_CHARACTERS), b"")
                return self._judge(response, said.decode("utf-8", "replace"))
        except AccessError as error:
            return Delivery(Verdict.RETRY, str(error))
        except (httpx.HTTPError, OSError) as error:
            return Delivery(Verdict.RETRY, f"{type(error).__name__}: {error}")

    def _judge(self, response: httpx.Response, said: str) -> Delivery:
        status = response.status_code
        if response.is_success:
            return Delivery(Verdict.DELIVERED)
        reason = f"HTTP {status}: {said[:_REASON_CHARACTERS].strip()}"
        if 400 <= status < 500 and status != 429:
            return Delivery(Verdict.REFUSED, reason, divisible=status in _ABOUT_THE_SAMPLES)
        wait = retry_after_seconds(response.headers.get("Retry-After", ""), self._clock())
        return Delivery(Verdict.RETRY, reason, retry_after_seconds=wait)


class SpoolSender:
    """Empties a spool through a client, the oldest first and one request at a time.

    A request that failed is repeated after a pause that doubles each time, with jitter, and not before
    the server's ``Retry-After``. What the server refuses for good is parked; when the reason is in the
    samples, the polls of the batch are tried one by one, so that one bad poll takes no other with it.

    Args:
        spool: what to send.
        client: where to.
        batch_samples: the usual size of a request.
        backoff_seconds: the shortest and the longest pause.
        monotonic: the clock of pauses.
        rng: jitter, from half of a pause to the whole.
    """

    def __init__(
        self,
        spool: Spool,
        client: RemoteWriteClient,
        *,
        batch_samples: int = 2000,
        backoff_seconds: tuple[float, float] = (0.5, 30.0),
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._spool = spool
        self._client = client
        self._batch_samples = batch_samples
        self._backoff = Backoff(*backoff_seconds, monotonic=monotonic, rng=rng)
        self.delivered_samples = 0

    def step(self) -> float | None:
        """Send one batch if one is due.

        Returns:
            Seconds until the next is due, 0 when there may be more at once, None when none waits.

        Raises:
            SpoolError: when the spool cannot be read or written.
        """
        if (wait := self._backoff.wait_seconds()) > 0:
            return wait
        records = self._spool.peek(max_samples=self._batch_samples)
        if not records:
            return None
        delivery = self._send(records)
        if delivery.verdict is Verdict.REFUSED and delivery.divisible and len(records) > 1:
            return self._send_one_by_one(records)
        return self._settle(records, delivery)

    def _send(self, records: Sequence[Record]) -> Delivery:
        return self._client.send(b"".join(record.payload for record in records))

    def _send_one_by_one(self, records: Sequence[Record]) -> float:
        wait = 0.0
        for record in records:
            if wait:
                break
            wait = self._settle([record], self._send([record]))
        return wait

    def _settle(self, records: Sequence[Record], delivery: Delivery) -> float:
        """Write down what became of records; return how long to wait before the next request."""
        if delivery.verdict is Verdict.RETRY:
            return self._back_off(delivery)
        if self._backoff.failures:
            log.info("remote_write_recovered", failures=self._backoff.failures)
        self._backoff.succeeded()
        samples = sum(record.samples for record in records)
        if delivery.verdict is Verdict.DELIVERED:
            self._spool.remove(records)
            self.delivered_samples += samples
        else:
            self._spool.park(records, delivery.reason)
            log.error("remote_write_refused", reason=delivery.reason, parked_samples=samples)
        return 0.0

    def _back_off(self, delivery: Delivery) -> float:
        first = not self._backoff.failures
        pause = self._backoff.failed(delivery.retry_after_seconds)
        if first:
            # Once an outage; an hour of it is one line, not a hundred.
            log.warning("remote_write_failing", reason=delivery.reason, retry_in_seconds=pause)
        return pause
