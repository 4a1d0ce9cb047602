"""Objectives as rules: what counts, how fast the budget burns, and who is told.

Multi-window, multi-burn-rate alerts of the SRE workbook (chapter 5), with the slower ticket that sloth
adds. A service without traffic has no ratio and burns nothing; that its metrics have vanished is an
alert of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from galen.telemetry.rules import Alert, AlertSeverity, Group, Record
from galen.telemetry.settings import ObjectiveSettings

# Requests that count: what the client got wrong (4xx, and 499 for those that left) does not; a refusal
# for want of room (429) does.
_VALID_STATUS = "[235]..|429"
_BAD_STATUS = "5..|429"
_BY = "job, model"
_BASE_WINDOW = "5m"
# A burn of 1/(1 - objective) is all requests failing: no alert may ask for more than this part of it.
_HIGHEST_SHARE_OF_PEAK = 0.8


@dataclass(frozen=True, slots=True)
class Indicator:
    """Good and valid events of one objective in one kind of service."""

    slo: str
    source: str
    valid: str
    """PromQL of the rate of what counts."""
    bad: str
    """PromQL of the rate of what counts and failed."""
    absent_is_none: bool = False
    """Whether no series of failures means no failure; else it means that nobody knows."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One pair of windows: ``budget_share`` of the budget gone in the long one."""

    long_hours: int
    short: str
    budget_share: float
    severity: AlertSeverity
    for_: str

    @property
    def long(self) -> str:
        """The long window as PromQL writes it."""
        days, hours = divmod(self.long_hours, 24)
        return f"{days}d" if not hours else f"{self.long_hours}h"

    def burn(self, window_days: int, objective: float) -> float:
        """Return how many times too fast the budget must burn."""
        asked = self.budget_share * window_days * 24 / self.long_hours
        return min(asked, _HIGHEST_SHARE_OF_PEAK / (1 - objective))


TIERS = (
    Tier(1, "5m", 0.02, AlertSeverity.CRITICAL, "2m"),
    Tier(6, "30m", 0.05, AlertSeverity.CRITICAL, "15m"),
    Tier(24, "2h", 0.10, AlertSeverity.WARNING, "1h"),
    Tier(72, "6h", 0.10, AlertSeverity.WARNING, "3h"),
)


def objectives(settings: ObjectiveSettings) -> dict[str, float]:
    """Return each objective by its name."""
    return {
        "availability": settings.availability_ratio,
        "latency": settings.latency_ratio,
        "first_token": settings.first_token_ratio,
    }


def indicators(settings: ObjectiveSettings) -> Iterator[Indicator]:
    """Yield the indicators of every kind of service whose metrics allow them.

    vLLM counts no errors, so it has no availability of its own here; Triton and TGI have no histogram
    of the first token.
    """
    yield Indicator(
        "availability",
        "galen",
        f'sum by ({_BY}) (rate(llm_requests_total{{status=~"{_VALID_STATUS}"}}[{_BASE_WINDOW}]))',
        f'sum by ({_BY}) (rate(llm_requests_total{{status=~"{_BAD_STATUS}"}}[{_BASE_WINDOW}]))',
        absent_is_none=True,
    )
    success, failure = (
        f"sum by ({_BY}) (rate(nv_inference_request_{what}[{_BASE_WINDOW}]))"
        for what in ("success", "failure")
    )
    yield Indicator("availability", "triton", f"{success} + {failure}", failure)
    count, good = (
        f"sum by (job) (rate(tgi_request_{what}[{_BASE_WINDOW}]))" for what in ("count", "success")
    )
    yield Indicator(
        "availability", "tgi", count, f"clamp_min({count} - ({good} or {count} * 0), 0)"
    )
    for slo, bound, histograms in (
        (
            "latency",
            settings.latency_seconds,
            {"galen": "llm_request_latency_seconds", "vllm": "vllm:e2e_request_latency_seconds"},
        ),
        (
            "first_token",
            settings.first_token_seconds,
            {
                "galen": "llm_time_to_first_token_seconds",
                "vllm": "vllm:time_to_first_token_seconds",
            },
        ),
    ):
        for source, histogram in histograms.items():
            valid = _of_histogram(source, f"{histogram}_count")
            # Prometheus before 3 keeps the bound as it was written: 1 or 1.0.
            good = _of_histogram(source, f'{histogram}_bucket{{le=~"{_bound(bound)}"}}')
            yield Indicator(slo, source, valid, f"clamp_min({valid} - {good}, 0)")


