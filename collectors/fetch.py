"""One bounded HTTP exchange: a deadline for the whole of it and a limit on the answer's size.

What a server answers is not trusted: it may be endless, drip, blow up when it is decompressed, or send
the request elsewhere. Messages never hold the secrets of a URL.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import httpx

from collectors.addresses import shown_url, split_userinfo

ACCEPT_METRICS = "application/openmetrics-text;version=1.0.0;q=0.9,text/plain;version=0.0.4;q=1.0"
"""What a scrape asks for; exemplars and the like are of no use here, so plain text is preferred."""
_MAX_REDIRECTS = 3
_GZIP = 16 + zlib.MAX_WBITS
_PORTS = {"http": 80, "https": 443}


class Answer(NamedTuple):
    """What a server answered, and how long the whole exchange took."""

    status: int
    body: bytes
    seconds: float
    content_type: str = ""


class FetchError(Exception):
    """There was no complete answer; ``timed_out`` says that the deadline was the reason."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class BoundedBody:
    """Gathers the body of an answer as it comes over the wire, and unpacks it within a limit.

    HTTP libraries unpack whatever arrives: 64 KiB of gzip can become 64 MiB before anybody can look.

    Args:
        encoding: the answer's ``Content-Encoding``.
        max_bytes: of the body, unpacked.

    Raises:
        FetchError: when the encoding is one that was not asked for.
    """

    def __init__(self, encoding: str, max_bytes: int) -> None:
        named = encoding.strip().lower()
        if named not in {"", "identity", "gzip", "x-gzip"}:
            raise FetchError(f"the answer is packed as {named[:40]!r}; only gzip was offered")
        self._unpacker = zlib.decompressobj(_GZIP) if "gzip" in named else None
        self._max_bytes = max_bytes
        self._body = bytearray()

    def __len__(self) -> int:
        """Return how long the body is so far, unpacked."""
        return len(self._body)

    def feed(self, piece: bytes) -> None:
        """Take a piece as it came.

        Raises:
            FetchError: when the body is too long, or is not what its encoding says.
        """
        if self._unpacker is None:
            self._body += piece
        else:
            self._unpack(piece)
        if len(self._body) > self._max_bytes:
            raise FetchError(f"answered more than {self._max_bytes} bytes")

    def _unpack(self, piece: bytes) -> None:
        while piece and len(self._body) <= self._max_bytes:
            if self._unpacker is None or self._unpacker.eof:
                self._unpacker = zlib.decompressobj(_GZIP)  # gzip may come in several members
            try:
                room = self._max_bytes + 1 - len(self._body)
                self._body += self._unpacker.decompress(piece, room)
            except zlib.error as error:
                raise FetchError(f"the answer is not the gzip that it says: {error}") from error
            piece = self._unpacker.unused_data

    def finish(self) -> bytes:
        """Return the whole body.

        Raises:
            FetchError: when its packing ends in the middle.
        """
        if self._unpacker is not None and not self._unpacker.eof and self._body:
            raise FetchError("the answer's gzip ends in the middle")
        return bytes(self._body)


def fetch(
    client: httpx.Client,
    url: str,
    *,
    deadline_seconds: float,
    max_bytes: int,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    json: Any = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Answer:
    """Exchange one request for one answer.

    The client's own time-outs bound single reads only, so a server that drips bytes would hold a call
    for ever; the deadline here is checked after every piece. One read that stalls at the end of the
    deadline can double it. Redirects of a ``GET`` are followed on the same host only.

    Raises:
        FetchError: when the server cannot be reached, is too slow or answers too much.
    """
    started = monotonic()
    bare, credentials = split_userinfo(url)
    auth = None if credentials is None else httpx.BasicAuth(*credentials)
    sent = {"Accept-Encoding": "gzip", **(headers or {})}
    left = deadline_seconds
    for _ in range(_MAX_REDIRECTS + 1):
        if left <= 0:
            raise _late(bare, deadline_seconds)
        try:
            with client.stream(
                method, bare, headers=sent, json=json, timeout=left, auth=auth,
                follow_redirects=False,
            ) as response:  # fmt: skip
                if method == "GET" and response.has_redirect_location:
                    bare = redirect_of(bare, response.headers["location"])
                    left = deadline_seconds - (monotonic() - started)
                    continue
                body = _body_of(response, max_bytes)
                for piece in _pieces(response):
                    body.feed(piece)
                    if monotonic() - started > deadline_seconds:
                        raise _late(bare, deadline_seconds)
                return Answer(
                    response.status_code,
                    body.finish(),
                    monotonic() - started,
                    response.headers.get("content-type", ""),
                )
        except httpx.TimeoutException as error:
            raise _late(bare, deadline_seconds) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise FetchError(f"{shown_url(bare)}: {_reason(error, bare)}") from None
        except FetchError as error:
            if error.timed_out or str(error).startswith("http"):
                raise
            raise FetchError(f"{shown_url(bare)} {error}") from error
    raise FetchError(f"{shown_url(bare)} redirects more than {_MAX_REDIRECTS} times")


def redirect_of(url: str, location: str) -> str:
    """Return where a redirect leads, when it may be followed: the same host, never less safe.

    Raises:
        FetchError: when it leads to another host or port, away from HTTPS or to something else.
    """
    try:
        target = urljoin(url, location)
        old, new = urlsplit(url), urlsplit(target)
        ports = [parts.port or _PORTS.get(parts.scheme) for parts in (old, new)]
    except ValueError as error:
        raise FetchError(f"{shown_url(url)} redirects to what is no URL") from error
    upgraded = (old.scheme, new.scheme) == ("http", "https") and ports == [80, 443]
    same = old.scheme == new.scheme in _PORTS and ports[0] == ports[1]
    if old.hostname != new.hostname or not (same or upgraded) or "@" in new.netloc:
        raise FetchError(
            f"{shown_url(url)} redirects to {shown_url(target)[:200]}, which is not followed; "
            "if that is the target, name it itself"
        )
    return target


def check_media_type(content_type: str) -> bool | None:
    """Say whether an answer is OpenMetrics, by its ``Content-Type``; None where that says nothing.

    Raises:
        FetchError: when it says that the answer is no exposition text.
    """
    named = content_type.partition(";")[0].strip().lower()
    if named == "application/openmetrics-text":
        return True
    if named == "text/plain":
        return False
    if named in {"", "application/octet-stream"}:
        return None
    raise FetchError(f"the answer is {named[:60]!r}, not exposition text")


def _body_of(response: httpx.Response, max_bytes: int) -> BoundedBody:
    packed = "" if response.is_stream_consumed else response.headers.get("content-encoding", "")
    return BoundedBody(packed, max_bytes)


def _pieces(response: httpx.Response) -> Iterable[bytes]:
    # A transport that is no network has the whole answer already, unpacked.
    return [response.content] if response.is_stream_consumed else response.iter_raw()


def _late(url: str, deadline_seconds: float) -> FetchError:
    return FetchError(
        f"no complete answer from {shown_url(url)} within {deadline_seconds:g} s", timed_out=True
    )


def _reason(error: Exception, url: str) -> str:
    return str(error).replace(url, shown_url(url)) or type(error).__name__
