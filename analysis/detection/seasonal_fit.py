"""Fits the seasonal shape of one series from its history, and keeps it only where it predicts better.

Fitting uses statsmodels: STL with a jump (Cleveland et al., 1990; 120 times faster than without, the
same shape within the noise) where the history holds enough cycles, the classical decomposition
otherwise. Neither is used live: the classical filter is centred and leaves its newest half cycle
empty, and STL moves its past when new values come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from statsmodels.tsa.seasonal import STL, seasonal_decompose

from analysis.detection.contract import FloatArray
from analysis.detection.wall_clock import wall_clock
from analysis.detection.zones import UTC

DAY_SECONDS = 86_400.0
WEEK_SECONDS = 7 * DAY_SECONDS

_CYCLES = 3
"""Cycles of history that a fit needs: two to fit on and one to judge it by."""
_LEAST_VALUES = 50
_LARGEST_PERIOD = 2016
"""Phases of a shape at most: a week in steps of five minutes."""
_LEAST_GAIN = 0.1
"""A shape has to lower the error on held-out history by this share."""


@dataclass(frozen=True)
class SeasonalShape:
    """What to add to the level at each phase of a period, in the measuring space of the series."""

    period_seconds: float
    offsets: FloatArray
    """``[phases]``, with median 0; phase 0 begins at a multiple of the period since the epoch."""
    zone: str = UTC
    """Whose wall-clock time says the phase."""

    def at(self, time_seconds: float) -> float:
        """Return the offset at a time, interpolated between the middles of the phases."""
        return float(self.over(np.array([time_seconds]))[0])

    def over(self, times: FloatArray) -> FloatArray:
        """Return the offsets at many times ``[n]``."""
        phases = len(self.offsets)
        local = wall_clock(self.zone).local(times)
        place = (local % self.period_seconds) / self.period_seconds * phases - 0.5
        before = np.floor(place).astype(np.int64)
        weight = place - before
        return np.asarray(
            (1.0 - weight) * self.offsets[before % phases]
            + weight * self.offsets[(before + 1) % phases]
        )


def fit_shape(
    times: FloatArray,
    values: FloatArray,
    periods_seconds: Sequence[float] = (),
    *,
    zone: str = UTC,
) -> SeasonalShape | None:
    """Fit the seasonal shape of one series, or return None where no shape helps.

    Args:
        times: ``[n]`` seconds since the epoch, rising.
        values: ``[n]`` in the measuring space; NaN where missing.
        periods_seconds: periods to try; by default a day, a week and the one that autocorrelation
            shows, as far as the history holds three cycles of it.
        zone: whose wall-clock time says the phase of a day and a week.

    Returns:
        The shape with the least error on the last cycle, if it beats the level alone by a tenth.
    """
    present = np.isfinite(values)
    if present.sum() < _LEAST_VALUES:
        return None
    step = float(np.median(np.diff(times)))
    span = float(times[-1] - times[0])
    candidates = list(periods_seconds) or [
        DAY_SECONDS,
        WEEK_SECONDS,
        *found_periods(times, values, step),
    ]
    # What is found is mostly a day; no period is fitted twice.
    best: tuple[float, float] | None = None
    for period in dict.fromkeys(candidates):
        if span < _CYCLES * period or period < 4 * step:
            continue
        split = times[-1] - period
        before = times < split
        trained = _fit_period(times[before], values[before], period, step, zone)
        if trained is None:
            continue
        ratio = _held_out_ratio(times, values, trained, split, step)
        if ratio < 1.0 - _LEAST_GAIN and (best is None or ratio < best[0]):
            best = (ratio, period)
    return _fit_period(times, values, best[1], step, zone) if best else None


def _fit_period(
    times: FloatArray, values: FloatArray, period_seconds: float, step: float, zone: str
) -> SeasonalShape | None:
    """Decompose on a regular grid and take the median of the seasonal part at each phase.

    None where the values, with all their pauses, do not span two cycles. The grid of whole days is of
    wall-clock time: an hour that clocks skip is filled, one that they repeat averaged.
    """
    zone = zone if period_seconds % DAY_SECONDS == 0 else UTC
    phases = int(min(_LARGEST_PERIOD, max(4, round(period_seconds / step))))
    width = period_seconds / phases
    present = np.isfinite(values)
    slot = np.floor(wall_clock(zone).local(times) / width).astype(np.int64)
    if not present.any() or np.ptp(slot) + 1 < 2 * phases:
        return None
    slots = np.arange(slot.min(), slot.max() + 1)
    sums = np.bincount(slot[present] - slots[0], values[present], len(slots))
    counts = np.bincount(slot[present] - slots[0], minlength=len(slots))
    filled = counts > 0
    grid = np.interp(slots, slots[filled], sums[filled] / counts[filled])
    if len(grid) >= _CYCLES * phases:
        jump = max(1, phases // 10)
        fitted = STL(
            grid,
            period=phases,
            robust=False,
            seasonal_jump=jump,
            trend_jump=jump,
            low_pass_jump=jump,
        ).fit()
        seasonal = np.asarray(fitted.seasonal) + _detrended_rest(np.asarray(fitted.resid))
    else:
        classical = seasonal_decompose(grid, period=phases, extrapolate_trend="period")
        seasonal = grid - np.asarray(classical.trend)
    offsets = _phase_medians(seasonal, int(slots[0] % phases), phases)
    return SeasonalShape(period_seconds, offsets - np.median(offsets), zone)


def _phase_medians(seasonal: FloatArray, first: int, phases: int) -> FloatArray:
    """Return the median over cycles of each phase ``[phases]``, from a series that begins at one."""
    cycles = -(-(first + len(seasonal)) // phases)
    table = np.full(cycles * phases, np.nan)
    table[first : first + len(seasonal)] = seasonal
    ordered = np.sort(table.reshape(cycles, phases), axis=0)  # what is not there comes last
    count = np.isfinite(ordered).sum(axis=0)
    every = np.arange(phases)
    middle = 0.5 * (ordered[(count - 1) // 2, every] + ordered[count // 2, every])
    return np.asarray(middle)


def _detrended_rest(rest: FloatArray) -> FloatArray:
    """Return the remainder, which belongs to the phase until the median over cycles removes it."""
    return np.asarray(np.nan_to_num(rest))


def _held_out_ratio(
    times: FloatArray, values: FloatArray, shape: SeasonalShape, split: float, step: float
) -> float:
    """Return the one-hour-ahead error with the shape over that without, on what comes after split."""
    ahead = max(1, round(min(3600.0, shape.period_seconds / 8) / step))
    flat = np.abs(values[ahead:] - values[:-ahead])
    rest = values - shape.over(times)
    shaped = np.abs(rest[ahead:] - rest[:-ahead])
    judged = (times[ahead:] >= split) & np.isfinite(flat) & np.isfinite(shaped)
    if not judged.any() or not flat[judged].mean() > 0:
        return 1.0
    return float(shaped[judged].mean() / flat[judged].mean())


def found_periods(times: FloatArray, values: FloatArray, step: float) -> list[float]:
    """Return the period that the autocorrelation shows, as a list of at most one."""
    present = np.isfinite(values)
    count = int((times[-1] - times[0]) / step) + 1
    if count < 64 or count > 200_000 or present.sum() < _LEAST_VALUES:
        return []
    grid = np.interp(times[0] + step * np.arange(count), times[present], values[present])
    grid = grid - grid.mean()
    spectrum = np.fft.rfft(grid, 2 * count)
    full = np.fft.irfft(np.abs(spectrum) ** 2)[:count]
    correlation = full[: count // _CYCLES]
    if len(correlation) < 8 or correlation[0] <= 0:
        return []
    correlation = correlation / correlation[0]
    below = np.flatnonzero(correlation < 0)
    if not below.size:
        return []
    lag = int(below[0] + np.argmax(correlation[below[0] :]))
    if correlation[lag] <= 0.3:
        return []
    period = _refined(full, lag) * step
    # A period that is nearly a day or a week is one: its phase then does not drift.
    named = [known for known in (DAY_SECONDS, WEEK_SECONDS) if abs(period / known - 1.0) < 0.02]
    return named[:1] or [period]


def _refined(correlation: FloatArray, lag: int) -> float:
    """Return the period in steps, from the peaks near its multiples, which tell it more finely."""
    # Fewer pairs of values overlap at longer lags; without that the peaks lean to shorter ones.
    level = correlation / np.arange(len(correlation), 0, -1)
    period = float(lag)
    for multiple in range(1, int(len(level) * 0.7 / lag)):
        middle, reach = round(multiple * period), max(1, lag // 8)
        near = level[max(middle - reach, 1) : middle + reach + 1]
        if len(near) < 2 * reach + 1 or near.max() <= 0:
            break
        peak = int(max(middle - reach, 1) + np.argmax(near))
        before, at, after = level[peak - 1 : peak + 2]
        bend = before - 2.0 * at + after
        period = (peak + (0.5 * (before - after) / bend if bend < 0 else 0.0)) / multiple
    return period