def slo_groups(settings: ObjectiveSettings) -> Iterator[Group]:
    """Yield the rules of all objectives."""
    yield Group("galen-slo-indicators", [*_indicator_rules(settings)])
    long = [rule for rule in _window_rules(settings) if "d" in rule.name.rpartition("rate")[2]]
    yield Group("galen-slo-ratios", [r for r in _window_rules(settings) if r not in long])
    # A month of samples is much to sum up, and moves slowly; longer pauses would look stale.
    yield Group("galen-slo-long", [*long, *_budget_rules(settings)], interval="2m")
    yield Group("galen-slo-alerts", [*_burn_alerts(settings), *_silence_alerts()])


def _indicator_rules(settings: ObjectiveSettings) -> Iterator[Record]:
    for one in indicators(settings):
        labels = {"slo": one.slo, "source": one.source}
        yield Record("slo:sli_valid:rate5m", one.valid, labels)
        bad = f"({one.bad}) or ({one.valid}) * 0" if one.absent_is_none else one.bad
        yield Record("slo:sli_bad:rate5m", bad, labels)
    for slo, objective in objectives(settings).items():
        yield Record("slo:objective:ratio", f"vector({objective:.12g})", {"slo": slo})


def _window_rules(settings: ObjectiveSettings) -> Iterator[Record]:
    yield Record("slo:sli_error:ratio_rate5m", "slo:sli_bad:rate5m / slo:sli_valid:rate5m")
    windows = {tier.long for tier in TIERS} | {tier.short for tier in TIERS}
    windows = windows - {_BASE_WINDOW} | {f"{settings.window_days}d"}
    for window in sorted(windows, key=_seconds):
        # Sums, not a mean of ratios: an hour with ten requests must not weigh as one with a million.
        yield Record(
            f"slo:sli_error:ratio_rate{window}",
            f"sum_over_time(slo:sli_bad:rate5m[{window}])"
            f" / sum_over_time(slo:sli_valid:rate5m[{window}])",
        )


def _budget_rules(settings: ObjectiveSettings) -> Iterator[Record]:
    for tier in TIERS:
        yield Record(
            f"slo:sli_valid:count{tier.long}",
            f"avg_over_time(slo:sli_valid:rate5m[{tier.long}]) * {_seconds(tier.long)}",
        )
    yield Record(
        "slo:error_budget_remaining:ratio",
        f"1 - slo:sli_error:ratio_rate{settings.window_days}d"
        " / on (slo) group_left () (1 - slo:objective:ratio)",
    )


def _burn_alerts(settings: ObjectiveSettings) -> Iterator[Alert]:
    for slo, objective in objectives(settings).items():
        for tier in TIERS:
            burn = tier.burn(settings.window_days, objective)
            threshold = f"{burn * (1 - objective):.6g}"
            yield Alert(
                "ServiceErrorBudgetBurn",
                f'slo:sli_error:ratio_rate{tier.long}{{slo="{slo}"}} > {threshold}'
                f' and slo:sli_error:ratio_rate{tier.short}{{slo="{slo}"}} > {threshold}'
                f' and slo:sli_valid:count{tier.long}{{slo="{slo}"}}'
                f" >= {settings.minimum_requests}",
                tier.severity,
                f"{{{{ $labels.job }}}} {{{{ $labels.model }}}}: the {slo} budget of "
                f"{settings.window_days} days burns {burn:.3g} times too fast",
                "See the dashboard Galen / Service and the open incidents of Galen for the cause.",
                tier.for_,
                {"slo": slo, "long_window": tier.long, "short_window": tier.short},
            )


def _silence_alerts() -> Iterator[Alert]:
    yield Alert(
        "ServiceMetricsVanished",
        # A ratio over nothing reads as perfect: that there is nothing has to be said by itself.
        "(slo:sli_valid:rate5m offset 30m) unless slo:sli_valid:rate5m",
        AlertSeverity.CRITICAL,
        "{{ $labels.job }} {{ $labels.model }} had request metrics half an hour ago and has none now",
        "Check that the service runs and that Prometheus scrapes it.",
        "5m",
    )


def _of_histogram(source: str, series: str) -> str:
    rate = f"rate({series}[{_BASE_WINDOW}])"
    if source == "vllm":
        rate = f'label_replace({rate}, "model", "$1", "model_name", "(.+)")'
    return f"sum by ({_BY}) ({rate})"


def _bound(seconds: float) -> str:
    text = f"{seconds:g}"
    return text.replace(".", "[.]") if "." in text else f"{text}([.]0)?"


def _seconds(window: str) -> int:
    return int(window[:-1]) * {"m": 60, "h": 3600, "d": 86400}[window[-1]]
