"""Reading a long time in pieces that a server allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from collectors.promapi import MAX_POINTS, PrometheusError

T = TypeVar("T")

_SHORTEST_PIECE_SECONDS = 60.0


def read_in_pieces(
    ask: Callable[[float, float], T],
    start_seconds: float,
    end_seconds: float,
    *,
    step_seconds: float | None = None,
    longest_seconds: float | None = None,
) -> Iterator[tuple[float, float, T]]:
    """Ask for one part of a time after the other, from old to new.

    A piece that is too much for the server (too many samples or points, too large or too slow an
    answer) is halved, down to a minute or one step; after one that passes the next is twice as long.

    Args:
        ask: asks for ``start <= time < end``.
        start_seconds: the first moment.
        end_seconds: the first moment that is not read.
        step_seconds: the resolution, where there is one: pieces are then whole steps, and no piece has
            more points than a server gives.
        longest_seconds: the longest piece.

    Yields:
        Start and end of each piece, and the answer.

    Raises:
        PrometheusError: as ``ask`` does, when the shortest piece is still too much.
    """
    longest = end_seconds - start_seconds if longest_seconds is None else longest_seconds
    shortest = _SHORTEST_PIECE_SECONDS
    if step_seconds is not None:
        longest, shortest = min(longest, MAX_POINTS * step_seconds), step_seconds
    piece, first = longest, start_seconds
    while first < end_seconds:
        if step_seconds is not None:
            piece = max(1.0, piece // step_seconds) * step_seconds
        last = min(first + piece, end_seconds)
        try:
            answer = ask(first, last)
        except PrometheusError as error:
            if not error.too_much or piece <= shortest:
                raise
            piece = max(shortest, (last - first) / 2)
            continue
        yield first, last, answer
        first, piece = last, min(longest, piece * 2)
