from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.labelled.cases import Case
from benchmarks.labelled.injected import inject
from benchmarks.labelled.judging import judge, means
from benchmarks.labelled.rows_peers import PEERS

TRAIN, STEP = 400, 1_000.0  # 86 rows a day


def values(rows: int = 700) -> np.ndarray:
    random = np.random.default_rng(0)
    daily = np.sin(2 * np.pi * np.arange(rows)[:, None] * STEP / 86_400)
    table = 10 + daily * [1, 2, 3, 0] + random.normal(0, 0.2, (rows, 4))
    table[:, 3] = 5.0
    return table


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_ranks_a_plain_anomaly_first_and_names_its_column(name: str) -> None:
    table = values()
    table[600, 1] += 20.0
    scored = PEERS[name](table, TRAIN, STEP, 0)
    assert len(scored.train) == TRAIN
    assert scored.rest.argmax() == 200
    if scored.leading is not None:
        assert scored.leading[200] == 1


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_does_not_look_ahead(name: str) -> None:
    table, cut = values(), 555
    changed = table.copy()
    changed[cut:] += 100.0
    whole, other = (PEERS[name](given, TRAIN, STEP, 0).rest for given in (table, changed))
    np.testing.assert_allclose(whole[: cut - TRAIN], other[: cut - TRAIN])


def test_faults_are_put_where_the_labels_are_and_nowhere_else() -> None:
    random = np.random.default_rng(3)
    table = np.random.default_rng(0).normal(0, 1, (12_000, 6))
    table[:, 5] = 1.0
    changed = table.copy()
    labels = inject(changed, 4_000, random)
    differs = (changed != table).any(axis=1)
    assert not labels[:4_000].any()
    assert not differs[~labels].any()
    assert differs[labels].mean() > 0.9
    assert (changed[:, 5] == 1.0).all()
    again = table.copy()
    assert (inject(again, 4_000, np.random.default_rng(3)) == labels).all()
    np.testing.assert_array_equal(again, changed)


def test_judging_lists_detector_peers_and_controls_by_the_same_measures() -> None:
    table = values(900)
    table[600:640, 1] += 20.0
    frame = pd.DataFrame(table, columns=list("abcd"))
    frame.insert(0, "timestamp", STEP * np.arange(len(frame)))
    labels = np.zeros(500, dtype=bool)
    labels[200:240] = True
    case = Case("one", frame, TRAIN, labels, ((200, 240, frozenset("b")),))
    rows = pd.DataFrame([{"part": "all", **row} for row in judge(case, 0)]).set_index("detector")
    assert list(rows.index) == ["galen", *PEERS, "random", "always"]
    assert rows.loc["galen", "best_f1"] > 0.9
    assert rows.loc["galen", "cause_first"] == 1.0
    assert rows.loc["random", "cause_first"] == 0.25
    assert rows.loc["always", "f1"] == pytest.approx(2 * 40 / 540)
    assert rows.loc["always", "alarm_rate"] == 1.0
    assert rows.loc["galen", "vus_pr"] > 2 * rows.loc["random", "vus_pr"]
    assert means(rows.reset_index()).loc[("all", "galen"), "vus_pr"] == rows.loc["galen", "vus_pr"]
