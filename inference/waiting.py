"""Waiting for an event, but not for ever."""

from __future__ import annotations

import asyncio
import contextlib


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Wait until an event is set, or for so many seconds; being cancelled always ends it.

    Not ``asyncio.wait_for``: before Python 3.12 it swallows a cancellation that comes as the wait ends.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
