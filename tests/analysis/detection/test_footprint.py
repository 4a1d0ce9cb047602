from __future__ import annotations

import numpy as np
from structlog.testing import capture_logs

from analysis.detection.columns import Columns
from analysis.detection.footprint import array_bytes
from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.history import History
from collectors.contract import Sample


def test_each_array_counts_once_with_its_room() -> None:
    columns = Columns(a=0.0, b=False)
    columns.grow(10)
    assert array_bytes(columns) == 64 * 8 + 64
    assert array_bytes(columns, columns["a"], {"x": columns["a"][:2]}) == 64 * 8 + 64
    assert array_bytes([np.zeros((3, 4), dtype=np.float32)], "text", None) == 48
    # As of a fit that waits: a tick, its rows and what will be.
    assert array_bytes({7: (130, np.zeros(6), None)}) == 48


def test_the_pipeline_says_what_it_holds_and_it_is_bounded_by_its_series() -> None:
    def held(entities: int) -> tuple[int, int]:
        history = History(capacity_ticks=4)
        pipeline = DetectionPipeline(DetectionSettings(), history, executor=SameThreadExecutor())
        names = ("gpu_utilization_percent", "gpu_temperature_celsius", "gpu_power_usage_watts")
        random = np.random.default_rng(0)
        for tick in range(130):
            samples = [
                Sample(float(tick), f"host/h{n}", name, 50 + float(random.normal()))
                for n in range(entities)
                for name in names
            ]
            found = pipeline.tick(float(tick), history.append(float(tick), samples))
        assert found.state_bytes <= pipeline.nbytes
        state = sum(a.nbytes for part in pipeline._parts().values() for a in part.state().values())
        assert pipeline.nbytes > 0.9 * state
        return pipeline.nbytes, 3 * entities

    with capture_logs() as logs:
        few, _ = held(20)
    many, series = held(200)
    told = [log for log in logs if log["event"] == "detection_memory"]
    assert told
    assert told[0]["series"] == 60
    # Trees come one entity a second, so the larger one has fewer of them here.
    assert many < 10 * few
    assert many / series < 30_000
