"""The invariants of a lane, checked from scratch. Tests call it after every step; it raises on the first breach."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.ledger.index import find
from pikv_runtime.ledger.pricing import count_reads
from pikv_runtime.ledger.queues import GHOSTS, LISTS, OTHER_GHOSTS, find_ghost, queued
from pikv_runtime.ledger.state import I8, IN_HOST, ON_DEVICE, Ledger
from pikv_runtime.ledger.sums import GroupSum, recount_groups


class IntegrityError(AssertionError):
    """The ledger contradicts itself."""


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise IntegrityError(message)


def check_integrity(s: Ledger, i: int = 0) -> None:
    """Raise IntegrityError if a page is owned twice or lost, bytes are not conserved, a cap is exceeded, …"""
    _check_blocks(s, i)
    _check_references(s, i)
    _check_bytes(s, i)
    _check_host(s, i)
    _check_index(s, i)
    _check_lists(s, i)
    _check_sums(s, i)
    if queued(s, i):
        _check_queues(s, i)


def _check_blocks(s: Ledger, i: int) -> None:
    free = s.free_slots[i, : s.free_count[i]]
    _demand(len(set(free.tolist())) == len(free), "a block slot is free twice")
    listed = s.page_block[i][s.page_block[i] >= 0]
    cached = np.flatnonzero(s.block_cached[i])
    used = set(listed.tolist())
    _demand(not used & set(free.tolist()), "a listed block is free")
    _demand(not used & set(cached.tolist()), "a cached block is listed by a running request")
    hosted = set(_hosted(s, i).tolist())
    _demand(not hosted & (used | set(cached.tolist())), "a block is both on the device and in the host")
    total = len(used) + len(cached) + len(hosted) + len(free)
    _demand(total == s.free_slots.shape[1], f"block slots lost: {total} of {s.free_slots.shape[1]} accounted for")
    users = np.bincount(listed, minlength=s.free_slots.shape[1])
    for b in used:
        _demand(users[b] == s.block_users[i, b], f"block {b}: {users[b]} users, {s.block_users[i, b]} counted")
    for b in cached:
        _demand(bool((s.block_codec[i, b] >= 0).all()), f"cached block {b} is not whole")


def _hosted(s: Ledger, i: int) -> I8:
    """Block slots in the host."""
    free = s.free_slots[i, : s.free_count[i]]
    _demand(not s.block_host[i, free].any(), "a free block slot is in the host")
    return np.flatnonzero(s.block_host[i] != ON_DEVICE)


def _check_host(s: Ledger, i: int) -> None:
    """Host bytes are those of its blocks, within its cap, and each of them can be found and is in the order."""
    hosted = _hosted(s, i)
    _demand(bool((s.block_host[i, hosted] == IN_HOST).all()), "a block is held after its admission")
    _demand(len(hosted) == s.host_count[i], f"{len(hosted)} blocks in the host, {s.host_count[i]} counted")
    _demand(bool((s.block_codec[i, hosted] >= 0).all()), "a block in the host is not whole")
    _demand(not s.block_refs[i, hosted].any() and not s.block_users[i, hosted].any(), "a block in the host is used")
    _demand(bool((s.block_hash[i, hosted] != 0).all()), "a block in the host cannot be found")
    size = s.codec_bytes[np.maximum(s.block_codec[i, hosted], 0)]
    for rank in range(s.ranks):
        total = int(size[s.block_rank[i, hosted] == rank].sum())
        _demand(total == s.host_bytes[i, rank], f"rank {rank}: host {total}, {s.host_bytes[i, rank]} counted")
        _demand(total <= s.host_cap[i], f"rank {rank}: {total} host bytes exceed the cap {s.host_cap[i]}")
    queue = s.host_order[i, : s.host_queued[i]] & 0xFFFFFFFF
    ages = s.host_value[i, : s.host_queued[i]]
    current = queue[ages == s.block_last_s[i, queue]]
    _demand(set(hosted.tolist()) <= set(current.tolist()), "a block in the host is missing from its order")


def _check_references(s: Ledger, i: int) -> None:
    refs, whole = np.zeros_like(s.block_refs[i]), 0
    for r in range(s.slot_request.shape[1]):
        count = s.slot_pages[i, r] if s.slot_request[i, r] >= 0 else 0
        blocks = s.page_block[i, r, :count]
        _demand(len(set(blocks.tolist())) == count, f"slot {r} lists a block twice")
        _demand(bool((s.page_block[i, r, count:] < 0).all()), f"slot {r} lists pages beyond its end")
        np.add.at(refs, blocks, s.page_live[i, r, :, :count].T)
        _demand(bool((s.block_depth[i, blocks] == np.arange(count)).all()), f"slot {r}: a block out of position")
        _check_facts(s, i, r, count)
        whole += sum(s.block_exact[i, b] and s.block_full[i, b] and (s.block_codec[i, b] >= 0).all() for b in blocks)
        if s.slot_request[i, r] >= 0:
            _check_reads(s, i, r)
        both = s.page_live[i, r] & s.page_ghost[i, r]
        _demand(not both.any(), f"slot {r}: a page both live and ghost")
        if s.slot_request[i, r] >= 0:
            held = s.slot_tokens[i, r] <= count * s.page_tokens
            _demand(bool(held), f"slot {r}: more tokens than pages")
    _demand(whole == s.whole_listed[i], f"{whole} listed blocks are exact and whole, {s.whole_listed[i]} counted")
    busy = s.block_users[i] > 0
    free = set(s.free_slots[i, : s.free_count[i]].tolist())
    for b in np.flatnonzero(busy):
        if int(b) in free:
            continue
        same = refs[b] == s.block_refs[i, b]
        _demand(bool(same.all()), f"block {b}: references {refs[b]} counted as {s.block_refs[i, b]}")
        resident = s.block_codec[i, b] >= 0
        _demand(bool((resident == (refs[b] > 0)).all()), f"block {b}: resident {resident} for references {refs[b]}")


def _check_facts(s: Ledger, i: int, r: int, count: int) -> None:
    """What slot `r` keeps beside its pages is what their blocks say."""
    live, blocks = s.page_live[i, r, :, :count] == 1, s.page_block[i, r, :count]
    _demand(_reads_one(s, i, r, live, blocks), f"slot {r}: a page is read where it is not")
    for name in ("codec", "tag", "refs"):
        copy, truth = getattr(s, f"page_{name}")[i, r, :, :count], getattr(s, f"block_{name}")[i, blocks].T
        _demand(bool((copy == truth)[live].all()), f"slot {r}: {name} of a page differs from its block's")
    codec = np.maximum(s.block_codec[i, blocks], 0)[..., None]
    errors = np.take_along_axis(s.block_error[i, blocks], codec.astype(np.int64), axis=2)[..., 0].T
    _demand(bool((s.page_error[i, r, :, :count] == errors)[live].all()), f"slot {r}: a page's error differs")
    sealed = s.block_sealed[i, blocks[s.sink_pages : s.slot_sealed[i, r]]]
    _demand(bool(sealed.all()), f"slot {r}: a page before slot_sealed is not sealed")


def _reads_one(s: Ledger, i: int, r: int, live: NDArray[Any], blocks: NDArray[Any]) -> bool:
    """Whether slot `r` reads every page on a rank that holds it, on its owner's wherever that one does."""
    ranks, home = s.page_rank[i, r, :, : len(blocks)], s.block_rank[i, blocks].T
    if not s.block_copies.shape[1]:
        return bool((ranks == home)[live].all())
    copies = np.asarray(s.block_copies[i, blocks]).T
    there = (ranks == home) | ((copies >> ranks.astype(np.int64)) & 1 == 1)
    near = (home == s.slot_owner[i, r]) | ((copies >> int(s.slot_owner[i, r])) & 1 == 1)
    return bool(there[live].all()) and bool((ranks == s.slot_owner[i, r])[live & near & (copies != 0)].all())


