"""The table that every series reader returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from collectors.contract import SeriesKey


def sample_frame(
    series: Sequence[int] | NDArray[np.int64],
    times: Sequence[float] | NDArray[np.float64],
    values: Sequence[float] | NDArray[np.float64],
    keys: Mapping[int, SeriesKey],
) -> pd.DataFrame:
    """Build the table of samples from columns of equal length ``[n]``.

    Args:
        series: the series number of each sample, a key of ``keys``.
        times: seconds since the epoch.
        values: the values.
        keys: what each series number stands for.

    Returns:
        ``time``, ``entity``, ``signal``, ``value``; sorted by time and then by series number.
    """
    numbers = np.asarray(series, dtype=np.int64)
    stamps = np.asarray(times, dtype=np.float64)
    order = np.lexsort((numbers, stamps))
    numbers = numbers[order]
    known = np.array(sorted(keys), dtype=np.int64)
    places = np.searchsorted(known, numbers)
    return pd.DataFrame(
        {
            "time": stamps[order],
            "entity": _names([keys[int(number)].entity for number in known], places),
            "signal": _names([keys[int(number)].signal for number in known], places),
            "value": np.asarray(values, dtype=np.float64)[order],
        }
    )


def _names(names: list[str], places: NDArray[np.intp]) -> pd.Series[Any]:
    return pd.Series(np.array(names, dtype=object)[places], dtype="str")
