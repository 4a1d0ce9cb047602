"""The table that every series reader returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from collectors.contract import SeriesKey

_STRINGS = pd.StringDtype("pyarrow", na_value=np.nan)
"""What pandas calls ``str``."""


def sample_frame(
    series: Sequence[int] | NDArray[np.int64],
    times: Sequence[float] | NDArray[np.float64],
    values: Sequence[float] | NDArray[np.float64],
    keys: Mapping[int, SeriesKey],
) -> pd.DataFrame:
    """Build the table of samples from columns of equal length ``[n]``, in any order.

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
    known = np.array(sorted(keys), dtype=np.int64)
    return sorted_frame(
        np.searchsorted(known, numbers[order]).astype(np.int32),
        [keys[int(number)] for number in known],
        stamps[order],
        {"value": np.asarray(values, dtype=np.float64)[order]},
    )


def sorted_frame(
    places: NDArray[np.int32],
    keys: Sequence[SeriesKey],
    times: NDArray[np.float64],
    numbers: Mapping[str, NDArray[Any]],
) -> pd.DataFrame:
    """Build a table from columns of equal length ``[n]`` that are in order already.

    Args:
        places: for each row the place of its series in ``keys``.
        keys: the series.
        times: seconds since the epoch.
        numbers: further columns by name.

    Returns:
        ``time``, ``entity``, ``signal`` and the further columns.
    """
    columns: dict[str, Any] = {
        "time": times,
        "entity": _names([key.entity for key in keys], places),
        "signal": _names([key.signal for key in keys], places),
        **numbers,
    }
    return pd.DataFrame(columns, copy=False)


def _names(names: list[str], places: NDArray[np.int32]) -> Any:
    # Arrow repeats the texts; through Python objects five million of them would take seconds.
    texts = pa.array(names, pa.large_string()).take(pa.array(places))
    return pd.array(pa.chunked_array([texts]), dtype=_STRINGS)


def rolled_up(samples: pd.DataFrame, resolution_seconds: int) -> pd.DataFrame:
    """Count the samples of a read into buckets, for stores that keep none.

    Args:
        samples: what :meth:`SeriesReader.read` returns.
        resolution_seconds: the length of a bucket.

    Returns:
        What :meth:`SeriesReader.read_rollup` returns.
    """
    begin = (samples["time"] // resolution_seconds) * resolution_seconds
    counted = (
        samples.assign(time=begin.astype(np.float64))
        .groupby(["time", "entity", "signal"], sort=True, observed=True)["value"]
        .agg(["min", "max", "mean", "count"])
        .reset_index()
    )
    # Rounding must not put the mean of equal values beside them.
    return counted.assign(mean=counted["mean"].clip(counted["min"], counted["max"]))
