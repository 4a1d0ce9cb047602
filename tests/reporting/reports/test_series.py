from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.store.contract import StoreError
from reporting.reports.series import Series, SeriesSource


def series(times: list[float], values: list[float]) -> Series:
    return Series(np.array(times, dtype=float), np.array(values, dtype=float))


def test_an_integral_leaves_gaps_out() -> None:
    steady = series([0, 10, 20, 30], [2, 2, 2, 2])
    assert steady.integral() == pytest.approx(80.0)
    # The same four samples with an hour missing in the middle: no hour is made up.
    torn = series([0, 10, 3620, 3630], [2, 2, 2, 2])
    assert torn.integral() == pytest.approx(80.0)


def test_a_counter_that_starts_again_goes_on_counting() -> None:
    assert series([0, 1, 2, 3], [5, 9, 2, 3]).increase() == 7.0
    assert series([], []).increase() is None


def test_the_newest_value_holds_until_a_gap() -> None:
    ratio = series([0, 10, 20, 30], [0.1, 0.2, 0.3, 0.4])
    found = ratio.at(np.array([-1.0, 0.0, 15.0, 79.0, 81.0]), default=-1.0)
    assert found.tolist() == [-1.0, 0.1, 0.2, 0.4, -1.0]


def test_an_empty_series_has_no_figures() -> None:
    empty = series([], [])
    figures = (empty.mean(), empty.highest(), empty.quantile(0.5), empty.share(1), empty.integral())
    assert figures == (None,) * 5
    assert empty.at(np.array([1.0]), default=7.0).tolist() == [7.0]


@given(st.integers(200, 5000), st.integers(0, 10_000))
def test_thinning_keeps_a_single_spike(length: int, place: int) -> None:
    values = np.sin(np.arange(length) / 40.0)
    values[place % length] = 50.0
    thin = Series(np.arange(length, dtype=float), values).thinned(120)
    assert len(thin) <= 122
    assert thin.highest() == 50.0
    assert (np.diff(thin.times) > 0).all()


def test_a_store_that_fails_is_one_note() -> None:
    class Broken:
        def series(self) -> list[object]:
            raise StoreError("no such file")

        def read(self, **_: object) -> object:
            raise StoreError("no such file")

        def close(self) -> None:
            pass

    source = SeriesSource(Broken())  # type: ignore[arg-type]
    assert source.list() == ()
    assert len(source.read("a/b", "c", 0.0, 1.0)) == 0
    assert len(source.notes) == 1
    assert "no such file" in source.notes[0]
