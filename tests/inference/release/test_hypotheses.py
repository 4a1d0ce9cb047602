import numpy as np
import pytest
from scipy import stats

from inference.release.hypotheses import (
    comparable,
    more_errors,
    more_than_share,
    ratio_of_medians,
    slower,
)


@pytest.mark.parametrize(
    "counts", [(3, 20, 0, 100), (0, 20, 5, 100), (20, 20, 0, 20), (7, 50, 12, 300), (1, 1, 0, 1)]
)
def test_fisher_agrees_with_scipy(counts):
    new, new_total, old, old_total = counts
    table = [[new, new_total - new], [old, old_total - old]]
    expected = stats.fisher_exact(table, alternative="greater").pvalue
    assert more_errors(*counts) == pytest.approx(expected, rel=1e-9)


def test_nothing_seen_is_no_evidence():
    assert more_errors(0, 0, 0, 100) == 1.0
    assert more_errors(5, 10, 0, 0) == 1.0
    assert slower({"a": [1.0]}, {"b": [1.0]}, 1.0) == 1.0
    assert slower({"a": [1.0, 1.0]}, {"a": [1.0, 1.0]}, 1.0) == 1.0


@pytest.mark.parametrize(("errors", "total"), [(0, 20), (3, 20), (20, 20), (9, 90)])
def test_the_binomial_test_agrees_with_scipy(errors, total):
    expected = stats.binomtest(errors, total, 0.05, alternative="greater").pvalue
    assert more_than_share(errors, total, 0.05) == pytest.approx(expected, rel=1e-9)


def test_one_stratum_is_the_mann_whitney_test():
    random = np.random.default_rng(3)
    new, old = random.normal(0.3, 1.0, 40).round(1) + 10, random.normal(0.0, 1.0, 60).round(1) + 10
    expected = stats.mannwhitneyu(
        new, old, alternative="greater", method="asymptotic", use_continuity=False
    ).pvalue
    assert slower({"a": list(new)}, {"a": list(old)}, 1.0) == pytest.approx(expected, rel=1e-9)


def test_a_shift_in_the_mix_of_requests_is_not_slowness():
    """All requests are as fast as before, but more of the long kind come: strata see through it."""
    random = np.random.default_rng(4)

    def times(short, long):
        return {
            "short": list(random.gamma(20, 0.01, short)),
            "long": list(random.gamma(20, 0.1, long)),
        }

    old, new = times(180, 20), times(20, 180)
    pooled_new = {"all": new["short"] + new["long"]}
    pooled_old = {"all": old["short"] + old["long"]}
    assert slower(pooled_new, pooled_old, 1.25) < 1e-6
    assert slower(new, old, 1.25) > 0.5


def test_a_difference_within_the_margin_is_no_finding():
    random = np.random.default_rng(5)
    old = {"a": list(random.gamma(50, 0.01, 1000))}
    new = {"a": list(1.1 * random.gamma(50, 0.01, 1000))}
    assert slower(new, old, 1.0) < 1e-6, "it is surely slower"
    assert slower(new, old, 1.25) > 0.99, "but not by more than the margin"
    assert ratio_of_medians(new, old) == pytest.approx(1.1, abs=0.02)


def test_only_strata_on_both_sides_are_comparable():
    assert comparable({"a": [1, 2], "b": [3]}, {"a": [4], "c": [5, 6]}) == (2, 1)
