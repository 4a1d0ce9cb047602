"""Times a tick of the live detection pipeline.

python -m benchmarks.detection_speed
"""

from __future__ import annotations

import time

import numpy as np

from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.settings import DetectionSettings
from analysis.history import History
from collectors.contract import Sample
from collectors.signals import catalogue


def speed(series: int, ticks: int, *, forest: bool) -> float:
    """Return milliseconds a tick of the live pipeline."""
    names = [name for name, signal in catalogue().items() if signal.kind.value in {"gauge", "rate"}]
    per_entity = 40
    keys = [
        (f"service/s{number // per_entity}", names[number % per_entity]) for number in range(series)
    ]
    settings = DetectionSettings.model_validate({"forest": {"enabled": forest}})
    history = History(capacity_ticks=60)
    pipeline = DetectionPipeline(settings, history, executor=SameThreadExecutor())
    random = np.random.default_rng(0)
    spent = []
    for tick in range(ticks):
        values = 100 + random.normal(0, 1, series)
        row = history.append(
            float(tick),
            [Sample(float(tick), *key, float(v)) for key, v in zip(keys, values, strict=True)],
        )
        began = time.perf_counter()
        pipeline.tick(float(tick), row)
        spent.append(time.perf_counter() - began)
    return 1e3 * float(np.median(spent[ticks // 2 :]))


def main() -> None:
    for series in (150, 1_000, 10_000):
        for forest in (False, True):
            spent = speed(series, 90, forest=forest)
            print(f"{series:6} series, forest {forest!s:5}: {spent:.2f} ms a tick (median)")


if __name__ == "__main__":
    main()
