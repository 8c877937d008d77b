"""Building a ledger, clearing a lane, loading a workload into it, closing an episode."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.block_rules import Orders, make_block_rule
from pikv_runtime.config import ROUTER_CODES, RuntimeConfig
from pikv_runtime.contract import Control
from pikv_runtime.ledger.allocation import Dims, allocate, group_layers
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.observe import observed_step
from pikv_runtime.ledger.record import record
from pikv_runtime.ledger.rule_room import with_orders
from pikv_runtime.ledger.rules import begin_rule
from pikv_runtime.ledger.schedule import tpot_rate, ttft_rate
from pikv_runtime.ledger.state import (
    BF16,
    CODECS,
    NO_CAP,
    Ledger,
    Status,
    Tally,
)
from pikv_runtime.requests import Request, ServiceClass, is_audited
from pikv_runtime.shard_maps import make_shard_map

MOST_COPYING = 62


@dataclass(frozen=True)
class Shape:
    """What the ledger must know of a model: layers, experts and bytes of one page of one layer."""

    layers: int
    experts: int
    codec_bytes: tuple[int, ...]
    """Bytes of a stored page by codec, ladder order, without its centroid."""
    centroid_bytes: int

    def __post_init__(self) -> None:
        if len(self.codec_bytes) != len(CODECS):
            raise ValueError(f"codec_bytes has {len(self.codec_bytes)} entries, the ladder has {len(CODECS)}")


def build(
    config: RuntimeConfig,
    shape: Shape,
    classes: tuple[ServiceClass, ...],
    *,
    lanes: int = 1,
    requests: int,
    pages: int,
    ranks: int = 1,
    events: bool = False,
) -> Ledger:
    """An empty ledger of `lanes` lanes, each for up to `requests` requests of up to `pages` pages.

    Raises:
        ValueError: the shard map cannot serve so many ranks, or copies cannot be kept track of.
    """
    layer_groups = min(config.layer_groups, shape.layers)
    blocks, host = max(config.blocks, config.slots * pages + 1), config.host_bytes or 0
    sharding = _sharding(config, shape.experts, layer_groups, ranks)
    copies, twins = sharding["copies"], sharding["rebalance_copies"] > 0
    # In a step a page can be encoded thrice, moved twice and freed; and go to the host twice and come back once; and
    # copies of it can come and go.
    limit = ((12 if host else 8) + (2 * ranks if copies > 1 or twins else 0)) * blocks * shape.layers if events else 0
    sizes = (config.slots, pages, shape.layers, shape.experts, layer_groups, ranks, blocks)
    dims = Dims(lanes, requests, *sizes, limit, host > 0, copies, twins)
    # Reading sparsely needs every page's centroid at hand: its bytes count with the page's.
    extra = shape.centroid_bytes if config.read == "sparse" else 0
    fields = Ledger(
        page_tokens=config.page_tokens,
        layers=shape.layers,
        experts=shape.experts,
        layer_groups=layer_groups,
        ranks=ranks,
        top_codec=CODECS.index(config.codec),
        sparse=int(config.read == "sparse"),
        router=ROUTER_CODES.get(config.router, 0),
        sink_pages=config.sink_pages,
        observe_tokens=config.observe_tokens,
        observe_drawn=int(config.observe == "drawn"),
        max_batch_tokens=config.max_batch_tokens,
        share_lossy=int(config.share_lossy),
        layer_group=group_layers(shape.layers, layer_groups),
        codec_bytes=np.array(shape.codec_bytes, np.int64) + extra,
        bf16_bytes=shape.codec_bytes[BF16] + extra,
        ghost_bytes=shape.centroid_bytes,
        **(sharding | allocate(dims)),
    )
    state = record(fields)
    for lane in range(lanes):
        state.cap_bytes[lane] = NO_CAP if config.cap_bytes is None else config.cap_bytes
        state.host_cap[lane] = host
        state.interval_s[lane] = config.interval_s
        state.latency_s[lane] = config.control_latency_s
        set_classes(state, lane, classes)
        clear(state, lane)
        state = with_orders(state, lane, Orders(make_block_rule(config.block_rule)))
    return state


def _sharding(config: RuntimeConfig, experts: int, layer_groups: int, ranks: int) -> dict[str, Any]:
    """Fields of the ledger that say where sealed pages go, and on how many ranks they are kept."""
    shards, copies = make_shard_map(config.shard_map), config.copies if config.write == "copies" else 1
    every, margin, twins = shards.rebalance
    if ranks > MOST_COPYING and (copies > 1 or twins):
        raise ValueError(f"ranks={ranks} with copies of pages: at most {MOST_COPYING}, a bit of a word for each")
    return {
        "shard_map": shards.homes(ranks, experts, layer_groups),
        "rebalance_every": every,
        "rebalance_margin": margin,
        "rebalance_copies": twins,
        "copies": copies,
    }


def set_classes(s: Ledger, lane: int, classes: Sequence[ServiceClass]) -> None:
    """State the classes of service of the lane's requests."""
    for c, service in enumerate(classes):
        s.class_weight[lane, c], s.class_fidelity[lane, c] = service.weight, service.fidelity_weight
        s.class_ttft_s[lane, c], s.class_tpot_s[lane, c] = service.slo_ttft_s, service.slo_tpot_s


def pages_needed(requests: Sequence[Request], page_tokens: int) -> int:
    """Most pages that any of `requests` ever holds."""
    return max(math.ceil((r.prompt_tokens + r.output_tokens) / page_tokens) for r in requests)


