import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inference.worker.cache import BLOCK_TOKENS, PrefixCache


def _present(ids):
    column = np.array(ids, dtype=np.float32).reshape(1, 1, -1, 1)
    return [column, -column]


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), max_size=20),
    st.integers(0, 600),
)
def test_what_is_found_belongs_to_the_prompt_and_the_limit_holds(prompts, limit):
    cache = PrefixCache(limit)
    for ids in prompts:
        known, past = cache.lookup(ids)
        assert 0 <= known < len(ids)
        assert (past[0].ravel().tolist() if past else []) == ids[:known]
        assert (past[1].ravel().tolist() if past else []) == [-i for i in ids[:known]]
        cache.insert(ids, _present(ids))
        assert cache.size_bytes <= limit


def test_prompts_share_their_common_blocks():
    cache = PrefixCache(10_000)
    common = list(range(BLOCK_TOKENS))
    cache.insert([*common, 90, 91, 92], _present([*common, 90, 91, 92]))
    known, _ = cache.lookup([*common, 80, 81])
    assert known == BLOCK_TOKENS


def test_the_least_recently_used_prompt_leaves():
    first, second, third = [1] * 9, [2] * 9, [3] * 9
    cache = PrefixCache(2 * 9 * 8)
    cache.insert(first, _present(first))
    cache.insert(second, _present(second))
    cache.lookup(first)
    cache.insert(third, _present(third))
    assert cache.lookup(first)[0] == cache.lookup(third)[0] == 8
    assert cache.lookup(second)[0] == 0


def test_clear_forgets():
    cache = PrefixCache(1000)
    cache.insert([1, 2, 3], _present([1, 2, 3]))
    cache.clear()
    assert cache.lookup([1, 2, 3])[0] == cache.size_bytes == 0
