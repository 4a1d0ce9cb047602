from __future__ import annotations

import numpy as np
import pytest

from analysis.detection.offline_alerts import raise_once
from analysis.detection.offline_series import score_series

DAY = 288
STEP = 300.0
TRAIN = 8 * DAY
"""A weekend among them."""


def times(rows: int) -> np.ndarray:
    return 1_700_006_400.0 + STEP * np.arange(rows)


def load(rows: int = 16 * DAY, seed: int = 0) -> np.ndarray:
    """Return a day's rhythm, lower at weekends, with noise."""
    random = np.random.default_rng(seed)
    day = np.arange(rows) / DAY
    weekend = (day % 7 >= 5) * 30.0
    return 200 + 60 * np.sin(2 * np.pi * day) - weekend + random.normal(0, 3, rows)


def raised(scores: np.ndarray) -> np.ndarray:
    return np.flatnonzero(scores > 1.0)


def test_normal_days_are_quiet() -> None:
    scores = score_series(times(16 * DAY), load(), TRAIN)
    assert len(raised(scores)) <= 3
    assert (scores[:TRAIN] == 0).all()


@pytest.mark.parametrize("size", [40.0, -40.0])
def test_a_spike_is_raised_once(size: float) -> None:
    values = load()
    values[3000] += size
    scores = score_series(times(len(values)), values, TRAIN)
    assert list(raised(scores[2900:3200])) == [100]
    # It fades instead of ending at once.
    assert 0.5 < scores[3001] < 1.0
    assert scores[3001] > scores[3150]


def test_a_shift_is_raised_at_its_onset_and_becomes_normal_in_days() -> None:
    values = load(30 * DAY)
    onset = 10 * DAY
    values[onset:] += 150.0
    values[22 * DAY] += 60.0
    scores = score_series(times(len(values)), values, TRAIN)
    assert onset in raised(scores)
    assert scores[onset : onset + 30].min() > 0.5
    # Days later nothing is left of it, and what is unusual now is seen as before.
    later = scores[onset + 5 * DAY :]
    assert np.median(later) < 0.3
    assert 22 * DAY in raised(scores)
    assert len(raised(scores[onset + 5 * DAY :])) <= 5


def test_noise_that_grows_is_noticed() -> None:
    values = load()
    random = np.random.default_rng(9)
    values[3000:3100] += random.normal(0, 15, 100)
    scores = score_series(times(len(values)), values, TRAIN)
    assert raised(scores[3000:3030]).size


def test_what_recurs_stops_being_raised() -> None:
    values = load(40 * DAY)
    values[TRAIN::DAY] += 80.0  # a job every midnight that training did not see
    scores = score_series(times(len(values)), values, TRAIN)
    at_job = scores[TRAIN::DAY] > 1.0
    assert at_job[0]
    assert at_job[8:].mean() < 0.1


def test_a_row_depends_on_rows_up_to_it_only() -> None:
    random = np.random.default_rng(4)
    values = load(12 * DAY)
    values[random.random(len(values)) < 0.05] = np.nan
    at = times(len(values)) + random.uniform(-0.4, 0.4, len(values)) * STEP
    at[9 * DAY :] += 6 * 3600.0  # a gap
    at[10 * DAY] = at[100]  # and a clock that is wrong once
    whole = score_series(at, values, TRAIN)
    for cut in (TRAIN + 1, 9 * DAY + 3, 10 * DAY + 2, 11 * DAY + 211):
        changed, later = values.copy(), at.copy()
        changed[cut:] = 1e9
        later[cut:] += 12_345.0
        np.testing.assert_array_equal(score_series(later, changed, TRAIN)[:cut], whole[:cut])
        np.testing.assert_array_equal(score_series(at[:cut], values[:cut], TRAIN), whole[:cut])


def test_missing_values_score_nothing_and_do_not_spread() -> None:
    values = load()
    values[2000:2050] = np.nan
    values[::17] = np.nan
    scores = score_series(times(len(values)), values, TRAIN)
    assert np.isfinite(scores).all()
    assert (scores[2000:2050] == 0).all()
    assert len(raised(scores)) <= 3


def test_irregular_steps_are_no_anomalies() -> None:
    random = np.random.default_rng(5)
    at = np.sort(random.uniform(0, 16 * DAY * STEP, 16 * DAY))
    values = 200 + 60 * np.sin(2 * np.pi * at / 86_400) + random.normal(0, 3, len(at))
    values[3000] += 60
    scores = score_series(at, values, TRAIN)
    assert 3000 in raised(scores)
    assert len(raised(scores)) <= 4


def test_a_constant_is_quiet_until_it_moves() -> None:
    for constant in (0.0, 7.0, -1e9):
        values = np.full(3000, constant)
        assert not score_series(times(3000), values, 500).any()
        values[2500:] = constant + max(1.0, abs(constant))
        scores = score_series(times(3000), values, 500)
        assert list(raised(scores))[:1] == [2500]


def test_a_square_wave_of_a_day_is_quiet() -> None:
    values = np.where(np.arange(16 * DAY) % DAY < DAY // 2, 20.0, 80.0)
    assert len(raised(score_series(times(len(values)), values, TRAIN))) <= 3


def test_a_metric_without_any_value_scores_nothing() -> None:
    assert not score_series(times(500), np.full(500, np.nan), 100).any()
    late = np.full(500, np.nan)
    late[300:] = 5.0
    assert not raised(score_series(times(500), late, 100)).size


def test_the_unit_does_not_matter_and_it_is_deterministic() -> None:
    values = load()
    values[3000:3010] += 50
    scores = score_series(times(len(values)), values, TRAIN)
    np.testing.assert_array_equal(score_series(times(len(values)), values, TRAIN), scores)
    np.testing.assert_allclose(score_series(times(len(values)), 1024 * values, TRAIN), scores)


def test_an_event_is_raised_at_its_onset_and_when_it_becomes_worse() -> None:
    ratios = np.array([0.4, 2.0, 2.0, 1.5, 2.7, 4.5, 3.0, 0.2, np.nan, 0.2])
    scores = raise_once(ratios)
    assert list(raised(scores)) == [1, 5]
    assert scores[1] == 2.0
    assert scores[0] == 0.2
    assert ((scores[[2, 3, 4, 6]] > 0.5) & (scores[[2, 3, 4, 6]] < 1)).all()
    assert scores[8] == 0.0
    # A quiet row does not end it at once, and none raises it.
    assert 0.5 < scores[9] < scores[6]


def test_an_event_that_unfolds_is_raised_once() -> None:
    ratios = np.concatenate((np.full(30, 0.3), np.linspace(1.1, 1.6, 15), np.full(40, 1.6), [2.0]))
    assert list(raised(raise_once(ratios))) == [30, 85]


def test_a_second_event_is_raised_when_the_first_is_forgotten() -> None:
    ratios = np.full(400, 0.3)
    ratios[[10, 14, 350]] = 3.0
    assert list(raised(raise_once(ratios))) == [10, 350]


def test_normal_rows_keep_their_order() -> None:
    ratios = np.linspace(0.1, 0.99, 50)
    np.testing.assert_allclose(raise_once(ratios), 0.5 * ratios)
