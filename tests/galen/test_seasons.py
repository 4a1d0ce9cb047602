from __future__ import annotations

from typing import Any

from analysis.detection.seasonal_fit import SeasonalShape
from collectors.contract import SeriesKey
from galen.seasons import FIRST_FIT_SECONDS, SeasonFitter

KEY = SeriesKey("service/llm", "llm_requests_per_second")
SHAPE: Any = object.__new__(SeasonalShape)


def test_a_fit_runs_soon_after_the_start_and_is_handed_over_once() -> None:
    asked: list[float] = []

    def fit(now: float) -> dict[SeriesKey, SeasonalShape]:
        asked.append(now)
        return {KEY: SHAPE}

    fitter = SeasonFitter(fit)
    assert fitter.take(1000.0) == {}
    assert asked == []
    due = 1000.0 + FIRST_FIT_SECONDS
    assert fitter.take(due) == {}  # however fast the fit was
    fitter.wait(5.0)
    assert asked == [due]
    assert fitter.take(due + 1) == {KEY: SHAPE}
    assert fitter.take(due + 2) == {}
    fitter.wait(5.0)
    assert asked == [due]


def test_a_fit_that_fails_is_tried_again_later() -> None:
    asked: list[float] = []

    def fit(now: float) -> dict[SeriesKey, SeasonalShape]:
        asked.append(now)
        raise RuntimeError("the store is busy")

    fitter = SeasonFitter(fit)
    fitter.take(0.0)
    for now in (FIRST_FIT_SECONDS, FIRST_FIT_SECONDS + 10, FIRST_FIT_SECONDS + 6 * 3600):
        assert fitter.take(now) == {}
        fitter.wait(5.0)
    assert asked == [FIRST_FIT_SECONDS, FIRST_FIT_SECONDS + 6 * 3600]
