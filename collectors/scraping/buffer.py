"""What was scraped and not yet taken: bounded, and the oldest goes first when nobody takes it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from collectors.contract import Sample
from collectors.links import Link

log = structlog.get_logger(__name__)


class Batch(NamedTuple):
    """What one scrape of one target gave, its health included."""

    samples: Sequence[Sample]
    links: Sequence[Link] = ()
    unrecognised: Sequence[str] = ()
    target: str = ""


class SampleBuffer:
    """Batches on their way from the pool's thread to whoever writes them.

    A store that is slow is asked less often and the buffer grows. When it is full the oldest batches
    are dropped: what a fleet is like now is worth more than what it was like. The first drop of a spell
    is logged, and :attr:`dropped` counts all.

    Args:
        max_samples: the most that wait; a batch that is larger than this is dropped itself.
    """

    def __init__(self, *, max_samples: int) -> None:
        if max_samples < 1:
            raise ValueError(f"max_samples must be positive, got {max_samples}")
        self._max_samples = max_samples
        self._lock = threading.Lock()
        self._batches: deque[Batch] = deque()
        self._waiting = 0
        self._dropped = 0
        self._dropping = False
        self._dropped_since_take = False

    @property
    def waiting(self) -> int:
        """How many samples wait now."""
        return self._waiting

    @property
    def dropped(self) -> int:
        """How many samples were dropped since the start."""
        return self._dropped

    def put(self, batch: Batch) -> None:
        """Add a batch; never blocks."""
        began = False
        with self._lock:
            self._batches.append(batch)
            self._waiting += len(batch.samples)
            while self._waiting > self._max_samples:
                lost = len(self._batches.popleft().samples)
                self._waiting -= lost
                self._dropped += lost
                began, self._dropping = not self._dropping or began, True
                self._dropped_since_take = True
        if began:
            log.warning(
                "scraped_samples_dropped",
                limit=self._max_samples,
                fix="the store takes samples too slowly; scrape less often, or fewer targets",
            )

    def take(self, max_samples: int | None = None) -> list[Batch]:
        """Return what waits, oldest first, and forget it.

        Args:
            max_samples: leave batches beyond this for the next call; the first always comes.
        """
        taken: list[Batch] = []
        room = self._max_samples if max_samples is None else max_samples
        with self._lock:
            while self._batches and (not taken or len(self._batches[0].samples) <= room):
                taken.append(self._batches.popleft())
                room -= len(taken[-1].samples)
                self._waiting -= len(taken[-1].samples)
            ended = self._dropping and not self._dropped_since_take
            self._dropping, self._dropped_since_take = self._dropping and not ended, False
        if ended:
            log.info("scraped_samples_taken_again", dropped_total=self._dropped)
        return taken
