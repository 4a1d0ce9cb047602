"""What the series say: services, GPUs, and how much of the window was seen at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from collectors.entities import kind_of
from collectors.signals import unit_of
from collectors.store.contract import SeriesInfo
from reporting.reports.model import Chart, DataGap, GpuFigures, Region, ServiceFigures
from reporting.reports.series import Series, SeriesSource

_AVAILABILITY_RULE = (
    "Availability is good over valid requests. Valid are requests less those with a 4xx answer other "
    "than 429 and those that the client gave up on. Bad are those with a 5xx answer or a missed "
    "deadline and those refused by admission. A refusal with 503 stands in both of the ratios that are "
    "stored, so a range is given where they overlap: its low end counts both, its high end the larger "
    "one. Each scrape is weighted with the requests that arrived in its time; time without samples is "
    "left out."
)
_LATENCY_RULE = (
    "Latency is the 95th percentile of the requests of one scrape's sliding window (10 s, or 60 s "
    "where 10 s hold too few). 'Typical' is the median of these over the scrapes, 'high' the value that "
    "95 % of the scrapes do not exceed. Neither is the 95th percentile of all requests, which cannot "
    "be had from stored percentiles."
)
_GPU_RULE = (
    "Means over GPU signals are over samples. Energy is the sum of power times the seconds that each "
    "sample stands for; time without samples adds nothing, so it is a lower bound."
)
_GAP_RULE = "A minute counts as seen by a collector when one of its calls in it succeeded."
RULES = (_AVAILABILITY_RULE, _LATENCY_RULE, _GPU_RULE, _GAP_RULE)

CHART_POINTS = 160
_SERVICE_CHARTS = (
    "llm_request_latency_seconds",
    "llm_requests_per_second",
    "llm_error_ratio",
)
_GPU_CHARTS = ("gpu_utilization_percent", "gpu_temperature_celsius", "gpu_power_usage_watts")


def services(
    source: SeriesSource,
    known: Sequence[SeriesInfo],
    start_seconds: float,
    end_seconds: float,
    regions: Sequence[Region] = (),
) -> list[ServiceFigures]:
    """Return the figures of each service that has samples in the window, by name."""
    found: list[ServiceFigures] = []
    for entity in _entities(known, "llm_requests_per_second", start_seconds, end_seconds):
        figures = service(source, entity, start_seconds, end_seconds)
        if figures.samples:
            charts = _charts(source, known, entity, _SERVICE_CHARTS, (start_seconds, end_seconds))
            marked = tuple(chart.model_copy(update={"regions": tuple(regions)}) for chart in charts)
            changed = {"charts": marked, "simulated": _simulated(known, entity)}
            found.append(figures.model_copy(update=changed))
    return found


def service(
    source: SeriesSource, entity: str, start_seconds: float, end_seconds: float
) -> ServiceFigures:
    """Return the figures of one service, without charts."""

    def read(signal: str) -> Series:
        return source.read(entity, signal, start_seconds, end_seconds)

    arrivals = read("llm_requests_per_second")
    latency = read("llm_request_latency_seconds")
    requests = arrivals.integral()
    errors, rejected = read("llm_error_ratio"), read("llm_rejected_ratio")
    invalid = (read("llm_client_error_ratio"), read("llm_cancelled_ratio"))
    low, high = _availability(arrivals, errors, rejected, invalid)
    return ServiceFigures(
        entity=entity,
        simulated=False,
        samples=len(arrivals),
        requests=requests,
        availability_low=low,
        availability_high=high,
        error_ratio=_weighted(errors, arrivals),
        rejected_ratio=_weighted(rejected, arrivals),
        p95_typical_seconds=latency.quantile(0.5),
        p95_high_seconds=latency.quantile(0.95),
        output_tokens=read("llm_tokens_per_second").integral(),
    )


def _weighted(ratio: Series, arrivals: Series) -> float | None:
    """Return a ratio weighted with arriving requests; None without a request or a ratio."""
    if not len(ratio) or not len(arrivals):
        return None
    weights = arrivals.values * arrivals.spans()
    ratios = ratio.at(arrivals.times, default=np.nan)
    known = np.isfinite(ratios)
    total = float(weights[known].sum())
    return float((weights[known] * ratios[known]).sum() / total) if total > 0 else None


def _availability(
    arrivals: Series, errors: Series, rejected: Series, invalid: Sequence[Series]
) -> tuple[float | None, float | None]:
    if not len(arrivals) or not len(errors):
        return None, None
    weights = arrivals.values * arrivals.spans()
    failed = errors.at(arrivals.times, default=np.nan)
    refused = rejected.at(arrivals.times, default=0.0)
    valid = np.ones(len(arrivals))
    for series in invalid:
        valid -= series.at(arrivals.times, default=0.0)
    known = np.isfinite(failed) & (valid > 0)
    total = float((weights[known] * valid[known]).sum())
    if total <= 0:
        return None, None
    bounds = []
    for bad in (failed + refused, np.maximum(failed, refused)):
        good = np.clip(valid[known] - bad[known], 0.0, None)
        bounds.append(float((weights[known] * good).sum() / total))
    return bounds[0], bounds[1]


def gpus(
    source: SeriesSource,
    known: Sequence[SeriesInfo],
    start_seconds: float,
    end_seconds: float,
    regions: Sequence[Region] = (),
) -> list[GpuFigures]:
    """Return the figures of each GPU that has samples in the window, by name."""
    entities = {
        info.key.entity
        for info in known
        if kind_of(info.key.entity) == "gpu"
        and info.first_seconds < end_seconds
        and info.last_seconds >= start_seconds
    }
    found: list[GpuFigures] = []
    for entity in sorted(entities):
        figures = _gpu(source, known, entity, start_seconds, end_seconds)
        if figures.samples:
            charts = _charts(source, known, entity, _GPU_CHARTS, (start_seconds, end_seconds))
            marked = tuple(chart.model_copy(update={"regions": tuple(regions)}) for chart in charts)
            found.append(figures.model_copy(update={"charts": marked}))
    return found


def _gpu(
    source: SeriesSource,
    known: Sequence[SeriesInfo],
    entity: str,
    start_seconds: float,
    end_seconds: float,
) -> GpuFigures:
    def read(signal: str) -> Series:
        return source.read(entity, signal, start_seconds, end_seconds)

    utilization, power = read("gpu_utilization_percent"), read("gpu_power_usage_watts")
    available, temperature = read("gpu_available"), read("gpu_temperature_celsius")
    joules = power.integral()
    errors = read("gpu_ecc_uncorrectable_total").increase()
    codes = {int(code) for code in read("gpu_xid").values if code > 0}
    return GpuFigures(
        entity=entity,
        simulated=_simulated(known, entity),
        samples=max(map(len, (utilization, power, temperature, available))),
        utilization_mean_percent=utilization.mean(),
        memory_used_highest_ratio=read("gpu_memory_used_ratio").highest(),
        temperature_highest_celsius=temperature.highest(),
        power_mean_watts=power.mean(),
        power_highest_watts=power.highest(),
        energy_kwh=None if joules is None else joules / 3.6e6,
        thermal_throttle_share=read("gpu_throttle_thermal").share(1.0),
        power_throttle_share=read("gpu_throttle_power").share(1.0),
        available_share=available.share(1.0),
        xids=tuple(sorted(codes)),
        ecc_uncorrectable=None if errors is None else round(errors),
    )


def gaps(
    source: SeriesSource,
    known: Sequence[SeriesInfo],
    start_seconds: float,
    end_seconds: float,
) -> tuple[list[DataGap], int]:
    """Return what each collector missed, and how many minutes at least one of them saw."""
    minutes = window_minutes(start_seconds, end_seconds)
    seen_by_any = np.zeros(minutes, dtype=bool)
    found: list[DataGap] = []
    for entity in _entities(known, "scrape_success", start_seconds, end_seconds):
        success = source.read(entity, "scrape_success", start_seconds, end_seconds)
        times = success.times[success.values > 0]
        seen = np.zeros(minutes, dtype=bool)
        places = ((times - start_seconds) // 60.0).astype(int)
        seen[places[places < minutes]] = True
        seen_by_any |= seen
        longest, start = _longest_run(~seen)
        found.append(
            DataGap(
                collector=entity.partition("/")[2] or entity,
                missing_minutes=int((~seen).sum()),
                longest_minutes=longest,
                longest_start_seconds=start_seconds + 60.0 * start if longest else None,
            )
        )
    return found, int(seen_by_any.sum())


def window_minutes(start_seconds: float, end_seconds: float) -> int:
    """Return how many minutes a window has; a rest of half a minute or more counts as one."""
    return max(1, int((end_seconds - start_seconds) / 60.0 + 0.5))


def _longest_run(missing: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[int, int]:
    longest = best_start = run = 0
    for index, gone in enumerate(missing.tolist()):
        run = run + 1 if gone else 0
        if run > longest:
            longest, best_start = run, index - run + 1
    return longest, best_start


def chart(
    source: SeriesSource,
    known: Sequence[SeriesInfo],
    entity: str,
    signal: str,
    window: tuple[float, float],
) -> Chart | None:
    """Return one series as a chart, or None where there is nothing to draw."""
    series = source.read(entity, signal, *window)
    if len(series) < 2:
        return None
    thin = series.thinned(CHART_POINTS)
    return Chart(
        entity=entity,
        signal=signal,
        unit=unit_of(signal),
        start_seconds=window[0],
        end_seconds=window[1],
        times=tuple(thin.times.round(3).tolist()),
        values=tuple(float(f"{value:.6g}") for value in thin.values),
        # Thinning spreads the points, so the longest distance that is no gap grows with it.
        gap_seconds=max(series.gap_seconds, 3.0 * (window[1] - window[0]) / CHART_POINTS),
        simulated=_simulated(known, entity),
    )


def _charts(
    source: SeriesSource,
    known: Sequence[SeriesInfo],
    entity: str,
    signals: Iterable[str],
    window: tuple[float, float],
) -> list[Chart]:
    drawn = (chart(source, known, entity, signal, window) for signal in signals)
    return [each for each in drawn if each is not None]


def _entities(
    known: Sequence[SeriesInfo], signal: str, start_seconds: float, end_seconds: float
) -> list[str]:
    return sorted(
        info.key.entity
        for info in known
        if info.key.signal == signal
        and info.first_seconds < end_seconds
        and info.last_seconds >= start_seconds
    )


def _simulated(known: Sequence[SeriesInfo], entity: str) -> bool:
    return any(info.key.entity == entity and is_simulated(info) for info in known)


def is_simulated(info: SeriesInfo) -> bool:
    """Return whether a series says that its device does not exist."""
    return info.labels.get("simulated") == "true"
