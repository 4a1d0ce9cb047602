"""The table of calibration tells right from wrong."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.detection_calibration import FIRST, TRACKED_RATE, judge, noises


@pytest.fixture(scope="module")
def scores() -> dict[str, np.ndarray]:
    return dict(noises(8, FIRST + 6000, seed=3))


@pytest.mark.parametrize("name", ["normal", "heavy", "autocorrelated"])
def test_what_promises_a_rate_and_keeps_it_shows_as_one(
    scores: dict[str, np.ndarray], name: str
) -> None:
    given = scores[name]
    rows = {row["way"]: row for row in judge(given, np.ones(given.shape, dtype=bool), seed=0)}
    assert list(rows) == ["live", "offline", "sample", "gauss", "random", "always", "tracked"]
    for way in ("live", "offline", "sample", "random"):
        assert rows[way]["0.05"] == pytest.approx(1.0, abs=0.2)
        assert rows[way]["0.01"] == pytest.approx(1.0, abs=0.4)
    assert rows["gauss"]["0.001"] > 3  # none of them is a normal distribution around its mean
    assert rows["always"]["0.05"] == 20
    assert rows["tracked"][f"{TRACKED_RATE:g}"] == pytest.approx(1.0, abs=0.4)


def test_what_is_not_normal_is_not_judged(scores: dict[str, np.ndarray]) -> None:
    given = scores["normal"].copy()
    normal = np.ones(given.shape, dtype=bool)
    given[FIRST + 100 : FIRST + 700] = 40.0
    normal[FIRST + 100 : FIRST + 700] = False
    rows = {row["way"]: row for row in judge(given, normal, seed=0)}
    assert rows["live"]["0.05"] == pytest.approx(1.0, abs=0.2)
    assert rows["always"]["0.05"] == 20
