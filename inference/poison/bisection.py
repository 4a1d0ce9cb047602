"""Which of several suspects bring a worker down: delta debugging over groups of requests.

The search only knows ``trial(group) -> survived``. It is Zeller's and Hildebrandt's ddmin
("Simplifying and Isolating Failure-Inducing Input", 2002), repeated until what is left survives
together, so that it finds one culprit, several, none, and requests that are harmful together only.
One culprit among n costs about 2 log2(n) + 4 trials.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Verdict(Generic[T]):
    """What a search has found."""

    culprits: list[tuple[T, ...]] = field(default_factory=list)
    """Smallest groups that bring a worker down, each shown twice; one request, or several that do
    it together only."""
    cleared: list[T] = field(default_factory=list)
    unresolved: list[T] = field(default_factory=list)
    """Neither proven nor cleared when the trials ran out."""


class Bisection(Generic[T]):
    """A search as a state machine: take `group`, try it, `record` the outcome, until it is None."""

    def __init__(self, suspects: Sequence[T], max_trials: int) -> None:
        self._suspects = tuple(suspects)
        self._found: list[tuple[T, ...]] = []
        self._search = _search(self._suspects, self._found)
        self._left = max_trials
        self.trials = 0
        self.finished = False
        """Whether the search came to its own end, with trials to spare or not."""
        self.group: tuple[T, ...] | None = None
        """The next group to try; None at the end."""
        self._advance(None)

    def record(self, *, survived: bool) -> None:
        """Take the outcome of trying `group`."""
        self.trials += 1
        self._left -= 1
        self._advance(survived)

    def verdict(self) -> Verdict[T]:
        """Return what is known now."""
        guilty = {id(item) for group in self._found for item in group}
        rest = [item for item in self._suspects if id(item) not in guilty]
        if self.finished:
            return Verdict(list(self._found), cleared=rest)
        return Verdict(list(self._found), unresolved=rest)

    def _advance(self, survived: bool | None) -> None:
        try:
            self.group = next(self._search) if survived is None else self._search.send(survived)
        except StopIteration:
            self.group, self.finished = None, True
            return
        if self._left <= 0:
            self.group = None


def _search(
    suspects: tuple[T, ...], found: list[tuple[T, ...]]
) -> Generator[tuple[T, ...], bool, None]:
    """Yield groups to try, take whether they survived, and collect culprits."""
    rest = suspects
    while rest:
        if (yield rest):
            return
        smallest = yield from _minimise(rest)
        # Shown again before anybody is refused for good: a sandbox can die of something else.
        if not (yield smallest):
            found.append(smallest)
        rest = _without(rest, smallest)


def _minimise(group: tuple[T, ...]) -> Generator[tuple[T, ...], bool, tuple[T, ...]]:
    """Shrink a group that failed to one that fails and of which no part was seen to fail."""
    pieces = 2
    while len(group) > 1:
        chunks = _split(group, pieces)
        smaller = yield from _first_to_fail(chunks)
        if smaller is not None:
            group, pieces = smaller, 2
            continue
        if pieces > 2:  # with two pieces the complements are the pieces
            smaller = yield from _first_to_fail([_without(group, chunk) for chunk in chunks])
        if smaller is not None:
            group, pieces = smaller, pieces - 1
        elif pieces >= len(group):
            break
        else:
            pieces = min(2 * pieces, len(group))
    return group


def _first_to_fail(
    groups: Sequence[tuple[T, ...]],
) -> Generator[tuple[T, ...], bool, tuple[T, ...] | None]:
    for group in groups:
        if not (yield group):
            return group
    return None


def _split(group: tuple[T, ...], pieces: int) -> list[tuple[T, ...]]:
    """Cut a group into this many pieces of about the same size."""
    edges = [len(group) * i // pieces for i in range(pieces + 1)]
    return [group[a:b] for a, b in itertools.pairwise(edges) if b > a]


def _without(group: tuple[T, ...], part: tuple[T, ...]) -> tuple[T, ...]:
    gone = {id(item) for item in part}
    return tuple(item for item in group if id(item) not in gone)
