"""Moving shards between ranks by observed load (`shard_eplb`). A shard is an expert in a layer group.

Load is what observations saw read: pages outside the always-on set, summed over the interval and averaged over
intervals. Homes change first, one shard at a time from the busiest rank to the idlest; where one shard alone keeps its
rank too busy it may get a twin, a second rank with copies of its pages. The sealed pages of running requests follow
where there is room. Cached blocks stay where they are until a request uses them.
"""

from __future__ import annotations

import numpy as np

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import drop_copy, holds_copy, tell_users
from pikv_runtime.ledger.references import copy_out, send_home
from pikv_runtime.ledger.state import F8, Ledger

LOAD_RATE = 0.3  # weight of an interval in a shard's average load


@jit
def count_load(s: Ledger, i: int) -> None:
    """Take in the reads of the interval just ended."""
    for shard in range(s.shard_load.shape[1]):
        reads = s.group_wishes[i, shard, 0] - s.group_wishes[i, shard, 1]
        s.shard_load[i, shard] += LOAD_RATE * (reads - s.shard_load[i, shard])


@jit
def rebalance_if_due(s: Ledger, i: int) -> None:
    """Rebalance every `rebalance_every` calls."""
    if s.rebalance_every == 0 or s.ranks == 1:
        return
    s.since_rebalance[i] += 1
    if s.since_rebalance[i] < s.rebalance_every:
        return
    s.since_rebalance[i] = 0
    for shard in range(s.shard_load.shape[1]):
        s.shard_twin[i, shard] = -1
    loads = rank_loads(s, i)
    most = loads.sum() / s.ranks * (1.0 + 0.01 * s.rebalance_margin)
    _reassign(s, i, loads, most)
    if s.rebalance_copies == 1:
        _pair(s, i, loads, most)
    _migrate(s, i)


@jit
def _home(s: Ledger, i: int, shard: int) -> int:
    """Home of a shard; under this map it does not depend on the page index."""
    return s.shard_home[i, 0, shard // s.layer_groups, shard % s.layer_groups]


@jit
def rank_loads(s: Ledger, i: int) -> F8:
    """Load of every rank under the homes in force, (G,); twins take half of their shard's."""
    loads = np.zeros(s.ranks)
    for shard in range(s.shard_load.shape[1]):
        load, twin = s.shard_load[i, shard], s.shard_twin[i, shard]
        if twin >= 0:
            load *= 0.5
            loads[twin] += load
        loads[_home(s, i, shard)] += load
    return loads


@jit
def _reassign(s: Ledger, i: int, loads: F8, most: float) -> None:
    """Change homes, and `loads` with them, until no rank has more than `most` or no single shard would help. Every
    change lowers the sum of squared loads, so it ends."""
    for _ in range(s.shard_load.shape[1]):
        hot, cold = int(loads.argmax()), int(loads.argmin())
        shard = _best_shard(s, i, hot, loads[hot] - loads[cold]) if loads[hot] > most else -1
        if shard < 0:
            return
        loads[hot] -= s.shard_load[i, shard]
        loads[cold] += s.shard_load[i, shard]
        for turn in range(s.ranks):
            s.shard_home[i, turn, shard // s.layer_groups, shard % s.layer_groups] = cold


@jit
def _best_shard(s: Ledger, i: int, hot: int, gap: float) -> int:
    """The shard of rank `hot` whose load is closest to half of `gap`, and below `gap`; -1 if there is none."""
    best, found = 0.5 * gap, -1
    for shard in range(s.shard_load.shape[1]):
        off = abs(s.shard_load[i, shard] - 0.5 * gap)
        if _home(s, i, shard) == hot and off < best:
            best, found = off, shard
    return found


@jit
def _pair(s: Ledger, i: int, loads: F8, most: float) -> None:
    """Give the busiest rank's largest shard a twin on the idlest, until no rank has more than `most` or it would not
    help."""
    for _ in range(s.ranks):
        hot, cold = int(loads.argmax()), int(loads.argmin())
        largest, half = -1, 0.0
        for shard in range(s.shard_load.shape[1]):
            if _home(s, i, shard) == hot and s.shard_twin[i, shard] < 0 and 0.5 * s.shard_load[i, shard] > half:
                largest, half = shard, 0.5 * s.shard_load[i, shard]
        if largest < 0 or loads[hot] <= most or loads[cold] + half >= loads[hot]:
            return
        s.shard_twin[i, largest] = cold
        loads[hot] -= half
        loads[cold] += half


@jit
def _migrate(s: Ledger, i: int) -> None:
    """Send the sealed pages of running requests to their homes, give up the copies of shards without a twin, and make
    those of shards that have one."""
    for k in range(s.running_count[i]):
        r = s.running[i, k]
        for p in range(s.slot_pages[i, r]):
            block = s.page_block[i, r, p]
            if s.block_sealed[i, block] == 1:
                _follow(s, i, block)
                copy_out(s, i, block)


@jit
def _follow(s: Ledger, i: int, block: int) -> None:
    changed = 0
    for layer in range(s.layers):
        tag = s.block_tag[i, block, layer]
        if s.block_codec[i, block, layer] < 0 or tag < 0:
            continue
        twin = s.shard_twin[i, tag * s.layer_groups + s.layer_group[layer]]
        for rank in range(s.ranks):
            if rank != twin and holds_copy(s, i, block, layer, rank):
                drop_copy(s, i, block, layer, rank)
                changed += 1
        if send_home(s, i, block, layer) == 1:
            changed += 1
    if changed > 0:
        tell_users(s, i, block)
