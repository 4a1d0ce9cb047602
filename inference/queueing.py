"""A waiting line with priorities that nobody starves in.

Strict priority with ageing: what waits is served in the order of the time at which it came plus one
``ageing_seconds`` for each step below the highest priority. A high request passes every normal one
that has waited less than that, and no request is passed for ever. All operations take constant
time, so that the line also serves models that answer in microseconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from enum import IntEnum
from typing import Generic, Protocol, TypeVar


class Priority(IntEnum):
    """``X-Galen-Priority``; lower numbers go first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class Waiting(Protocol):
    """What can wait; compared by identity."""

    enqueued_at: float

    @property
    def priority(self) -> Priority:
        """Its lane."""


Item = TypeVar("Item", bound=Waiting)


class PriorityQueue(Generic[Item]):
    """One lane for each priority, first in first out within a lane."""

    def __init__(self, ageing_seconds: float) -> None:
        self._ageing_seconds = ageing_seconds
        self._lanes: tuple[OrderedDict[Item, None], ...] = tuple(OrderedDict() for _ in Priority)

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def __iter__(self) -> Iterator[Item]:
        for lane in self._lanes:
            yield from lane

    def push(self, item: Item) -> None:
        """Put an item at the end of its lane."""
        self._lanes[item.priority][item] = None

    def push_front(self, item: Item) -> None:
        """Put an item that has already been out back to the head of its lane."""
        lane = self._lanes[item.priority]
        lane[item] = None
        lane.move_to_end(item, last=False)

    def pop(self) -> Item | None:
        """Take the item whose turn it is."""
        high, normal, low = self._lanes
        if normal and not high and not low:  # as almost always
            return normal.popitem(last=False)[0]
        heads = [next(iter(lane)) for lane in self._lanes if lane]
        if not heads:
            return None
        first = min(heads, key=self._turn)
        del self._lanes[first.priority][first]
        return first

    def remove(self, item: Item) -> bool:
        """Take out an item wherever it stands; say whether it waited."""
        try:
            del self._lanes[item.priority][item]
        except KeyError:
            return False
        return True

    def displace(self, newcomer: Item) -> Item | None:
        """Take out the one that makes room for a newcomer, if there is one that may be asked to.

        It is the last of the lowest lane below the newcomer's: it has waited least. One that has
        aged past the newcomer stays.
        """
        for lane in reversed(self._lanes[newcomer.priority + 1 :]):
            if lane:
                last = next(reversed(lane))
                if self._turn(last) <= self._turn(newcomer):
                    return None
                del lane[last]
                return last
        return None

    def ahead_of(self, priority: Priority) -> int:
        """Count those that a newcomer would find ahead of itself; aged ones below are left out."""
        return sum(map(len, self._lanes[: priority + 1]))

    def _turn(self, item: Item) -> float:
        return item.enqueued_at + item.priority * self._ageing_seconds