def _check_reads(s: Ledger, i: int, r: int) -> None:
    """Reads counted page by page are those of a recount."""
    if s.slot_dirty[i, r] == 1:
        return
    before, parts = s.slot_reads[i, r].copy(), s.slot_parts[i, r]
    count_reads(s, i, r)
    _demand(bool((s.slot_reads[i, r] == before).all()), f"slot {r}: reads are not what was counted")
    _demand(s.slot_parts[i, r] == parts, f"slot {r}: {s.slot_parts[i, r]} parts of bytes, {parts} counted")


def _check_bytes(s: Ledger, i: int) -> None:
    free = s.free_slots[i, : s.free_count[i]]
    occupied = np.ones(s.free_slots.shape[1], bool)
    occupied[free] = False
    occupied[_hosted(s, i)] = False
    holders = np.asarray(s.block_copies[i])
    once = (s.block_users[i, : len(holders)] == 0) | ~occupied[: len(holders)]
    _demand(not holders[once].any(), "a page that nobody reads has copies")
    _demand(not holders[s.block_codec[i, : len(holders)] < 0].any(), "a page that is gone has copies")
    for rank in range(s.ranks):
        here = (s.block_codec[i] >= 0) & (s.block_rank[i] == rank) & occupied[:, None]
        size = s.codec_bytes[np.maximum(s.block_codec[i], 0)]
        further = (holders >> rank) & 1 == 1
        copied = int(size[: len(further)][further].sum())
        twice = further & (s.block_rank[i, : len(further)] == rank)
        _demand(not twice.any(), f"rank {rank} holds a page twice")
        _demand(copied == s.copy_bytes[i, rank], f"rank {rank}: {copied} in copies, {s.copy_bytes[i, rank]} counted")
        total = int(size[here].sum()) + copied
        cached = int(size[here & (s.block_cached[i] == 1)[:, None]].sum())
        ghosts = int(s.page_ghost[i][(s.slot_request[i] >= 0) & (s.slot_owner[i] == rank)].sum())
        total += ghosts * s.ghost_bytes
        _demand(total == s.bytes_rank[i, rank], f"rank {rank}: {total} bytes, {s.bytes_rank[i, rank]} counted")
        _demand(cached == s.cached_bytes[i, rank], f"rank {rank}: cached {cached}, {s.cached_bytes[i, rank]} counted")
        _demand(total <= s.cap_bytes[i], f"rank {rank}: {total} bytes exceed the cap {s.cap_bytes[i]}")


