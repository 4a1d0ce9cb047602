"""How much a metric changed at an onset, and how unusual that is in its own past.

The change score is two-sided and robust: deviation from the median of the normal rows over the largest
of IQR/1.349, 1.48 MAD and a floor. A fault may be shorter than the window that it was cut into, so the
statistic is the mean of the largest ``peak_share`` of the rows. Its tail probability comes from the same
statistic on every window of that length before the onset, continued by a power law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from analysis.diagnosis.settings import OfflineSettings
from collectors.signals import Bad, catalogue

FloatArray = NDArray[np.float64]

_RELATIVE_FLOOR = 0.02
"""Changes below 2% of the level do not count, however calm the metric was."""
_SHARE_FLOOR = 0.001
"""The floor of shares (availability, error ratio): a tenth of a percent."""


class Family(StrEnum):
    """What a metric measures, as far as its name tells."""

    LATENCY = "latency"
    ERROR = "error"
    AVAILABILITY = "availability"
    RATE = "rate"
    OTHER = "other"


_WORDS = (
    (Family.AVAILABILITY, ("availability", "success")),
    (Family.ERROR, ("error", "fault", "fail", "5xx", "4xx", "reject", "exception")),
    (Family.LATENCY, ("latency", "duration", "response_time", "seconds", "_ms", "delay", "rt_")),
    (Family.RATE, ("requests", "request_rate", "per_second", "qps", "rps", "throughput", "calls")),
)
_MEAN_WORDS = ("average", "mean", "avg")
_MIDDLE_WORDS = ("p50", "median")


def family_of(signal: str) -> Family:
    """Return what a metric measures, from its name."""
    name = signal.lower()
    for family, words in _WORDS:
        if any(word in name for word in words):
            return family
    return Family.OTHER


def statistic_order(signal: str) -> int:
    """Order the metrics of one family: means first (they add up along calls), then medians."""
    name = signal.lower()
    if any(word in name for word in _MEAN_WORDS):
        return 0
    return 1 if any(word in name for word in _MIDDLE_WORDS) else 2


def bad_sign(signal: str) -> int:
    """Return +1 where more is worse, -1 where less is worse, 0 where either may be."""
    known = catalogue().get(signal)
    if known is not None:
        return {Bad.UP: 1, Bad.DOWN: -1}.get(known.bad_direction, 0)
    return {Family.LATENCY: 1, Family.ERROR: 1, Family.AVAILABILITY: -1}.get(family_of(signal), 0)


@dataclass(frozen=True, slots=True)
class Change:
    """How one metric changed at the onset."""

    baseline: float
    scale: float
    low: float
    high: float
    observed: float
    """The mean of the rows that deviate most."""
    sign: int
    """The direction in which it deviates: +1 up, -1 down."""
    z: float
    """The deviation in robust standard deviations, never negative."""
    p_value: float
    """How likely so large a deviation is in the metric's own past."""


def change_of(
    values: FloatArray, onset_row: int, *, sign: int, share: bool, settings: OfflineSettings
) -> Change | None:
    """Measure one metric's change.

    Args:
        values: ``[rows]``, NaN where missing.
        onset_row: the first row that may be abnormal.
        sign: the direction that is bad, 0 for either.
        share: whether the metric is a share, which has a floor of its own.
        settings: of the off-line diagnosis.

    Returns:
        None where there is nothing to compare.
    """
    before = values[:onset_row][np.isfinite(values[:onset_row])]
    after = values[onset_row:][np.isfinite(values[onset_row:])]
    if len(before) < 3 or not len(after):
        return None
    low, baseline, high = (float(each) for each in np.quantile(before, [0.02, 0.5, 0.98]))
    scale = _scale_of(before, baseline, share=share)
    signs = (sign,) if sign else (1, -1)
    peaks = {each: _peak(each * (after - baseline) / scale, settings.peak_share) for each in signs}
    chosen = max(peaks, key=lambda each: peaks[each])
    z = max(0.0, peaks[chosen])
    past = chosen * (before - baseline) / scale
    return Change(
        baseline=baseline,
        scale=scale,
        low=low,
        high=high,
        observed=baseline + chosen * z * scale,
        sign=chosen,
        z=z,
        p_value=_tail(past, min(len(after), max(1, len(before) // 3)), z, settings),
    )


def _scale_of(before: FloatArray, baseline: float, *, share: bool) -> float:
    quarter, three_quarters = np.quantile(before, [0.25, 0.75])
    deviation = 1.48 * float(np.median(np.abs(before - baseline)))
    top = float(np.max(np.abs(before)))
    full = 100.0 if top > 1.5 else 1.0
    floor = _SHARE_FLOOR * full if share else _RELATIVE_FLOOR * abs(baseline)
    smallest = 1e-9 * max(1.0, top)
    return max(float(three_quarters - quarter) / 1.349, deviation, floor, smallest)


def _peak(deviations: FloatArray, share: float) -> float:
    count = max(1, math.ceil(share * len(deviations)))
    return float(np.mean(np.sort(deviations)[-count:]))


def _tail(past: FloatArray, length: int, z: float, settings: OfflineSettings) -> float:
    windows = np.lib.stride_tricks.sliding_window_view(past, length)
    count = max(1, math.ceil(settings.peak_share * length))
    peaks = np.sort(windows, axis=1)[:, -count:].mean(axis=1)
    empirical = (1 + int(np.sum(peaks >= z))) / (1 + len(peaks))
    largest = max(float(peaks.max()), 1.0)
    if z <= largest:
        return float(empirical)
    return float(empirical * (largest / z) ** settings.tail_index)
