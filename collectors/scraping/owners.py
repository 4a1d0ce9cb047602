"""Who gives which series: two targets that claim one are not mixed into one zigzag."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from collectors.contract import Sample

log = structlog.get_logger(__name__)


class SeriesOwners:
    """Remembers which target gave a series first; that one keeps it while it is read.

    Two exporters may tell about one GPU, and two replicas that nothing tells apart look like one
    service. Taking both would make one series that jumps between two things.
    """

    def __init__(self) -> None:
        self._owners: dict[tuple[str, str], str] = {}
        self._disputes: dict[tuple[str, str], str] = {}

    def admit(self, target: str, samples: Sequence[Sample]) -> list[Sample]:
        """Return the samples whose series are this target's, and take the series that are nobody's."""
        kept = []
        for sample in samples:
            key = (sample.entity, sample.signal)
            owner = self._owners.setdefault(key, target)
            if owner == target:
                kept.append(sample)
            else:
                self._dispute(target, owner, sample)
        return kept

    def release(self, target: str) -> None:
        """Give back what a target claimed: it is gone, or has been silent for long."""
        self._owners = {key: owner for key, owner in self._owners.items() if owner != target}
        self._disputes = {
            pair: entity for pair, entity in self._disputes.items() if target not in pair
        }

    def problems(self) -> Sequence[str]:
        """Return who disputes what with whom, in words for a person."""
        return [
            f"{target} gives {entity}, which {owner} gives already; its values are left out"
            for (target, owner), entity in self._disputes.items()
        ]

    def _dispute(self, target: str, owner: str, sample: Sample) -> None:
        if (target, owner) in self._disputes:
            return
        self._disputes[target, owner] = sample.entity
        log.warning(
            "series_claimed_twice",
            entity=sample.entity,
            signal=sample.signal,
            owner=owner,
            refused=target,
            fix="take one of the targets out, or tell them apart by a label such as pod or replica",
        )
