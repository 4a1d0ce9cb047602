"""Bounds for bodies on the routes of FastAPI, which reads all of a body before it asks who sent it."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from inference.api.http import Receive
from inference.errors import RequestTimeoutError, RequestTooLargeError, ServiceError

# What administration takes is a few fields.
MAX_BYTES = 64 * 1024


class RefusedBody(HTTPException):
    """Carries one of our errors through FastAPI, which turns all others into its own."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error.status, error.message)
        self.error = error


def bounded(receive: Receive, limit_seconds: float) -> Receive:
    """Return a `receive` that refuses bodies that are too long or take too much time."""
    size = 0
    deadline = 0.0
    complete = False

    async def receive_bounded() -> MutableMapping[str, Any]:
        nonlocal size, deadline, complete
        if complete:
            return await receive()  # waits for the client to leave
        deadline = deadline or asyncio.get_running_loop().time() + limit_seconds
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            late = f"the body did not arrive within {limit_seconds:g} s"
            raise RefusedBody(RequestTimeoutError(late)) from None
        size += len(message.get("body", b""))
        if size > MAX_BYTES:
            raise RefusedBody(RequestTooLargeError(f"the body is longer than {MAX_BYTES} bytes"))
        complete = not message.get("more_body", False)
        return message

    return receive_bounded
