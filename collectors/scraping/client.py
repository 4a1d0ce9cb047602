"""One target's HTTP client: one connection that is kept, and an answer with a bound on everything."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import NamedTuple

import httpx

from collectors.access import AccessError
from collectors.fetch import (
    ACCEPT_METRICS,
    BoundedBody,
    FetchError,
    check_media_type,
    redirect_of,
)
from collectors.scraping.targets import ScrapeTarget

_PIECE_BYTES = 65536
_MAX_REDIRECTS = 3


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
        headers: gives such as Authorization; asked for each time, since secrets are rotated.
        max_bytes: the longest answer, counted after decompression.
        keep_seconds: how long an unused connection is kept; longer than the interval.
    """

    def __init__(
        self,
        target: ScrapeTarget,
        *,
        verify: ssl.SSLContext,
        budget: MemoryBudget,
        headers: Callable[[], Mapping[str, str]] = dict,
        max_bytes: int,
        keep_seconds: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = target.url
        self._more_headers = headers
        self._budget = budget
        self._max_bytes = max_bytes
        limits = httpx.Limits(
            max_connections=1, max_keepalive_connections=1, keepalive_expiry=keep_seconds
        )
        self._http = httpx.AsyncClient(
            transport=transport
            or httpx.AsyncHTTPTransport(verify=verify, trust_env=False, limits=limits),
            headers={"Accept": ACCEPT_METRICS, "Accept-Encoding": "gzip"},
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
        except (FetchError, AccessError) as error:
            raise ScrapeError(str(error)) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise ScrapeError(f"{type(error).__name__}: {error}"[:300]) from error

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def _get(self, deadline_seconds: float) -> Page:
        headers = {
            "X-Prometheus-Scrape-Timeout-Seconds": f"{deadline_seconds:g}",
            **self._more_headers(),
        }
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
        url = self._url
        for _ in range(_MAX_REDIRECTS + 1):
            async with self._http.stream("GET", url, headers=headers) as response:
                if response.has_redirect_location:
                    url = redirect_of(url, response.headers["location"])
                    continue
                if response.status_code != httpx.codes.OK:
                    raise ScrapeError(f"answers {response.status_code}")
                open_metrics = check_media_type(response.headers.get("content-type", ""))
                body = await self._read(response)
            self._answered = True
            return Page(body, open_metrics)
        raise ScrapeError(f"redirects more than {_MAX_REDIRECTS} times")

    async def _read(self, response: httpx.Response) -> bytes:
        body = BoundedBody(response.headers.get("content-encoding", ""), self._max_bytes)
        counted = 0
        self._budget.enter()
        try:
            async for piece in response.aiter_raw(_PIECE_BYTES):
                body.feed(piece)
                self._budget.add(len(body) - counted)
                counted = len(body)
                if not self._budget.admits(counted):
                    raise ScrapeError(
                        f"gave up after {counted} bytes: too many large answers at once"
                    )
            return body.finish()
        finally:
            self._budget.leave(counted)
