import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.poison.bisection import Bisection

PLENTY = 10_000


class Suspect:
    def __init__(self, number):
        self.number = number


def run(count, harmful, max_trials=PLENTY):
    """Search among `count` suspects; `harmful` are the sets of numbers that do harm together."""
    suspects = [Suspect(number) for number in range(count)]
    search = Bisection(suspects, max_trials)
    while search.group is not None:
        numbers = {item.number for item in search.group}
        search.record(survived=not any(harm <= numbers for harm in harmful))
    return search


def numbers(items):
    return {item.number for item in items}


def found(search):
    return [numbers(group) for group in search.verdict().culprits]


def test_one_culprit_among_many_takes_few_trials():
    for culprit in range(64):
        search = run(64, [{culprit}])
        assert found(search) == [{culprit}]
        assert len(search.verdict().cleared) == 63
        assert search.trials <= 2 * math.log2(64) + 4


def test_a_crash_that_cannot_be_reproduced_clears_everybody_in_one_trial():
    search = run(5, [])
    assert (search.trials, found(search)) == (1, [])
    assert len(search.verdict().cleared) == 5


def test_one_suspect_is_shown_twice():
    search = run(1, [{0}])
    assert (search.trials, found(search)) == (2, [{0}])


def test_two_that_do_harm_only_together_are_found_as_a_pair():
    search = run(16, [{3, 12}])
    assert found(search) == [{3, 12}]
    assert len(search.verdict().cleared) == 14


def test_a_sandbox_that_died_of_something_else_condemns_nobody():
    search = Bisection([Suspect(0)], PLENTY)
    search.record(survived=False)
    search.record(survived=True)
    assert search.group is None
    assert search.verdict().culprits == []
    assert len(search.verdict().cleared) == 1


def test_what_the_trials_do_not_reach_stays_unresolved():
    search = run(64, [{7}], max_trials=3)
    assert search.trials == 3
    verdict = search.verdict()
    assert (verdict.culprits, verdict.cleared, len(verdict.unresolved)) == ([], [], 64)


def test_nobody_is_no_search():
    assert Bisection([], PLENTY).group is None


@st.composite
def cases(draw):
    count = draw(st.integers(1, 40))
    number = st.integers(0, count - 1)
    harmful = draw(st.lists(st.sets(number, min_size=1, max_size=2), max_size=4))
    return count, harmful


@given(cases())
def test_what_is_found_does_harm_nothing_smaller_does_and_the_rest_is_harmless(case):
    count, harmful = case
    search = run(count, harmful)
    verdict = search.verdict()
    assert search.finished
    for group in map(numbers, verdict.culprits):
        assert any(harm <= group for harm in harmful)
        for one in group:
            assert not any(harm <= group - {one} for harm in harmful)
    cleared = numbers(verdict.cleared)
    assert not any(harm <= cleared for harm in harmful)
    guilty = {one for group in verdict.culprits for one in numbers(group)}
    assert guilty | cleared == set(range(count))
    assert not guilty & cleared


@given(cases(), st.integers(0, 30))
def test_a_limit_of_trials_is_kept_and_condemns_nobody_without_proof(case, limit):
    count, harmful = case
    search = run(count, harmful, max_trials=limit)
    assert search.trials <= limit
    for group in map(numbers, search.verdict().culprits):
        assert any(harm <= group for harm in harmful)


@pytest.mark.parametrize("count", [2, 3, 5, 8, 33])
def test_all_can_be_guilty(count):
    search = run(count, [{number} for number in range(count)])
    assert sorted(map(min, found(search))) == list(range(count))
