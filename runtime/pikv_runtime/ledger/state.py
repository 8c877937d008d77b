"""The ledger's state: a struct of arrays whose leading axis is the lane.

The runtime is a batch of one lane, the trace environment a batch of many; every page rule in this package works
on `(state, lane)`. Letters: n lanes, N requests, R slots, P pages of a request, L layers, B block slots, G ranks,
K codecs (ladder order), E experts.

A *block slot* is one position range over all layers; physical page (b, l) is resident iff `block_codec[b, l] >= 0`.
A *slot* is a running request; it holds references (r, p, l) to pages. Bytes free when the last reference goes,
unless the block becomes cached. A block in the host keeps its slot, its place in the index and what is said of its
pages (codec, rank, tag, errors); its bytes are counted in `host_bytes`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.contract import BLOCK_WEIGHTS, CLASSES, GLOBAL_CONTROLS, GROUP_CONTROLS

F8 = NDArray[np.float64]
F4 = NDArray[np.float32]
I8 = NDArray[np.int64]
I4 = NDArray[np.int32]
I2 = NDArray[np.int16]
I1 = NDArray[np.int8]

CODECS = ("native", "bf16", "int8", "int4")  # ladder order; the kernels floor encodes the same names
NATIVE, BF16, INT8, INT4 = range(4)
NO_CAP = 1 << 62
CACHE_LINE = 64  # bytes
ON_DEVICE, IN_HOST, HELD = range(3)  # HELD: in the host, on its way back


class Status(IntEnum):
    """Life of a request."""

    FUTURE = 0
    WAITING = 1
    RUNNING = 2
    DONE = 3
    REFUSED = 4


class Event(IntEnum):
    """What the runtime must do to tensors after a step."""

    ENCODE = 0  # block, layer, codec before, codec after
    MOVE = 1  # block, layer, rank before, rank after
    FREE = 2  # block, layer, codec before, rank before
    SWAP_OUT = 3  # block, layer, codec, rank: from the device to the host
    SWAP_IN = 4  # block, layer, codec, rank: from the host to the device


class Price(IntEnum):
    """Columns of `prices`: seconds per unit on the model clock, from a profile and a geometry."""

    STEP = 0  # one iteration: weights, launches
    PREFILL_TOKEN = 1  # one prompt token through all layers
    PREFILL_PAIR = 2  # one (query token, context token) pair in prefill, all layers
    DECODE_TOKEN = 3  # one decoding request
    READ_NATIVE = 4  # reading one page of one layer, by codec
    READ_BF16 = 5
    READ_INT8 = 6
    READ_INT4 = 7
    SELECT_PAGE = 8  # scoring one candidate page of one layer
    ENCODE_PAGE = 9  # encoding or re-encoding one page of one layer
    LINK_BYTE = 10  # one byte between ranks
    COLLECTIVE = 11  # start-up cost of one collective (two a layer)
    QUERY_BYTES = 12  # bytes out and back for one query row, layer and remote rank
    DECISION = 13  # one decision
    HOST_BYTE = 14  # one byte between device and host, either way


class Tally(IntEnum):
    """Columns of `tally`: counters of the episode so far (float64)."""

    LATENCY_CHARGE = 0  # sum of c_i (TTFT/SLO + TPOT/SLO), accrued
    BYTE_SECONDS = 1
    LOSS = 2  # weighted fidelity loss of audited tokens and layers
    ITERATIONS = 3
    BUSY_S = 4
    PREFILL_S = 5
    ATTENTION_S = 6
    CODEC_S = 7
    LINK_S = 8
    DECISION_S = 9
    WEIGHTS_S = 10
    LINK_BYTES = 11
    ENCODED_PAGES = 12
    EVICTED_PAGES = 13
    EVICTED_BLOCKS = 14
    PREEMPTIONS = 15
    PROMPT_TOKENS = 16  # prompt tokens admitted
    HIT_TOKENS = 17  # of those, found in the cache
    WISHED_PAGES = 18
    GHOST_WISHES = 19  # wished pages that were gone
    SPILLS = 20  # sealed pages that their full home could not take
    VETOES = 21
    ASKED = 22  # changes asked by controls
    PEAK_BYTES = 23
    WISHED_MASS = 24  # attention mass of wished pages, and of those the resident ones
    HIT_MASS = 25
    CONFLICTS = 26  # pages asked for within CONFLICT_WINDOW_S after their eviction
    HOST_S = 27  # seconds of moving pages between device and host
    HOST_BYTES = 28  # bytes moved, both ways
    HOST_HIT_TOKENS = 29  # of HIT_TOKENS, those found in the host
    HOST_OUT_BLOCKS = 30  # evicted blocks that went to the host
    HOST_IN_BLOCKS = 31  # blocks that came back
    HOST_BYTE_SECONDS = 32


class Ledger(NamedTuple):
    """All state of n lanes. Integers are common to all lanes."""

    # --- common
    page_tokens: int
    layers: int
    experts: int
    layer_groups: int
    ranks: int
    top_codec: int
    sparse: int
    router: int  # 0 all, 1 gate, 2 centroid: which recorded score orders the read set
    sink_pages: int
    observe_tokens: int
    observe_drawn: int  # 1: one of every `observe_tokens` decode steps is observed, drawn by hash; 0: the first
    max_batch_tokens: int
    share_lossy: int
    layer_group: I1  # (L,)
    codec_bytes: I8  # (K,) bytes of one page of one layer, metadata included
    bf16_bytes: int  # numerator of every ratio
    ghost_bytes: int  # bytes of a ghost's centroid
    # --- lane
    class_weight: F8  # (n, CLASSES)
    class_ttft_s: F8
    class_tpot_s: F8
    class_fidelity: F8
    cap_bytes: I8  # (n,) of each rank
    host_cap: I8  # (n,) host bytes of each rank, 0: no host tier
    interval_s: F8  # (n,)
    latency_s: F8  # (n,) from a decision until its control comes into force
    prices: F8  # (n, len(Price))
    lambdas: F8  # (n, 2)
    clock_s: F8  # (n,)
    interval_end_s: F8
    tally: F8  # (n, len(Tally))
    bytes_rank: I8  # (n, G) resident bytes
    cached_bytes: I8  # (n, G)
    host_bytes: I8  # (n, G) bytes in host memory, not among those of `bytes_rank`
    rank_s: F8  # (n, 3, G) seconds of prefill, decode and attention of the iteration being priced
    free_slots: I4  # (n, B) stack of free block slots
    free_count: I4  # (n,)
    waiting_rate: F8  # (n,) latency charge per second of arrived requests without a first token
    decode_rate: F8  # (n,) the same for requests that have one
    next_arrival: I4  # (n,)
    queue_head: I4  # (n,) lowest request that may be waiting
    unfinished: I4  # (n,)
    observe_salt: I8  # (n,) of the steps that are drawn
    unsettled: I4  # (n,) an admission failed after making room
    window: I4  # (n,) pages of the window that reads were counted under
    whole_listed: I4  # (n,) pages of running requests whose blocks are exact and whole
    pending_s: F8  # (n,) codec work and link time to be added to the next iteration
    moving: F8  # (n, 8) moving averages of telemetry, see telemetry.py
    # --- requests
    num_requests: I4  # (n,)
    req_arrival_s: F8  # (n, N)
    req_prompt: I4
    req_output: I4
    req_class: I1
    req_content: I4
    req_audited: I1
    req_status: I1
    req_generated: I4
    req_hit_tokens: I4
    req_preempted: I4
    req_lossy: I1  # it was preempted after lossy reads: what it had generated is not the exact continuation
    req_first_s: F8
    req_finish_s: F8
    req_loss: F8  # summed loss over audited tokens and layers
    req_observed: I4
    req_hashes: I8  # (n, N, P)
    # --- slots
    running: I4  # (n, R) occupied slots in order of arrival
    running_count: I4  # (n,)
    slot_request: I4  # (n, R), -1 free
    slot_owner: I1
    slot_tokens: I4  # tokens whose KV is stored
    slot_target: I4  # tokens to prefill before decoding
    slot_pages: I4  # pages allocated
    slot_sealed: I4  # pages from the sinks up to this one are sealed
    slot_lossy: I1
    slot_dirty: I1
    slot_plan: I4  # (n, R) tokens of this iteration
    slot_reads: I4  # (n, R, 2, G, K) page-layers: [always-on, others] by rank and codec
    page_block: I4  # (n, R, P), -1 none
    page_live: I1  # (n, R, L, P) the request still holds this page
    page_ghost: I1  # evicted, centroid kept
    page_codec: I1  # what the block says of this page, where loops over a request's pages find it side by side
    page_rank: I1
    page_tag: I1
    page_refs: I2  # running requests that hold it
    page_error: F4  # codec error at its codec
    page_mass: F4  # attention-mass average, relative to the read pages
    page_mass_sum: F4
    page_reads: F4  # times in the read set when observed
    page_last_s: F4  # last read
    page_gone_s: F4  # when it was evicted
    # --- blocks
    block_hash: I8  # (n, B), 0: not indexed
    block_parent: I8  # (n, B) hash of the parent, 0 at a chain's start
    block_depth: I4
    block_children: I4  # indexed children that were linked to it
    block_order: I8  # (n, B) its last entry in the heap of victims
    block_serial: I8  # (n, B) number of its indexing, and that of the parent it is linked to: slots are reused
    block_linked: I8
    block_up: I4  # (n, B) slot of that parent
    last_serial: I8  # (n,)
    block_users: I4  # running requests that list it
    block_full: I1
    block_sealed: I1
    block_exact: I1
    block_cached: I1
    block_host: I1  # ON_DEVICE, IN_HOST or HELD
    block_last_s: F8
    block_uses: I4
    block_class: I1
    block_length: I4
    block_codec: I1  # (n, B, L), -1 not resident
    block_rank: I1  # (n, B, L)
    block_tag: I1  # (n, B, L), -1 untagged
    block_refs: I4  # (n, B, L)
    block_error: F4  # (n, B, L, K)
    index_key: I8  # (n, H) open addressing by hash, 0: free; its slot lies beside it
    index_slot: I4
    cached_count: I4  # (n,)
    victims: I8  # (n, 2B) heap of cached blocks by utility, see victims.py
    victim_count: I4  # (n,), -1 where there is none
    victim_made_s: F8  # (n,) when the heap was made
    victim_weights: F4  # (n, 6) block weights it was made under
    host_order: I8  # (n, 2B or 0) heap of blocks in the host by last use, see host.py
    host_value: F8  # (n, 2B or 0)
    host_queued: I4  # (n,) entries of the heap
    host_count: I4  # (n,) blocks in the host, held ones apart
    # --- control in force
    control_groups: F4  # (n, E*LG, 3)
    control_globals: F4  # (n, len(GLOBAL_CONTROLS))
    # --- control decided last, perhaps not yet in force
    staged_groups: F4
    staged_globals: F4
    staged_s: F8  # (n,) when it comes into force, inf: it has
    # --- statistics of the interval, by group
    group_wishes: F8  # (n, E*LG, 2) wished pages, of those ghosts
    group_routed: F8  # (n, E) moving share of tokens
    interval_tally: F8  # (n, len(Tally)) value of `tally` at the interval's start
    loss_class: F8  # (n, CLASSES, 2) loss and weightless count of audited tokens, by class
    # --- work for tensors
    events: I4  # (n, M, 5)
    event_count: I4  # (n,)


class Dims(NamedTuple):
    """Sizes of a ledger."""

    lanes: int
    requests: int
    slots: int
    pages: int
    layers: int
    experts: int
    layer_groups: int
    ranks: int
    blocks: int
    events: int = 0
    host: bool = False

    @property
    def groups(self) -> int:
        """Control groups N: expert shards × layer groups."""
        return self.experts * self.layer_groups


def group_layers(layers: int, layer_groups: int) -> I1:
    """Layer -> layer group, as even as possible, (L,)."""
    return (np.arange(layers) * layer_groups // layers).astype(np.int8)


def _lane_arrays(d: Dims) -> dict[str, NDArray]:
    n, b, g = d.lanes, d.blocks, d.ranks
    return {
        **{f"class_{name}": np.zeros((n, CLASSES)) for name in ("weight", "ttft_s", "tpot_s", "fidelity")},
        "cap_bytes": np.full(n, NO_CAP, np.int64),
        "host_cap": np.zeros(n, np.int64),
        "interval_s": np.full(n, 2.0),
        "latency_s": np.zeros(n),
        "prices": np.zeros((n, len(Price))),
        "lambdas": np.ones((n, 2)),
        "clock_s": np.zeros(n),
        "interval_end_s": np.zeros(n),
        "tally": np.zeros((n, len(Tally))),
        "bytes_rank": np.zeros((n, g), np.int64),
        "cached_bytes": np.zeros((n, g), np.int64),
        "host_bytes": np.zeros((n, g), np.int64),
        "host_queued": np.zeros(n, np.int32),
        "host_count": np.zeros(n, np.int32),
        "rank_s": np.zeros((n, 3, g)),
        "running_count": np.zeros(n, np.int32),
        "cached_count": np.zeros(n, np.int32),
        "victim_count": np.zeros(n, np.int32),
        "victim_made_s": np.zeros(n),
        "victim_weights": np.zeros((n, BLOCK_WEIGHTS.stop - BLOCK_WEIGHTS.start), np.float32),
        "last_serial": np.zeros(n, np.int64),
        "free_slots": np.zeros((n, b), np.int32),
        "free_count": np.zeros(n, np.int32),
        "waiting_rate": np.zeros(n),
        "decode_rate": np.zeros(n),
        "next_arrival": np.zeros(n, np.int32),
        "queue_head": np.zeros(n, np.int32),
        "unfinished": np.zeros(n, np.int32),
        "unsettled": np.zeros(n, np.int32),
        "observe_salt": np.zeros(n, np.int64),
        "window": np.zeros(n, np.int32),
        "whole_listed": np.zeros(n, np.int32),
        "pending_s": np.zeros(n),
        "moving": np.zeros((n, 8)),
        "control_groups": np.zeros((n, d.groups, len(GROUP_CONTROLS)), np.float32),
        "control_globals": np.zeros((n, len(GLOBAL_CONTROLS)), np.float32),
        "staged_groups": np.zeros((n, d.groups, len(GROUP_CONTROLS)), np.float32),
        "staged_globals": np.zeros((n, len(GLOBAL_CONTROLS)), np.float32),
        "staged_s": np.full(n, np.inf),
        "group_wishes": np.zeros((n, d.groups, 2)),
        "group_routed": np.zeros((n, d.experts)),
        "interval_tally": np.zeros((n, len(Tally))),
        "loss_class": np.zeros((n, CLASSES, 2)),
        "events": np.zeros((n, d.events, 5), np.int32),
        "event_count": np.zeros(n, np.int32),
    }


def _request_arrays(d: Dims) -> dict[str, NDArray]:
    shape = (d.lanes, d.requests)
    floats = ("req_arrival_s", "req_first_s", "req_finish_s", "req_loss")
    ints = (
        "req_prompt", "req_output", "req_content", "req_generated", "req_hit_tokens", "req_preempted",
        "req_observed",
    )  # fmt: skip
    small = ("req_class", "req_audited", "req_status", "req_lossy")
    return {
        "num_requests": np.zeros(d.lanes, np.int32),
        "req_hashes": np.zeros((*shape, d.pages), np.int64),
        **{k: np.zeros(shape) for k in floats},
        **{k: np.zeros(shape, np.int32) for k in ints},
        **{k: np.zeros(shape, np.int8) for k in small},
    }


def _slot_arrays(d: Dims) -> dict[str, NDArray]:
    slot, page = (d.lanes, d.slots), (d.lanes, d.slots, d.layers, d.pages)
    ints = ("running", "slot_request", "slot_tokens", "slot_target", "slot_pages", "slot_plan", "slot_sealed")
    small = ("slot_owner", "slot_lossy", "slot_dirty")
    floats = ("page_error", "page_mass", "page_mass_sum", "page_reads", "page_last_s", "page_gone_s")
    return {
        **{k: np.zeros(slot, np.int32) for k in ints},
        **{k: np.zeros(slot, np.int8) for k in small},
        "slot_reads": np.zeros((*slot, 2, d.ranks, len(CODECS)), np.int32),
        "page_block": np.zeros((*slot, d.pages), np.int32),
        **{f"page_{k}": np.zeros(page, np.int8) for k in ("live", "ghost", "codec", "rank", "tag")},
        "page_refs": np.zeros(page, np.int16),
        **{k: np.zeros(page, np.float32) for k in floats},
    }


def _block_row(layers: int) -> np.dtype[np.void]:
    """What is known of a block lies side by side: whoever asks one thing of a block is about to ask another.

    What is asked most stands first, and rows begin at cache lines.
    """
    small = ("sealed", "full", "exact", "cached", "class", "host")
    fields: list[tuple[str, type, tuple[int, ...]]] = [
        *((name, np.int8, (layers,)) for name in ("codec", "tag", "rank")),
        *((name, np.int8, ()) for name in small),
        ("users", np.int32, ()),
        ("refs", np.int32, (layers,)),
        *((name, np.int32, ()) for name in ("uses", "children", "depth", "length")),
        ("last_s", np.float64, ()),
        *((name, np.int64, ()) for name in ("hash", "parent", "serial", "linked")),
        ("order", np.int64, ()),
        ("up", np.int32, ()),
        ("error", np.float32, (layers, len(CODECS))),
    ]
    size = np.dtype(fields, align=True).itemsize
    return np.dtype([*fields, ("spare", np.int8, (-size % CACHE_LINE,))], align=True)


def _rows(shape: tuple[int, int], dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """Zeroed rows that begin at cache lines."""
    size = shape[0] * shape[1] * dtype.itemsize
    raw = np.zeros(size + CACHE_LINE, np.int8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def _block_arrays(d: Dims) -> dict[str, NDArray]:
    n, b = d.lanes, d.blocks
    rows = _rows((n, b), _block_row(d.layers))
    index = 1 << max(4, (2 * b - 1).bit_length())
    entries = _rows((n, index), np.dtype([("key", np.int64), ("slot", np.int32)], align=True))
    return {
        **{f"block_{name}": rows[name] for name in rows.dtype.names or () if name != "spare"},
        "index_key": entries["key"],
        "index_slot": entries["slot"],
        "victims": np.zeros((n, 2 * b), np.int64),
        "host_order": np.zeros((n, 2 * b if d.host else 0), np.int64),
        "host_value": np.zeros((n, 2 * b if d.host else 0)),
    }


def allocate(d: Dims) -> dict[str, NDArray]:
    """All lane arrays of a ledger of size `d`, zeroed; `setup.py` fills them."""
    return {**_lane_arrays(d), **_request_arrays(d), **_slot_arrays(d), **_block_arrays(d)}
