from __future__ import annotations

import math

import numpy as np

from analysis.detection.contract import Detections
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.detection.states import deviating, readings
from analysis.history import History
from collectors.contract import Sample, SeriesKey

LATENCY = SeriesKey("service/a", "llm_request_latency_seconds")
RATE = SeriesKey("service/a", "llm_requests_per_second")
HEAT = SeriesKey("host/a/gpu/0", "gpu_temperature_celsius")


def some_ticks() -> list[Detections]:
    history = History(capacity_ticks=4)
    pipeline = DetectionPipeline(DetectionSettings(), history, executor=SameThreadExecutor())
    random = np.random.default_rng(0)
    found = []
    for tick in range(160):
        values = {LATENCY: 0.3 + 0.01 * random.normal(), RATE: 20 + random.normal()}
        if tick > 120:
            values[LATENCY] = 3.0
        if 20 < tick < 140:
            values[HEAT] = 60 + random.normal()
        samples = [Sample(float(tick), *key, value) for key, value in values.items()]
        found.append(pipeline.tick(float(tick), history.append(float(tick), samples)))
    return found


def test_what_all_series_are_asked_for_is_what_their_states_say() -> None:
    ticks = some_ticks()
    assert any(deviating(tick.states) for tick in ticks)
    for tick in ticks:
        whole = dict(tick.states)
        assert list(readings(tick.states)) == list(readings(whole))
        assert deviating(tick.states) == deviating(whole)
        for key, observed, score in readings(tick.states):
            assert math.isfinite(observed)
            assert (whole[key].observed, whole[key].score) == (observed, score)
    gone = ticks[-1].states
    assert gone[HEAT].observed is None
    assert HEAT not in {key for key, *_ in readings(gone)}
    # Series that came later are not in an earlier tick, though the pipeline knows them now.
    assert {key for key, *_ in readings(ticks[5].states)} == {LATENCY, RATE}
