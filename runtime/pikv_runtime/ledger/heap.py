"""A binary heap over (value, id): hands out the lowest first, ties by id, and sorts no more than is asked for."""

from __future__ import annotations

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import F8, I8


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
