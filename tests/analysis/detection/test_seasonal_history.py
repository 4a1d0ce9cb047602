from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.detection import seasonal_history
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.seasonal_fit import DAY_SECONDS, fit_shape
from analysis.detection.seasonal_history import fit_shapes
from collectors.contract import SeriesKey
from collectors.store.contract import SeriesInfo
from collectors.store.frames import rolled_up

RATE = SeriesKey("service/llm", "llm_requests_per_second")
QUEUE = SeriesKey("service/llm", "llm_queue_depth")
CRASHES = SeriesKey("service/llm", "engine_crashes")
START = 1_700_006_400.0
TIMES = START + 60.0 * np.arange(1440 * 5)


class Stored:
    def __init__(self, values: dict[SeriesKey, np.ndarray]) -> None:
        self.values = values
        self.reads = 0

    def series(self) -> Sequence[SeriesInfo]:
        return [SeriesInfo(key, {}, TIMES[0], TIMES[-1], 0.0) for key in self.values]

    def read(
        self,
        *,
        start_seconds: float,
        end_seconds: float,
        entities: Collection[str] | None = None,
        signals: Collection[str] | None = None,
    ) -> pd.DataFrame:
        parts = [
            pd.DataFrame({"time": TIMES, **key._asdict(), "value": values}).dropna()
            for key, values in self.values.items()
            if (entities is None or key.entity in entities)
            and (signals is None or key.signal in signals)
        ]
        frame = pd.concat(
            [pd.DataFrame({"time": [], "entity": [], "signal": [], "value": []}), *parts]
        )
        inside = (frame["time"] >= start_seconds) & (frame["time"] < end_seconds)
        return frame[inside].sort_values("time", kind="stable", ignore_index=True)

    def read_rollup(self, *, resolution_seconds: float = 60.0, **chosen: Any) -> pd.DataFrame:
        self.reads += 1
        return rolled_up(self.read(**chosen), int(resolution_seconds))

    def close(self) -> None:
        pass


def test_only_series_with_a_shape_get_one() -> None:
    random = np.random.default_rng(0)
    daily = 30 * np.exp(np.sin(2 * np.pi * TIMES / DAY_SECONDS))
    reader = Stored(
        {
            RATE: daily * random.lognormal(0, 0.05, len(TIMES)),
            QUEUE: random.poisson(2, len(TIMES)).astype(float),
            CRASHES: np.zeros(len(TIMES)),
        }
    )
    shapes = fit_shapes(reader, START, TIMES[-1] + 1)
    assert set(shapes) == {RATE}
    assert shapes[RATE].period_seconds == DAY_SECONDS
    profile = SeriesProfiles()
    profile.grow([RATE])
    peak, night = START + DAY_SECONDS / 4, START + 3 * DAY_SECONDS / 4
    swing = shapes[RATE].at(peak) - shapes[RATE].at(night)
    expected = profile.forward(np.array([30 * np.e])) - profile.forward(np.array([30 / np.e]))
    np.testing.assert_allclose(swing, expected[0], atol=0.1)


def test_an_empty_store_gives_nothing() -> None:
    assert fit_shapes(Stored({}), START, START + 10) == {}
    assert fit_shapes(Stored({RATE: np.ones(len(TIMES))}), 0.0, 10.0) == {}


def test_reading_in_batches_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    wave = np.exp(np.sin(2 * np.pi * TIMES / DAY_SECONDS))
    values = {
        SeriesKey(f"service/{name}", signal): 30 * wave * random.lognormal(0, 0.05, len(TIMES))
        for name in "abc"
        for signal in (RATE.signal, QUEUE.signal)
    }
    for each in values.values():
        each[random.random(len(TIMES)) < 0.1] = np.nan
    at_once, in_parts = Stored(values), Stored(values)
    whole = fit_shapes(at_once, START, TIMES[-1] + 1)
    monkeypatch.setattr(seasonal_history, "_MOST_ROWS", len(TIMES) * 2)
    parts = fit_shapes(in_parts, START, TIMES[-1] + 1)
    assert (at_once.reads, in_parts.reads) == (1, 3)
    assert set(whole) == set(parts) == set(values)
    for key, shape in whole.items():
        np.testing.assert_array_equal(shape.offsets, parts[key].offsets)


def test_steps_have_the_median_of_their_minutes() -> None:
    minutes = START + np.array([0, 60, 120, 180, 240, 300, 360, 900.0])
    values = np.array([1, 2, 30, 4, 5, 6, 9, 7.0])
    frame = rolled_up(
        pd.DataFrame({"time": minutes, "entity": "a", "signal": "b", "value": values}), 60
    )
    ((key, times, medians),) = seasonal_history._medians(frame)
    assert key == ("a", "b")
    np.testing.assert_array_equal(times, START + np.array([150.0, 450.0, 1050.0]))
    np.testing.assert_array_equal(medians, [4.0, 7.5, 7.0])


def test_a_series_that_cannot_be_fitted_is_named_and_costs_no_other_its_season(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daily = 30 * np.exp(np.sin(2 * np.pi * TIMES / DAY_SECONDS))
    other = RATE._replace(entity="service/odd")

    def breaks(times: Any, values: Any, *rest: Any, **more: Any) -> Any:
        if values[0] < 0:
            raise ValueError("x must have 2 complete cycles")
        return fit_shape(times, values, *rest, **more)

    monkeypatch.setattr(seasonal_history, "fit_shape", breaks)
    reader = Stored({other: -daily, RATE: daily})
    assert set(fit_shapes(reader, START, TIMES[-1] + 1)) == {RATE}
    said = capsys.readouterr().out
    assert "season_not_fitted" in said
    assert "service/odd" in said
