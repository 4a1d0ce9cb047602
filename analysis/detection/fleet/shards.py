"""Divides a fleet into shards that can be scored apart from each other.

The division depends on the series and the settings alone, never on who computes: one process and a
hundred workers score the same shards, so their scores are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from analysis.detection.together import together_of
from collectors.contract import SeriesKey
from collectors.store.contract import SeriesReader


class ShardSource(Protocol):
    """Says where series are, so that a worker can read them itself. Picklable, without secrets."""

    def open(self) -> SeriesReader:
        """Open the source with what the machine at hand knows: its configuration, its files.

        Raises:
            StoreError: when this machine cannot.
        """


@runtime_checkable
class TellsNotes(Protocol):
    """A reader whose answers may be incomplete, and that says so."""

    def take_notes(self) -> Sequence[str]:
        """Return, once, why answers since the last call were incomplete."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Entities that one worker scores together."""

    number: int
    entities: tuple[str, ...]
    series: int
    """How many series they have."""

    @property
    def name(self) -> str:
        """A few words for messages."""
        first, last = self.entities[0], self.entities[-1]
        return f"shard {self.number} ({first if first == last else f'{first} to {last}'})"


def plan_shards(keys: Iterable[SeriesKey], largest: int) -> list[Shard]:
    """Divide series into shards of at most ``largest``, in the order of their names.

    What belongs together stays together, even where it is more.
    """
    counts: dict[str, dict[str, int]] = {}
    for entity, _ in keys:
        entities = counts.setdefault(together_of(entity), {})
        entities[entity] = entities.get(entity, 0) + 1
    shards: list[Shard] = []
    taken: list[str] = []
    size = 0
    for _, entities in sorted(counts.items()):
        more = sum(entities.values())
        if taken and size + more > largest:
            shards.append(Shard(len(shards), tuple(taken), size))
            taken, size = [], 0
        taken += sorted(entities)
        size += more
    if taken:
        shards.append(Shard(len(shards), tuple(taken), size))
    return shards
