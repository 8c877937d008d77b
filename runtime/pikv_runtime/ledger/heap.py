"""Heaps: they hand out the lowest first and sort no more than is asked for. Binary over (value, id), ties by id; and
over single words, eight children to an entry: what is compared at a level fills one cache line, and ten thousand words
are five levels deep instead of fourteen, of which the lower ones are never in a cache."""

from __future__ import annotations

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import F8, I8

CHILDREN = 8  # of an entry in a heap of words


@jit
def _sift_down(values: F8, ids: I8, count: int, start: int) -> None:
    value, entry = values[start], ids[start]
    at = start
    while True:
        below = 2 * at + 1
        if below >= count:
            break
        right = below + 1
        if right < count and (
            values[right] < values[below] or (values[right] == values[below] and ids[right] < ids[below])
        ):
            below = right
        if value < values[below] or (value == values[below] and entry < ids[below]):
            break
        values[at], ids[at] = values[below], ids[below]
        at = below
    values[at], ids[at] = value, entry


@jit
def push(values: F8, ids: I8, count: int, value: float, entry: int) -> None:
    """Add an entry to a heap of `count`."""
    at = count
    while at > 0:
        above = (at - 1) >> 1
        if values[above] < value or (values[above] == value and ids[above] < entry):
            break
        values[at], ids[at] = values[above], ids[above]
        at = above
    values[at], ids[at] = value, entry


@jit
def heapify(values: F8, ids: I8, count: int) -> None:
    """Order the first `count` entries as a heap."""
    for start in range(count // 2 - 1, -1, -1):
        _sift_down(values, ids, count, start)


@jit
def pop(values: F8, ids: I8, count: int) -> int:
    """Take the lowest of `count` entries off; `count - 1` remain. The popped entry moves to their end."""
    first, last = count - count, count - 1  # not a literal 0: it would be compiled for apart
    value, entry = values[first], ids[first]
    values[first], ids[first] = values[last], ids[last]
    values[last], ids[last] = value, entry
    if last > 0:
        _sift_down(values, ids, last, first)
    return entry


@jit
def _sink(keys: I8, count: int, start: int) -> None:
    key, at = keys[start], start
    while True:
        first = CHILDREN * at + 1
        if first >= count:
            break
        lowest, below = keys[first], first
        for child in range(first + 1, min(first + CHILDREN, count)):
            lowest, below = (keys[child], child) if keys[child] < lowest else (lowest, below)
        if key < lowest:
            break
        keys[at] = lowest
        at = below
    keys[at] = key


@jit
def heapify_keys(keys: I8, count: int) -> None:
    """Order the first `count` words as a heap."""
    for start in range((count - 2) // CHILDREN, -1, -1):
        _sink(keys, count, start)


@jit
def push_key(keys: I8, count: int, key: int) -> None:
    """Add a word to a heap of `count`."""
    at = count
    while at > 0:
        above = (at - 1) // CHILDREN
        if keys[above] < key:
            break
        keys[at] = keys[above]
        at = above
    keys[at] = key


@jit
def pop_key(keys: I8, count: int) -> int:
    """Take the lowest of `count` words off; `count - 1` remain."""
    key, last = keys[0], count - 1
    keys[0] = keys[last]
    if last > 0:
        _sink(keys, last, last - last)  # not a literal 0: it would be compiled for apart
    return key
