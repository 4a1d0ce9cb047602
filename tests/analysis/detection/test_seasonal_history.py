from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from analysis.detection.profiles import SeriesProfiles
from analysis.detection.seasonal_fit import DAY_SECONDS
from analysis.detection.seasonal_history import fit_shapes
from collectors.contract import SeriesKey
from collectors.store.contract import SeriesInfo

RATE = SeriesKey("service/llm", "llm_requests_per_second")
QUEUE = SeriesKey("service/llm", "llm_queue_depth")
CRASHES = SeriesKey("service/llm", "engine_crashes")
START = 1_700_006_400.0
TIMES = START + 60.0 * np.arange(1440 * 5)


class Stored:
    def __init__(self, values: dict[SeriesKey, np.ndarray]) -> None:
        self.values = values

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
        assert entities is not None
        assert signals is not None
        (entity,), (signal,) = entities, signals
        values = self.values[SeriesKey(entity, signal)]
        inside = (start_seconds <= TIMES) & (end_seconds > TIMES)
        return pd.DataFrame(
            {"time": TIMES[inside], "entity": entity, "signal": signal, "value": values[inside]}
        )

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
