"""The arrays of a ledger: sizes and memory layout. What they mean stands in `state.py`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.contract import BLOCK_WEIGHTS, CLASSES, GLOBAL_CONTROLS, GROUP_CONTROLS
from pikv_runtime.ledger.rule_room import rule_arrays
from pikv_runtime.ledger.state import CODECS, I1, NO_CAP, Price, Tally

CACHE_LINE = 64  # bytes
GROUP_SUMS = 8  # columns, see sums.py


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
    copies: int = 1
    twins: bool = False

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
        "shard_home": np.zeros((n, g, d.experts + 1, d.layer_groups), np.int8),
        "shard_load": np.zeros((n, d.groups)),
        "shard_twin": np.full((n, d.groups), -1, np.int8),
        "since_rebalance": np.zeros(n, np.int32),
        "copy_bytes": np.zeros((n, g), np.int64),
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
        "group_sums": np.zeros((n, d.groups, GROUP_SUMS), np.int64),
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
        "slot_parts": np.zeros(slot, np.int64),
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
        *((name, np.int32, ()) for name in ("users", "uses", "children", "depth", "length")),
        ("last_s", np.float64, ()),
        ("order", np.int64, ()),  # up to here is what ordering all victims anew looks at
        ("refs", np.int32, (layers,)),
        *((name, np.int64, ()) for name in ("hash", "parent", "serial", "linked")),
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
        "block_copies": np.zeros((n, b if d.copies > 1 or d.twins else 0, d.layers), np.int64),
        "block_also": np.full((n, b if d.copies > 1 else 0, d.layers, d.copies - 1), -1, np.int8),
        "host_order": np.zeros((n, 2 * b if d.host else 0), np.int64),
        "host_value": np.zeros((n, 2 * b if d.host else 0)),
    }


def allocate(d: Dims) -> dict[str, NDArray]:
    """All lane arrays of a ledger of size `d`, zeroed; `setup.py` fills them."""
    return {**_lane_arrays(d), **_request_arrays(d), **_slot_arrays(d), **_block_arrays(d), **rule_arrays(d.lanes)}
