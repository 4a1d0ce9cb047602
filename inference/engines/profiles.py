"""Choosing among the optimization profiles of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Profile = Mapping[str, tuple[tuple[int, ...], ...]]
"""By input: the smallest, the best and the largest shape."""


def choose_profile(
    profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]], current: int
) -> int | None:
    """Return the profile that takes the shapes and was tuned nearest to them; None if none does.

    The current one wins a tie: a switch costs a synchronization.
    """
    fitting = [i for i, profile in enumerate(profiles) if _fits(profile, shapes)]
    return min(fitting, key=lambda i: (_distance(profiles[i], shapes), i != current), default=None)


def describe_misfit(profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> str:
    """Say which input has a shape that no profile takes, and what they take."""
    for name, shape in shapes.items():
        ranges = [profile[name] for profile in profiles if name in profile]
        if not any(_within(shape, found) for found in ranges):
            taken = " or ".join(f"{list(low)}..{list(high)}" for low, _, high in ranges)
            return f"the plan does not take {name} of shape {list(shape)}, only {taken or 'none'}"
    found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    return f"no optimization profile of the plan takes {found} together"


def _fits(profile: Profile, shapes: Mapping[str, Sequence[int]]) -> bool:
    return all(_within(shape, profile[name]) for name, shape in shapes.items())


def _within(shape: Sequence[int], ranges: Sequence[Sequence[int]]) -> bool:
    low, _, high = ranges
    return len(shape) == len(low) and all(
        a <= size <= b for a, size, b in zip(low, shape, high, strict=True)
    )


def _distance(profile: Profile, shapes: Mapping[str, Sequence[int]]) -> float:
    """Return how far the shapes are from the best ones: ratios, because those cost time."""
    return sum(
        abs(math.log((size + 1) / (best + 1)))
        for name, shape in shapes.items()
        for size, best in zip(shape, profile[name][1], strict=True)
    )