_KEPT = {"layer_group", "codec_bytes", "cap_bytes", "host_cap", "interval_s", "latency_s", "prices", "lambdas"}
_KEPT |= {"shard_map", "block_rule", "page_rule", "rule_params", "rule_weights", "req_next"}


def clear(s: Ledger, lane: int) -> None:
    """Empty the lane: no requests, no blocks, clock at zero, the neutral control. Keeps caps, latency, prices, classes
    and rules (`set_orders` begins an offline rule, which must know the requests)."""
    for name, value in s._asdict().items():
        kept = name in _KEPT or name.startswith("class_")
        if isinstance(value, np.ndarray) and not kept:
            value[lane] = 0
    for array in (s.slot_request, s.page_block, s.block_codec, s.block_tag, s.block_also, s.index_slot, s.victim_count):
        array[lane] = -1
    s.shard_twin[lane] = -1
    s.req_first_s[lane] = -1.0
    s.shard_home[lane] = s.shard_map
    blocks = s.free_slots.shape[1]
    s.free_slots[lane] = np.arange(blocks - 1, -1, -1)
    s.free_count[lane] = blocks
    s.interval_end_s[lane] = s.interval_s[lane]
    neutral = Control.neutral(s.control_groups.shape[1])
    s.control_groups[lane] = s.staged_groups[lane] = neutral.groups
    s.control_globals[lane] = s.staged_globals[lane] = neutral.globals
    s.staged_s[lane] = np.inf
    begin_rule(s, lane)


def load_requests(s: Ledger, lane: int, requests: Sequence[Request], *, audit_seed: int, audit_share: float) -> None:
    """Load `requests` (ordered by arrival) into a cleared lane.

    Raises:
        ValueError: more requests, or longer ones, than the ledger was built for.
    """
    room, pages = s.req_arrival_s.shape[1], s.page_block.shape[2]
    if len(requests) > room:
        raise ValueError(f"{len(requests)} requests, the ledger was built for {room}")
    s.num_requests[lane] = s.unfinished[lane] = len(requests)
    s.observe_salt[lane] = zlib.crc32(f"observe:{audit_seed}".encode())
    for q, request in enumerate(requests):
        ids = request.hash_ids[:pages]
        s.req_arrival_s[lane, q] = request.arrival_s
        s.req_prompt[lane, q] = request.prompt_tokens
        s.req_output[lane, q] = request.output_tokens
        s.req_class[lane, q] = request.class_id
        s.req_content[lane, q] = request.content
        s.req_audited[lane, q] = is_audited(request.request_id, audit_seed, audit_share)
        s.req_hashes[lane, q, : len(ids)] = ids


def copy_requests(target: Ledger, lane: int, source: Ledger, from_lane: int) -> None:
    """Load requests and classes of another ledger's lane into a cleared lane of `target` (same room and pages)."""
    for name in ("arrival_s", "prompt", "output", "class", "content", "audited", "hashes"):
        getattr(target, f"req_{name}")[lane] = getattr(source, f"req_{name}")[from_lane]
    for name in ("weight", "ttft_s", "tpot_s", "fidelity"):
        getattr(target, f"class_{name}")[lane] = getattr(source, f"class_{name}")[from_lane]
    target.observe_salt[lane] = source.observe_salt[from_lane]
    target.num_requests[lane] = target.unfinished[lane] = source.num_requests[from_lane]


def observations(s: Ledger, lane: int) -> NDArray[np.int64]:
    """Observations that each request's decode steps will bring, (N,): one of every `observe_tokens` steps."""
    counts = np.zeros(s.num_requests[lane], np.int64)
    _count_observations(s, lane, counts)
    return counts


@jit
def _count_observations(s: Ledger, i: int, out) -> None:  # type: ignore[no-untyped-def]
    for q in range(s.num_requests[i]):
        steps = s.req_output[i, q] - 1  # the last token is never fed back
        for o in range((steps + s.observe_tokens - 1) // s.observe_tokens):
            out[q] += 1 if observed_step(s, i, q, o) < steps else 0


@jit
def close(s: Ledger, i: int, u_charge, due) -> None:  # type: ignore[no-untyped-def]
    """End the episode now: whoever is unserved is charged to the end plus the latency it has in U, and the
    audited tokens it never got count as lost. `u_charge` (N,), `due` (N,) observations."""
    for q in range(s.num_requests[i]):
        status = s.req_status[i, q]
        if status == Status.DONE or status == Status.CANCELLED:
            continue
        s.tally[i, Tally.LATENCY_CHARGE] += u_charge[q]
        if status == Status.REFUSED or status == Status.FUTURE:  # time in the system that nobody has charged
            s.tally[i, Tally.LATENCY_CHARGE] += ttft_rate(s, i, q) * max(0.0, s.clock_s[i] - s.req_arrival_s[i, q])
        if s.req_audited[i, q] == 1:
            lost = float((due[q] - s.req_observed[i, q]) * s.layers)
            s.req_loss[i, q] += lost
            s.tally[i, Tally.LOSS] += s.class_fidelity[i, s.req_class[i, q]] * lost


@jit
def request_charges(s: Ledger, i: int, out) -> None:  # type: ignore[no-untyped-def]
    """Latency charge of each finished request, c·(TTFT/SLO + TPOT/SLO), into `out` (N,)."""
    for q in range(s.num_requests[i]):
        if s.req_status[i, q] != Status.DONE:
            out[q] = 0.0
            continue
        first, finish = s.req_first_s[i, q], s.req_finish_s[i, q]
        out[q] = ttft_rate(s, i, q) * (first - s.req_arrival_s[i, q]) + tpot_rate(s, i, q) * (finish - first)
