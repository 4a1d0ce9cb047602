from __future__ import annotations

import numpy as np
import pytest

from analysis.detection.offline_levels import BLOCK_ROWS, deviations

STEP, MEMORY = 60.0, 2_000.0


def of(values: np.ndarray, train_rows: int = 2_000) -> np.ndarray:
    return deviations(values, train_rows, STEP, MEMORY)


def noise(rows: int, width: int = 2, seed: int = 0) -> np.ndarray:
    return 100.0 + np.random.default_rng(seed).normal(0, 5, (rows, width))


def test_values_are_measured_in_spreads() -> None:
    values = noise(3_000)
    values[2_500, 1] = 150.0
    z = of(values)
    assert z[:, 0].std() == pytest.approx(1.0, abs=0.1)
    assert z[2_500, 1] == pytest.approx(10.0, abs=1.0)


def test_a_shift_is_normal_after_half_a_day_and_so_is_the_way_back() -> None:
    values = noise(8_000)
    values[3_000:6_000, 0] += 50.0
    z = np.abs(of(values)[:, 0])
    assert np.median(z[3_000:3_600]) > 8  # half a day is 720 rows
    assert np.median(z[3_900:6_000]) < 2
    assert np.median(z[6_000:8_000]) < 2


def test_the_scale_does_not_matter() -> None:
    values = noise(3_000)
    values[2_500:2_520, 1] = 400.0
    np.testing.assert_allclose(of(values), of(values * [1e-6, 1e9]), rtol=1e-6, atol=1e-9)


def test_far_values_count_by_their_logarithm() -> None:
    values = noise(2_100)
    values[2_050, 0], values[2_051, 0] = 100.0 + 5_000.0, 100.0 + 50_000.0
    z = of(values)
    assert 30 < z[2_050, 0] < z[2_051, 0] < 500


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_value_at_the_end_of_the_range_is_finite() -> None:
    values = noise(2_100) * 1e-9
    values[2_050, 0] = -1.7e308
    assert np.isfinite(of(values)).all()
    assert of(values)[2_050, 0] < -1_000


def test_a_column_of_rare_spikes_is_not_strange_at_its_next_spike() -> None:
    values = noise(3_000)
    values[:, 0] = 0.0
    values[[500, 2_500], 0] = 8.0
    assert of(values)[2_500, 0] <= 100.0 / 2


def test_a_column_that_never_moved_tells_that_it_moved_and_less_when_it_often_does() -> None:
    values = noise(8_000)
    values[:, 0] = 7.0
    values[2_100, 0] = 7.0 + 1e-12  # rounding
    values[2_200, 0] = 1e9
    values[3_000:, 0] = 7.0 + np.random.default_rng(1).choice([0.0, 0.0, 3.0], 5_000)
    z = of(values)
    assert (z[:2_200, 0] == 0).all()
    assert z[2_200, 0] == 10.0
    assert np.abs(of(np.delete(values, 2_200, axis=0))[7_000:, 0]).max() < 5


def test_missing_values_count_nothing_and_move_nothing() -> None:
    values = noise(4_000)
    holes = np.random.default_rng(1).random(values.shape) < 0.2
    values[holes] = np.nan
    values[2_500:2_700, 0] = np.nan  # whole blocks
    z = of(values)
    assert np.isfinite(z).all()
    assert (z[np.isnan(values)] == 0).all()
    assert np.abs(z).max() < 6


def test_a_column_without_training_values_counts_nothing() -> None:
    values = noise(3_000)
    values[:2_000, 0] = np.nan
    assert (of(values)[:, 0] == 0).all()


@pytest.mark.parametrize("cut", [2_001, 2_000 + BLOCK_ROWS, 2_777])
@pytest.mark.parametrize("still", [False, True])
def test_a_value_depends_on_rows_up_to_it_only(cut: int, still: bool) -> None:
    values = noise(3_500)
    if still:
        values[:2_300, 0] = 3.0
    np.testing.assert_array_equal(of(values)[:cut], of(values[:cut]))