def _check_index(s: Ledger, i: int) -> None:
    slots = s.index_slot[i][s.index_slot[i] >= 0]
    _demand(len(set(slots.tolist())) == len(slots), "a block is indexed twice")
    free = set(s.free_slots[i, : s.free_count[i]].tolist())
    for b in slots:
        key = s.block_hash[i, b]
        _demand(int(b) not in free, f"free block {b} is indexed")
        _demand(key != 0 and find(s, i, key) == b, f"block {b} is not found under its hash")
        _demand(bool((s.block_codec[i, b] >= 0).all()), f"indexed block {b} is not whole")
        exact = s.block_exact[i, b] == 1 or s.share_lossy == 1
        _demand(bool(exact), f"block {b} of lossy lineage is shareable")


def _check_lists(s: Ledger, i: int) -> None:
    running = s.running[i, : s.running_count[i]].tolist()
    busy = np.flatnonzero(s.slot_request[i] >= 0)
    order = busy[np.argsort(s.slot_request[i, busy])].tolist()
    _demand(running == order, f"running {running}, occupied in order of arrival {order}")
    cached = int(np.count_nonzero(s.block_cached[i]))
    _demand(cached == s.cached_count[i], f"{cached} cached blocks, {s.cached_count[i]} counted")
    indexed = np.flatnonzero(s.block_hash[i])
    for b in indexed:
        of = (s.block_parent[i, indexed] == s.block_hash[i, b]) & (s.block_linked[i, indexed] == s.block_serial[i, b])
        _demand(
            int(of.sum()) == s.block_children[i, b], f"block {b}: {of.sum()} children, {s.block_children[i, b]} counted"
        )


def _check_sums(s: Ledger, i: int) -> None:
    """Sums by group that were kept up to date are those of a count from scratch, to the last bit."""
    kept = s.group_sums[i].copy()
    recount_groups(s, i)
    for column in GroupSum:
        same = (s.group_sums[i, :, column] == kept[:, column]).all()
        _demand(bool(same), f"{column.name}: {s.group_sums[i, :, column]} by group, {kept[:, column]} were kept")


def _check_queues(s: Ledger, i: int) -> None:
    """Lists hold together both ways, their sizes are right, every cached block is in one of the two for blocks, no free
    or hosted block is, and every ghost can be found."""
    blocks = s.free_slots.shape[1]
    for which in range(1, LISTS):
        nodes: list[int] = []
        node, end = int(s.queue_next[i, 2 * blocks + which]), 2 * blocks + which
        while node != end and len(nodes) <= 2 * blocks:
            _demand(s.queue_next[i, s.queue_prev[i, node]] == node, f"list {which}: node {node} is linked one way only")
            nodes.append(node)
            node = int(s.queue_next[i, node])
        size, listed = s.queue_size[i, which], np.flatnonzero(s.queue_of[i] == which)
        _demand(len(nodes) == size, f"list {which}: {len(nodes)} nodes, {size} counted")
        _demand(set(nodes) == set(listed.tolist()), f"list {which}: a node believes to be elsewhere")
        for ghost in nodes if which in (GHOSTS, OTHER_GHOSTS) else ():
            found = find_ghost(s, i, s.ghost_key[i, ghost - blocks])
            _demand(found == ghost, f"ghost {ghost} is not found under its key")
    listed = np.flatnonzero(s.queue_of[i, :blocks])
    _demand(set(np.flatnonzero(s.block_cached[i]).tolist()) <= set(listed.tolist()), "a cached block is in no list")
    gone = set(s.free_slots[i, : s.free_count[i]].tolist()) | set(_hosted(s, i).tolist())
    _demand(not gone & set(listed.tolist()), "a block that is not on the device is in a list")
