"""The end-to-end deadline that a client may shorten."""

from __future__ import annotations

from inference.errors import InvalidRequestError


def timeout_seconds(wish: str, limit: float) -> float:
    """Return the limit, shortened by what ``X-Request-Timeout-Ms`` says.

    Raises:
        InvalidRequestError: it is not a positive number of milliseconds.
    """
    if not wish:
        return limit
    if not wish.isdecimal() or len(wish) > 9 or int(wish) == 0:
        raise InvalidRequestError("X-Request-Timeout-Ms must be a positive number of milliseconds")
    return min(limit, int(wish) / 1000.0)
