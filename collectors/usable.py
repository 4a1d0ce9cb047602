"""What a collector returned, checked, so that nothing behind the poller has to.

One broken sample would otherwise end the tick of all collectors, or poison the store.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from collectors.contract import Collection, Sample

MAX_SAMPLES = 250_000
"""The most samples of one call: some eight seconds of the largest fleet that one process scrapes."""
_MAX_LEFT_OUT = 4 * MAX_SAMPLES
_MAX_NAME = 512


def usable(found: object) -> tuple[Collection, int]:
    """Return a collection with its whole samples only, and how many samples were left out.

    Raises:
        TypeError: when this is no collection.
        ValueError: when it has no end.
    """
    if not isinstance(found, Collection):
        raise TypeError(f"collect() must return a Collection, not {type(found).__name__}")
    samples, left_out = usable_samples(found.samples)
    return replace(found, samples=samples), left_out


def usable_samples(samples: Iterable[Sample]) -> tuple[list[Sample], int]:
    """Return the samples that are whole, no more than a call may give, and how many were left out.

    A sample needs an entity and a signal that are names, and a value and a time that are numbers.

    Raises:
        ValueError: when there is no end of them.
    """
    kept: list[Sample] = []
    left_out = 0
    for sample in samples:
        if len(kept) < MAX_SAMPLES and _is_whole(sample):
            kept.append(sample)
            continue
        left_out += 1
        if left_out > _MAX_LEFT_OUT:
            raise ValueError(f"more than {_MAX_LEFT_OUT} samples that cannot be used")
    return kept, left_out


def _is_whole(sample: Sample) -> bool:
    try:
        at, name, signal, value, labels = sample
        return (
            isinstance(name, str)
            and isinstance(signal, str)
            and 0 < len(name) <= _MAX_NAME
            and 0 < len(signal) <= _MAX_NAME
            and math.isfinite(value)
            and math.isfinite(at)
            and isinstance(labels, Mapping)
        )
    except (TypeError, ValueError, OverflowError):  # no sample at all, or a value that is no number
        return False
