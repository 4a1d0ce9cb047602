"""The two tests that compare a new version with the old one, fit for small numbers.

Both are one-sided and return the probability of what was seen, or worse, if the new version were as
good as the old one (errors) or as its margin allows (times).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def more_errors(new_errors: int, new_total: int, old_errors: int, old_total: int) -> float:
    """Return the p-value of Fisher's exact test: the new version fails more often.

    Given the number of errors in both together, those of the new version are hypergeometric if both
    fail alike (R. A. Fisher, "Statistical Methods for Research Workers", 1934, section 21.02). It
    is exact for any counts, and cautious: its false-alarm rate stays below the level. 3 errors in
    20 against 0 in 100 give 0.0041.
    """
    if not new_total or not old_total:
        return 1.0
    errors = new_errors + old_errors
    total = new_total + old_total
    most = min(errors, new_total)
    whole = _log_choose(total, errors)
    tail = math.fsum(
        math.exp(_log_choose(new_total, k) + _log_choose(old_total, errors - k) - whole)
        for k in range(new_errors, most + 1)
        if 0 <= errors - k <= old_total
    )
    return min(1.0, tail)


def more_than_share(errors: int, total: int, share: float) -> float:
    """Return the p-value of the binomial test: the error rate is above ``share``.

    Used where the old version answered too few requests to compare with.
    """
    tail = math.fsum(
        math.exp(_log_choose(total, k) + k * math.log(share) + (total - k) * math.log1p(-share))
        for k in range(errors, total + 1)
    )
    return min(1.0, tail)


def slower(
    new: Mapping[Hashable, Sequence[float]], old: Mapping[Hashable, Sequence[float]], margin: float
) -> float:
    """Return the p-value of: the new version takes more than ``margin`` times as long.

    Van Elteren's stratified rank-sum test: times are ranked among comparable requests only (the
    keys), and the strata are added with the weights 1 / (n + 1), which are the most powerful ones
    against a common shift (P. van Elteren, "On the combination of independent two sample tests of
    Wilcoxon", 1960). With one stratum it is the Mann-Whitney test. The old times are multiplied by
    the margin first, so that a difference too small to matter is no finding however sure it is.
    Ranks, because latencies have tails that make means and variances useless; the normal
    approximation holds from about ten values on each side.
    """
    statistic = variance = 0.0
    for key, new_times in new.items():
        old_times = old.get(key, ())
        if not new_times or not old_times:
            continue
        drift, spread = _rank_sum(np.asarray(new_times), margin * np.asarray(old_times))
        weight = 1.0 / (len(new_times) + len(old_times) + 1)
        statistic += weight * drift
        variance += weight**2 * spread
    if variance <= 0.0:
        return 1.0
    return 0.5 * math.erfc(statistic / math.sqrt(2.0 * variance))


def comparable(
    new: Mapping[Hashable, Sequence[float]], old: Mapping[Hashable, Sequence[float]]
) -> tuple[int, int]:
    """Return how many times on each side have a counterpart in the same stratum."""
    shared = [key for key in new if new[key] and old.get(key)]
    return sum(len(new[key]) for key in shared), sum(len(old[key]) for key in shared)


def ratio_of_medians(
    new: Mapping[Hashable, Sequence[float]], old: Mapping[Hashable, Sequence[float]]
) -> float:
    """Return how many times as long the new version takes: strata weighted by its requests."""
    pairs = [
        (len(new[key]), float(np.median(new[key]) / np.median(old[key])))
        for key in new
        if new[key] and old.get(key) and np.median(old[key]) > 0
    ]
    total = sum(count for count, _ in pairs)
    return sum(count * ratio for count, ratio in pairs) / total if total else 1.0


def _rank_sum(new: Floats, old: Floats) -> tuple[float, float]:
    """Return the rank sum of the new values less its expectation, and its variance, with ties."""
    count = len(new) + len(old)
    ranks, ties = _ranks(np.concatenate([new, old]))
    drift = float(ranks[: len(new)].sum()) - len(new) * (count + 1) / 2
    tied = sum(size**3 - size for size in ties)
    spread = len(new) * len(old) / 12 * (count + 1 - tied / (count * (count - 1)))
    return drift, spread


def _ranks(values: Floats) -> tuple[Floats, Iterable[int]]:
    """Return ranks from 1, equal values sharing their mean rank, and the sizes of the ties."""
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    middle = last - (sizes - 1) / 2
    return middle[inverse], [int(size) for size in sizes]


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
