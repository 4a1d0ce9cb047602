"""One target's HTTP client: one connection that is kept, and an answer with a bound on everything."""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import httpx

from collectors.scraping.targets import ScrapeTarget, without_secrets

# Classic text first: OpenMetrics brings exemplars and creation times that nobody here reads.
_ACCEPT = "text/plain;version=0.0.4;q=1,*/*;q=0.1"
_GZIP = frozenset({"gzip", "x-gzip", "deflate"})
_EITHER_HEADER = 47  # zlib: gzip or zlib, told by the header
_PIECE_BYTES = 65536


class ScrapeError(Exception):
    """A target gave no usable answer; the message says why, and names no secret."""


class Page(NamedTuple):
    """A whole answer, decompressed."""

    body: bytes
    open_metrics: bool | None = None
    """Whether its content type says OpenMetrics; None where it says nothing."""


class MemoryBudget:
    """A bound on the bytes that all answers in flight may hold together.

    When it is used up, an answer that holds more than its equal share fails, so that many floods at once
    cost themselves and not the targets beside them.

    Args:
        max_bytes: the bound; answers up to their equal share may go beyond it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._readers = 0

    def admits(self, own_bytes: int) -> bool:
        """Say whether an answer that holds this much may go on."""
        return self._held <= self._max_bytes or own_bytes <= self._max_bytes / max(1, self._readers)

    def enter(self) -> None:
        """Count an answer in."""
        self._readers += 1

    def add(self, more_bytes: int) -> None:
        """Count bytes that an answer has grown by."""
        self._held += more_bytes

    def leave(self, own_bytes: int) -> None:
        """Count an answer out, with all it held."""
        self._readers -= 1
        self._held -= own_bytes


class TargetClient:
    """Asks one target. Calls must not overlap.

    A client per target, with a pool of one connection each: a shared pool looks at all of its
    connections for every request, which costs more than the request when there are a thousand.

    Args:
        target: whom to ask.
        verify: TLS, shared by all targets, since each context costs half a megabyte.
        budget: shared by all targets.
        headers: such as Authorization.
        max_bytes: the longest answer, counted after decompression.
        keep_seconds: how long an unused connection is kept; longer than the interval.
    """

    def __init__(
        self,
        target: ScrapeTarget,
        *,
        verify: ssl.SSLContext,
        budget: MemoryBudget,
        headers: Mapping[str, str] | None = None,
        max_bytes: int,
        keep_seconds: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._target = target
        self._budget = budget
        self._max_bytes = max_bytes
        limits = httpx.Limits(
            max_connections=1, max_keepalive_connections=1, keepalive_expiry=keep_seconds
        )
        self._http = httpx.AsyncClient(
            transport=transport
            or httpx.AsyncHTTPTransport(verify=verify, trust_env=False, limits=limits),
            headers={"Accept": _ACCEPT, "Accept-Encoding": "gzip", **(headers or {})},
            timeout=None,  # noqa: S113 - the deadline of get() covers every step
            trust_env=False,
        )
        self._answered = False

    async def get(self, deadline_seconds: float) -> Page:
        """Ask once.

        Raises:
            ScrapeError: when there is no whole answer of status 200 in time and within bounds.
        """
        try:
            async with asyncio.timeout(deadline_seconds):
                return await self._get(deadline_seconds)
        except TimeoutError:
            raise ScrapeError(f"no complete answer within {deadline_seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise ScrapeError(f"{type(error).__name__}: {error}"[:300]) from error

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def _get(self, deadline_seconds: float) -> Page:
        headers = {"X-Prometheus-Scrape-Timeout-Seconds": f"{deadline_seconds:g}"}
        try:
            return await self._exchange(headers)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # Servers close connections that idle for longer than they like, and one may do so at the
            # very moment of the next question. Once is that; twice is a fault.
            if not self._answered:
                raise
            self._answered = False
            return await self._exchange(headers)

    async def _exchange(self, headers: Mapping[str, str]) -> Page:
        async with self._http.stream("GET", self._target.url, headers=headers) as response:
            if response.status_code != httpx.codes.OK:
                raise ScrapeError(_refusal(response))
            open_metrics = _is_open_metrics(response.headers.get("content-type", ""))
            body = await self._read(response)
        self._answered = True
        return Page(body, open_metrics)

    async def _read(self, response: httpx.Response) -> bytes:
        body = _Body(response.headers.get("content-encoding", ""), self._max_bytes)
        counted = 0
        self._budget.enter()
        try:
            async for piece in response.aiter_raw(_PIECE_BYTES):
                grown = body.take(piece)
                counted += grown
                self._budget.add(grown)
                if not self._budget.admits(counted):
                    raise ScrapeError(
                        f"gave up after {counted} bytes: too many large answers at once"
                    )
            return body.whole()
        finally:
            self._budget.leave(counted)


class _Body:
    """An answer as it comes in: never inflated beyond its bound, however well it was compressed."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._body = bytearray()
        encoding = encoding.strip().lower()
        if encoding not in {"", "identity"} and encoding not in _GZIP:
            raise ScrapeError(
                f"answers with the encoding {encoding[:40]!r}, which nobody asked for"
            )
        self._inflater = zlib.decompressobj(_EITHER_HEADER) if encoding in _GZIP else None

    def __len__(self) -> int:
        return len(self._body)

    def take(self, piece: bytes) -> int:
        """Add a piece and return by how many bytes the answer grew."""
        before = len(self._body)
        if self._inflater is None:
            self._body += piece
        else:
            self._inflate(piece)
        if len(self._body) > self._max_bytes:
            raise ScrapeError(f"answers with more than {self._max_bytes} bytes")
        return len(self._body) - before

    def whole(self) -> bytes:
        if self._inflater is not None and not self._inflater.eof:
            raise ScrapeError("the compressed answer is cut short")
        return bytes(self._body)

    def _inflate(self, piece: bytes) -> None:
        while piece and len(self._body) <= self._max_bytes:
            if self._inflater is None or self._inflater.eof:
                self._inflater = zlib.decompressobj(_EITHER_HEADER)  # one more member of the stream
            try:
                room = self._max_bytes + 1 - len(self._body)
                self._body += self._inflater.decompress(piece, room)
            except zlib.error as error:
                raise ScrapeError(f"the compressed answer is damaged: {error}") from error
            piece = (
                self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            )


def _is_open_metrics(content_type: str) -> bool | None:
    kind = content_type.partition(";")[0].strip().lower()
    if not kind:
        return None
    if kind not in {"application/openmetrics-text", "text/plain"}:
        raise ScrapeError(f"answers with {kind[:80]!r}, which is no exposition; check its path")
    return kind == "application/openmetrics-text"


def _refusal(response: httpx.Response) -> str:
    place = response.headers.get("location", "")
    if response.is_redirect and place:
        return (
            f"answers {response.status_code} and points to {without_secrets(place)[:200]!r}; "
            "redirects are not followed, so put the right address into the list"
        )
    return f"answers {response.status_code}"
