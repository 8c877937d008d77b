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

F8 = NDArray[np.float64]
F4 = NDArray[np.float32]
I8 = NDArray[np.int64]
I4 = NDArray[np.int32]
I2 = NDArray[np.int16]
I1 = NDArray[np.int8]

CODECS = ("native", "bf16", "int8", "int4")  # ladder order; the kernels floor encodes the same names
NATIVE, BF16, INT8, INT4 = range(4)
NO_CAP = 1 << 62
ON_DEVICE, IN_HOST, HELD = range(3)  # HELD: in the host, on its way back


class Status(IntEnum):
    """Life of a request."""

    FUTURE = 0
    WAITING = 1
    RUNNING = 2
    DONE = 3
    REFUSED = 4
    CANCELLED = 5


class Event(IntEnum):
    """What the runtime must do to tensors after a step."""

    ENCODE = 0  # block, layer, codec before, codec after
    MOVE = 1  # block, layer, rank before, rank after
    FREE = 2  # block, layer, codec before, rank before
    SWAP_OUT = 3  # block, layer, codec, rank: from the device to the host
    SWAP_IN = 4  # block, layer, codec, rank: from the host to the device
    COPY = 5  # block, layer, rank that sends, rank that keeps a further copy
    DROP = 6  # block, layer, codec, rank that gives up its copy


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


class RuleCode(IntEnum):
    """Block rules by the number that the ledger knows them by: weights; then queues up to ARC; then scores."""

    UTILITY = 0
    FIFO = 1
    TWO_QUEUE = 2
    S3FIFO = 3
    SIEVE = 4
    ARC = 5
    TLRU = 6
    LRB = 7
    BELADY = 8


class RuleParam(IntEnum):
    """Columns of `rule_params`."""

    THRESHOLD = 0  # T-LRU: share of the class's objective for the first token that a prefill may take
    NEXT_PROMPT = 1  # T-LRU: pages that the next prompt of a conversation is expected to add


class Past(IntEnum):
    """Columns of `block_past`: what scored rules know of a block."""

    USE_BEFORE = 0  # seconds: the use before the last one, -1: none
    USE_EARLIER = 1  # the one before that
    MADE = 2  # when it was opened
    TOKENS = 3  # tokens that its last user had in the end
    REQUEST = 4  # highest number of a request that used it


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
    rebalance_every: int  # control intervals between two rebalancings of shards, 0: never
    rebalance_margin: int  # per cent that the busiest rank may be above the mean
    copies: int  # copies of a sealed page, one for each of so many experts that its tokens chose; 1: one
    rebalance_copies: int  # 1: shards too busy for one rank are kept on two
    layer_group: I1  # (L,)
    shard_map: I1  # (G, E + 1, LG) homes that lanes begin with, see shard_maps/base.py
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
    shard_home: I1  # (n, G, E + 1, LG) home of a sealed page by page index mod G, tag (last: none) and layer group
    shard_load: F8  # (n, E*LG) page reads that an interval's observations see, averaged
    shard_twin: I1  # (n, E*LG) rank that keeps a second copy of a shard, -1: none
    since_rebalance: I4  # (n,) control intervals
    copy_bytes: I8  # (n, G) of `bytes_rank`, in further copies of pages: pages.py
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
    slot_parts: I8  # (n, R) bytes of the others, shared pages in parts, 2^-16
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
    block_copies: I8  # (n, B or 0, L) a bit for each rank that holds a further copy
    block_also: I1  # (n, B or 0, L, copies - 1) the page's experts after its tag, most chosen first, -1: none
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
    # --- orders that are no weighted sums, by lane: arrays that no lane needs have no size, see rule_room.py
    block_rule: I1  # (n,) RuleCode
    page_rule: I1  # (n,) 0: weights, 1: clairvoyant
    rule_params: F8  # (n, len(RuleParam))
    rule_weights: F4  # (n, reuse.WEIGHTS or 0) network of the learned rule
    queue_next: I4  # (n, V or 0) lists over blocks, ghosts and sentinels, V = 2B + 6, see queues.py
    queue_prev: I4
    queue_of: I1  # list that a node is in
    queue_seen: I1  # hits since the block was made, as far as the rule counts
    queue_size: I4  # (n, 6)
    queue_hand: I4  # (n,) SIEVE's hand, -1: at the tail
    queue_target: F8  # (n,) ARC's target of T1
    ghost_key: I8  # (n, B or 0)
    ghost_chain: I4  # (n, B or 0) next ghost of the same bucket
    ghost_bucket: I4  # (n, H or 0)
    block_past: F8  # (n, B or 0, len(Past))
    req_next: I4  # (n, N or 0, P or 0) next request whose prompt holds this block, -1: none
    page_future: F4  # (n, R or 0, L, P) attention mass that the request's observations will still find here
    page_foreseen: I4  # (n, R or 0) whose future that is
    # --- control in force
    control_groups: F4  # (n, E*LG, 3)
    control_globals: F4  # (n, len(GLOBAL_CONTROLS))
    # --- control decided last, perhaps not yet in force
    staged_groups: F4
    staged_globals: F4
    staged_s: F8  # (n,) when it comes into force, inf: it has
    # --- by group
    group_sums: I8  # (n, E*LG, len(GroupSum)) of the pages of running requests, see sums.py
    # --- statistics of the interval, by group
    group_wishes: F8  # (n, E*LG, 2) wished pages, of those ghosts
    group_routed: F8  # (n, E) moving share of tokens
    interval_tally: F8  # (n, len(Tally)) value of `tally` at the interval's start
    loss_class: F8  # (n, CLASSES, 2) loss and weightless count of audited tokens, by class
    # --- work for tensors
    events: I4  # (n, M, 5)
    event_count: I4  # (n,)
