from __future__ import annotations

import numpy as np
import pytest

from analysis.detection.offline_events import above_threshold, leading, sustained


def quiet(rows: int = 200) -> np.ndarray:
    return np.random.default_rng(0).normal(-1.0, 0.3, rows)


def test_what_lasts_scores_higher_than_one_wild_row() -> None:
    wild, lasting = quiet(), quiet()
    wild[100] = 4.0
    lasting[100:120] = 4.0
    assert sustained(lasting)[119] > sustained(wild)[100] + 0.5
    assert sustained(lasting)[119] > sustained(lasting)[100] + 0.5


def test_a_score_rises_at_once_and_falls_slowly() -> None:
    logs = quiet()
    logs[100:110] = 4.0
    score = sustained(logs)
    assert score[100] > 1.0
    assert (np.diff(score[109:130]) < 0).all()
    assert score[112] > 2.0
    assert score[190] < 0.5


def test_one_quiet_row_does_not_cut_an_event() -> None:
    logs = quiet()
    logs[100:120] = 3.0
    logs[110] = -1.0
    assert sustained(logs)[100:120].min() > 1.0


@pytest.mark.parametrize("cut", [1, 57, 101, 199])
def test_a_row_depends_on_rows_up_to_it_only(cut: int) -> None:
    logs, shares = quiet(), np.random.default_rng(1).random((200, 3))
    logs[100] = 5.0
    np.testing.assert_array_equal(sustained(logs)[:cut], sustained(logs[:cut]))
    np.testing.assert_array_equal(leading(logs, shares)[:cut], leading(logs[:cut], shares[:cut]))


def test_the_column_of_the_event_leads_while_the_event_fades() -> None:
    logs, shares = quiet(), np.tile([0.6, 0.4], (200, 1))
    logs[100:105], shares[100:105] = 5.0, [0.1, 0.9]
    top = leading(logs, shares)
    assert set(top[:100]) == {0}
    assert set(top[100:120]) == {1}
    assert top[199] == 0


def test_an_event_is_over_after_four_quiet_rows_and_not_before() -> None:
    logs = np.full(60, -1.0)
    logs[[5, 8]] = 6.0
    logs[20] = 0.1  # above the gate by chance: no reason to raise the old event again
    above = above_threshold(logs, 0.0, 1.0)
    assert (above[5:12] > 0).all()
    assert (above[12:] <= 0).all()
    assert above[12] > above[4] + 1.0  # what is left ranks high still
    np.testing.assert_array_equal(above[:9], above_threshold(logs[:9], 0.0, 1.0))


def test_no_rows_are_no_error() -> None:
    assert not len(sustained(np.zeros(0)))
