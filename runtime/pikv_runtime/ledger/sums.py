"""What telemetry tells of pages, summed by control group and kept up to date as pages change.

Every change of a listed page takes what it was off its group's sums and adds what it is. The sums are integers
(fractions in fixed point), so they are exact in any order and never drift: `check_integrity` demands that they equal
a count from scratch. Only tagged pages of running requests count, those that others hold, too, once for each request.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import Ledger

SHARE = 1 << 32  # fixed point of attention masses and codec errors
MOST = 1024.0  # what a page adds is cut off here: neither infinity nor NaN is an integer
SECOND = 1 << 20  # fixed point of times
BYTE = 1 << 16  # of bytes that several requests hold in parts


class GroupSum(IntEnum):
    """Columns of `group_sums`."""

    NATIVE = 0  # live pages by codec, ladder order
    BF16 = 1
    INT8 = 2
    INT4 = 3
    MASS = 4  # of live pages: attention-mass averages, 2^-32
    LAST = 5  # moments of the last read, 2^-20 s
    ERROR = 6  # codec errors, 2^-32
    GHOSTS = 7  # evicted pages whose centroid is kept


@jit
def whole_share(value: float) -> float:
    """A mass or an error in fixed point; float32 values of at least 2^-8 without rounding. A whole number, as a float
    because vectors know no conversion to 64-bit integers."""
    return np.trunc((value if value < MOST else MOST) * SHARE)


@jit
def whole_moment(seconds: float) -> float:
    """A time in fixed point, a whole number."""
    return np.trunc(seconds * SECOND)


@jit
def to_share(value: float) -> int:
    """`whole_share` as an integer."""
    return int(whole_share(value))


@jit
def to_moment(seconds: float) -> int:
    """`whole_moment` as an integer."""
    return int(whole_moment(seconds))


@jit
def add_page(s: Ledger, i: int, r: int, p: int, layer: int, sign: int) -> None:
    """Add page `p` of slot `r` to the sums of its group (`sign` 1), or take it off (-1)."""
    tag = s.page_tag[i, r, layer, p]
    if tag < 0:
        return
    g = tag * s.layer_groups + s.layer_group[layer]
    if s.page_live[i, r, layer, p] == 1:
        s.group_sums[i, g, s.page_codec[i, r, layer, p]] += sign
        s.group_sums[i, g, GroupSum.MASS] += sign * to_share(s.page_mass[i, r, layer, p])
        s.group_sums[i, g, GroupSum.LAST] += sign * to_moment(s.page_last_s[i, r, layer, p])
        s.group_sums[i, g, GroupSum.ERROR] += sign * to_share(s.page_error[i, r, layer, p])
    elif s.page_ghost[i, r, layer, p] == 1:
        s.group_sums[i, g, GroupSum.GHOSTS] += sign


@jit
def take_off(s: Ledger, i: int, r: int) -> None:
    """Take all pages of slot `r`, which lets go of them, off their groups' sums."""
    for layer in range(s.layers):
        for p in range(s.slot_pages[i, r]):
            add_page(s, i, r, p, layer, -1)


@jit
def recount_groups(s: Ledger, i: int) -> None:
    """Count the groups' sums from scratch; who writes into the pages' arrays directly (tests) calls this."""
    for g in range(s.group_sums.shape[1]):
        for column in range(s.group_sums.shape[2]):
            s.group_sums[i, g, column] = 0
    for k in range(s.running_count[i]):
        r = s.running[i, k]
        for layer in range(s.layers):
            for p in range(s.slot_pages[i, r]):
                add_page(s, i, r, p, layer, 1)


@jit
def part_of(s: Ledger, codec: int, refs: int) -> int:
    """What a request's hold on a page is of its bytes, 2^-16 bytes: pages that several hold count in parts."""
    size = s.codec_bytes[codec] * BYTE
    return size if refs <= 1 else size // refs
