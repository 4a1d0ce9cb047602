from __future__ import annotations

import numpy as np

from analysis.detection.sibling_groups import SiblingGroups


def test_medians_are_those_of_each_group_alone() -> None:
    random = np.random.default_rng(0)
    group = random.permutation(np.repeat([7, 3, 90, 12, 5], [1, 2, 300, 8, 3]))
    groups = SiblingGroups(group)
    for share in (1.0, 0.5, 0.1, 0.0):
        values = random.normal(size=len(group)).round(1)
        usable = random.random(len(group)) < share
        medians, counts = groups.medians(values, usable)
        for number in np.unique(group):
            inside = group == number
            chosen = values[inside & usable]
            assert (counts[inside] == len(chosen)).all()
            expected = np.median(chosen) if len(chosen) else np.nan
            np.testing.assert_array_equal(medians[inside], expected)


def test_nobody_has_no_median() -> None:
    medians, counts = SiblingGroups(np.empty(0, dtype=np.int64)).medians(
        np.empty(0), np.empty(0, dtype=bool)
    )
    assert not len(medians)
    assert not len(counts)
