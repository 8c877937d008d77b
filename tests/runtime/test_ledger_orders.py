"""The orders beneath victims and read sets: heap and selection hand out what a sort would."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from pikv_runtime.ledger.heap import heapify_keys, pop_key, push_key
from pikv_runtime.ledger.readset import select


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 10, 73, 74, 1000])
def test_a_heap_of_words_hands_out_the_lowest_first_whatever_is_pushed_between(count: int) -> None:
    rng = np.random.default_rng(count)
    words = rng.integers(0, 1 << 60, count) // rng.integers(1, 1 << 58)  # some are equal
    heap = np.concatenate([words, np.zeros(count + 8, np.int64)])
    heapify_keys(heap, count)
    expected, held = words.tolist(), count
    heapq.heapify(expected)
    for turn in range(2 * count):
        if turn % 3 == 2 or not expected:
            word = int(rng.integers(0, 1 << 60))
            push_key(heap, held, word)
            heapq.heappush(expected, word)
            held += 1
        else:
            assert pop_key(heap, held) == heapq.heappop(expected)
            held -= 1
    assert [pop_key(heap, held - k) for k in range(held)] == sorted(expected)


def test_of_equal_scores_the_lower_pages_are_read() -> None:
    score, resident, none = np.zeros(9, np.float32), np.ones(9, np.int8), np.zeros(9, np.int8)
    score[7] = 1.0
    read, wished = select(score, resident, none, np.zeros(9, np.float32), 0.4)
    assert np.flatnonzero(read).tolist() == [0, 1, 2, 7]
    assert (wished == read).all()
