"""How many series a source may have, so that one exploding label does not take the whole store.

A series that is known goes on being written. A new one above a limit is left out, counted, and the
signal and the part of the entity that explode are named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog

from collectors.contract import Sample, SeriesKey
from collectors.entities import entity

log = structlog.get_logger(__name__)

MOST_NAMED = 10_000
"""Refused series of a source that are told apart; beyond, the count stands for "at least"."""
_UNSEEN = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a source was refused."""

    series: int
    """How many, at most :data:`MOST_NAMED`."""
    signal: str = ""
    """The signal that most of them have."""
    kind: str = ""
    """The part of their entities that has the most names, such as ``pod``."""
    names: int = 0
    """How many names that part has among them."""


class SeriesLimit:
    """Admits samples of known series, and of new ones while there is room.

    Calls come from one thread at a time.

    Args:
        per_source: the most series of one source.
        overall: the most series of all sources together.
        known: series that the store has already. They are always admitted, and belong to the source
            that gives them first.
    """

    def __init__(self, *, per_source: int, overall: int, known: Iterable[SeriesKey] = ()) -> None:
        self._per_source = per_source
        self._overall = overall
        self._owners: dict[tuple[str, str], str] = dict.fromkeys(known, _UNSEEN)
        self._counts: Counter[str] = Counter()
        self._refused: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        self._told: set[str] = set()

    def admit(self, source: str, samples: Sequence[Sample]) -> list[Sample]:
        """Return the samples of known series, and of new ones for which there is room."""
        owners = self._owners
        admitted: list[Sample] = []
        for sample in samples:
            key = (sample.entity, sample.signal)
            owner = owners.get(key)
            if owner is None and not self._has_room(source):
                if len(self._refused[source]) < MOST_NAMED:
                    self._refused[source].add(key)
                continue
            if not owner:
                owners[key] = source
                self._counts[source] += 1
            admitted.append(sample)
        if len(admitted) < len(samples):
            self._tell(source)
        return admitted

    def refusal(self, source: str) -> Refusal:
        """Say what a source was refused since the series were counted last."""
        refused = self._refused.get(source)
        if not refused:
            return Refusal(0)
        signal, _ = Counter(signal for _, signal in refused).most_common(1)[0]
        names: defaultdict[str, set[str]] = defaultdict(set)
        for name_of_entity, _ in refused:
            pieces = name_of_entity.split("/")
            for kind, name in zip(pieces[::2], pieces[1::2], strict=False):
                names[kind].add(name)
        kind = max(names, key=lambda kind: len(names[kind]), default="")
        return Refusal(len(refused), signal, kind, len(names[kind]) if kind else 0)

    def sample(self, now_seconds: float, source: str) -> Sample:
        """Return ``scrape_series_refused`` of a source; its labels name what explodes."""
        found = self.refusal(source)
        labels = {"signal": found.signal, "exploding": found.kind} if found.series else {}
        return Sample(
            now_seconds,
            entity("collector", source),
            "scrape_series_refused",
            float(found.series),
            labels,
        )

    def recount(self, known: Iterable[SeriesKey]) -> None:
        """Forget the series that the store has forgotten, and what was refused so far."""
        owners: dict[tuple[str, str], str] = {key: self._owners.get(key, _UNSEEN) for key in known}
        self._owners = owners
        self._counts = Counter(source for source in owners.values() if source)
        self._told &= {source for source, refused in self._refused.items() if refused}
        self._refused.clear()

    def _has_room(self, source: str) -> bool:
        return len(self._owners) < self._overall and self._counts[source] < self._per_source

    def _tell(self, source: str) -> None:
        if source in self._told:
            return
        self._told.add(source)
        found = self.refusal(source)
        log.warning(
            "series_refused", source=source, series=found.series, signal=found.signal,
            exploding=found.kind, names=found.names, known=self._counts[source],
            limit=self._per_source, overall=len(self._owners), overall_limit=self._overall,
            fix="leave the label out at the source, or raise collectors.most_series_per_source",
        )  # fmt: skip
