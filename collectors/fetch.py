"""One bounded HTTP exchange: a deadline for the whole of it and a limit on the answer's size."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httpx


class Answer(NamedTuple):
    """What a server answered, and how long the whole exchange took."""

    status: int
    body: bytes
    seconds: float


class FetchError(Exception):
    """There was no complete answer; ``timed_out`` says that the deadline was the reason."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


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
    for ever; the deadline here is checked after every piece.

    Raises:
        FetchError: when the server cannot be reached, is too slow or answers too much.
    """
    started = monotonic()
    timed_out = f"no complete answer from {url} within {deadline_seconds:g} s"
    body = bytearray()
    try:
        with client.stream(
            method, url, headers=dict(headers or {}), json=json, timeout=deadline_seconds
        ) as response:
            for piece in response.iter_bytes():
                body += piece
                if len(body) > max_bytes:
                    raise FetchError(f"{url} answered more than {max_bytes} bytes")
                if monotonic() - started > deadline_seconds:
                    raise FetchError(timed_out, timed_out=True)
            return Answer(response.status_code, bytes(body), monotonic() - started)
    except httpx.TimeoutException as error:
        raise FetchError(timed_out, timed_out=True) from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise FetchError(f"{url}: {error or type(error).__name__}") from error
