"""What detection has to see together to say the same wherever it runs."""

from __future__ import annotations

from collectors.entities import top_of


def together_of(entity: str) -> str:
    """Name what an entity is detected together with; equal names must not be divided.

    Multivariate detectors look at all series of one entity at once, and peers are compared with their
    siblings: the GPUs of a host, the replicas of a service. All of these share their top-level entity.
    """
    return top_of(entity)
