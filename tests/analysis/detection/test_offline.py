from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.detection.offline import detect_frame

DATA = Path(os.environ.get("GALEN_DATA", "../shared/data"))


def table(rows: int = 600, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    load = 50 + 20 * np.sin(np.arange(rows) / 10)
    return pd.DataFrame(
        {
            "timestamp": pd.date_range("2026-01-01", periods=rows, freq="min").astype(str),
            "cpu": load + random.normal(0, 1, rows),
            "power": 3 * load + random.normal(0, 2, rows),
            "errors": random.poisson(0.2, rows).astype(float),
            "constant": 7.0,
        }
    )


def test_it_flags_a_broken_relation_and_names_the_signal() -> None:
    frame = table()
    frame.loc[450:469, "power"] = 60.0
    result = detect_frame(frame, 300)
    assert list(result.columns) == ["timestamp", "score", "is_anomaly", "top_signal"]
    assert len(result) == len(frame)
    assert (result["timestamp"] == frame["timestamp"]).all()
    assert result["is_anomaly"].iloc[450:470].mean() >= 0.7
    assert (result["top_signal"].iloc[450:466] == "power").mean() > 0.6
    assert result["is_anomaly"].iloc[300:450].mean() < 0.05
    assert (result["is_anomaly"] == (result["score"] > 1)).all()


@pytest.mark.parametrize("columns", [["cpu", "power", "errors", "constant"], ["cpu"]])
@pytest.mark.parametrize("cut", [301, 377, 512])
def test_a_row_depends_on_rows_up_to_it_only(columns: list[str], cut: int) -> None:
    frame = table()[["timestamp", *columns]]
    frame.loc[cut:, columns[0]] = 1e6
    frame.loc[cut + 5 :, "timestamp"] = "nonsense"
    whole = detect_frame(frame, 300)
    short = detect_frame(frame.iloc[:cut], 300)
    pd.testing.assert_frame_equal(whole.iloc[:cut], short)


def test_it_is_deterministic() -> None:
    pd.testing.assert_frame_equal(detect_frame(table(), 300), detect_frame(table(), 300))


@pytest.mark.parametrize("metrics", [1, 3])
def test_constant_columns_are_quiet(metrics: int) -> None:
    names = [f"m{n}" for n in range(metrics)]
    frame = pd.DataFrame({"timestamp": range(300), **dict.fromkeys(names, 4.2)})
    result = detect_frame(frame, 100)
    assert not result["is_anomaly"].any()
    assert np.isfinite(result["score"]).all()


def test_a_constant_column_that_leaves_its_value_is_noticed() -> None:
    frame = table()
    frame.loc[500:504, "constant"] = 9.0
    result = detect_frame(frame, 300)
    assert result["is_anomaly"].iloc[500:505].all()
    assert set(result["top_signal"].iloc[500:505]) == {"constant"}


@pytest.mark.parametrize("columns", [["cpu", "power", "errors", "constant"], ["cpu"]])
def test_missing_values_do_not_spread(columns: list[str]) -> None:
    frame = table()[["timestamp", *columns]]
    random = np.random.default_rng(1)
    holes = random.random((len(frame), len(columns))) < 0.1
    frame[columns] = frame[columns].mask(holes)
    frame.loc[400:410, columns] = np.nan
    frame.loc[420:421, columns[0]] = np.inf
    result = detect_frame(frame, 300)
    assert np.isfinite(result["score"]).all()
    assert (result["score"].iloc[400:411] == 0).all()
    assert result["is_anomaly"].iloc[300:].mean() < 0.1


def test_a_column_without_any_training_value_is_left_out() -> None:
    frame = table()
    frame.loc[:320, "errors"] = np.nan
    result = detect_frame(frame, 300)
    assert "errors" not in set(result["top_signal"])


def test_one_metric_is_judged_by_its_time_of_day() -> None:
    hours = np.arange(24 * 12 * 10)
    random = np.random.default_rng(0)
    values = 100 + 60 * np.sin(2 * np.pi * hours / 288) + random.normal(0, 2, len(hours))
    peak = 288 * 8 + 72  # the daily peak, where 100 is far too low although it is usual at night
    values[peak : peak + 6] = 100.0
    frame = pd.DataFrame(
        {"timestamp": 1_700_006_400 + 300 * np.arange(len(values)), "requests": values}
    )
    result = detect_frame(frame, 288 * 5)
    # It is raised once, and the score stays above that of any normal row while it lasts.
    assert result["is_anomaly"].iloc[peak]
    assert result["is_anomaly"].iloc[peak : peak + 6].sum() <= 2
    usual = result["score"].iloc[288 * 5 : peak]
    assert result["score"].iloc[peak : peak + 6].min() > usual.max()
    assert (usual > 1).mean() < 0.003


def test_one_wild_row_is_no_long_anomaly() -> None:
    frame = table()
    frame.loc[450, "power"] = 5_000.0
    result = detect_frame(frame, 300)
    assert result["is_anomaly"].iloc[450]
    assert not result["is_anomaly"].iloc[454:458].any()
    assert result["is_anomaly"].iloc[450:].sum() < 10
    assert result["score"].iloc[456] > 2 * result["score"].iloc[580:].median()


@pytest.mark.parametrize("train_rows", [100, 300])
def test_more_columns_than_rows_are_no_alarm(train_rows: int) -> None:
    random = np.random.default_rng(0)
    names = [f"m{n}" for n in range(200)]
    load = random.normal(0, 1, (train_rows + 300, 1))
    values = load + random.normal(0, 1, (len(load), len(names)))
    values[-20:, :10] += 15.0
    frame = pd.DataFrame(values, columns=names)
    frame.insert(0, "timestamp", 60 * np.arange(len(frame)))
    flagged = detect_frame(frame, train_rows)["is_anomaly"].iloc[train_rows:]
    assert flagged.iloc[:-20].mean() < 0.1
    assert flagged.iloc[-20:].mean() > 0.9


def test_training_rows_score_nothing() -> None:
    result = detect_frame(table(), 300)
    assert (result["score"].iloc[:300] == 0).all()
    assert (result["top_signal"].iloc[:300] == "").all()


@pytest.mark.parametrize(
    ("frame", "train_rows", "message"),
    [
        (table().drop(columns="timestamp"), 300, "no column 'timestamp'"),
        (table()[["timestamp"]], 300, "no metric"),
        (table(), 5, "train_rows must be from 20 to the 600 rows"),
        (table(), 601, "train_rows must be"),
    ],
)
def test_wrong_input_is_refused(frame: pd.DataFrame, train_rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detect_frame(frame, train_rows)


@pytest.mark.skipif(not (DATA / "smd").is_dir(), reason=f"the SMD data are not in {DATA}")
def test_it_ranks_anomalies_on_a_real_machine() -> None:
    with np.load(DATA / "smd" / "machine-2-7.npz") as data:
        train, test, label = data["train"][-6000:], data["test"], data["label"].astype(bool)
    frame = pd.DataFrame(np.vstack((train, test)), columns=[f"m{n}" for n in range(1, 39)])
    frame.insert(0, "timestamp", 60 * np.arange(len(frame)))
    result = detect_frame(frame, len(train)).iloc[len(train) :]
    score, flagged = result["score"].to_numpy(), result["is_anomaly"].to_numpy()
    # 1.8% of the rows are anomalous: picking as many rows at random is right for 1.8% of them.
    top = np.argsort(-score)[: label.sum()]
    assert label[top].mean() > 0.5
    assert label[flagged].mean() > 0.3
