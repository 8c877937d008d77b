"""Small ledgers, random signals, workloads and controls for the tests of the ledger."""

from __future__ import annotations

import numpy as np

from pikv_runtime import ledger as lg
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import GLOBAL_CONTROLS, GROUP_CONTROLS, Control, GlobalControl, GroupControl, clip_control
from pikv_runtime.ledger.drive import Bank, replay_signals
from pikv_runtime.requests import BATCH, INTERACTIVE, Request

LAYERS, EXPERTS, PAGES, TOKENS, GROUPS = 2, 4, 8, 4, 8
SIZES = (400, 200, 104, 56)  # bytes of a page: native, bf16, int8, int4
GHOST = 8
PAGE_BYTES = tuple(size + GHOST for size in SIZES)  # sparse reading: the centroid counts with the page
BLOCK_BYTES = LAYERS * PAGE_BYTES[0]
PRICES_S = {
    "STEP": 0.01, "PREFILL_TOKEN": 1e-3, "DECODE_TOKEN": 1e-3, "READ_NATIVE": 1e-4, "READ_BF16": 5e-5,
    "READ_INT8": 3e-5, "READ_INT4": 2e-5, "SELECT_PAGE": 1e-6, "ENCODE_PAGE": 1e-5, "LINK_BYTE": 1e-9,
    "COLLECTIVE": 1e-5, "QUERY_BYTES": 64, "HOST_BYTE": 2e-9,
}  # fmt: skip


def make(*, cap=None, ranks=1, slots=4, blocks=64, requests=32, lanes=1, pages=PAGES, **config):
    options = {"codec": "bf16", "read": "sparse", "router": "centroid", "layer_groups": 2, "max_batch_tokens": 32}
    options |= {"observe_tokens": 2, "observe": "first", "page_tokens": TOKENS}
    runtime = RuntimeConfig(cap_bytes=cap, slots=slots, blocks=blocks, **{**options, **config})
    shape = lg.Shape(LAYERS, EXPERTS, SIZES, GHOST)
    s = lg.build(runtime, shape, (INTERACTIVE, BATCH), lanes=lanes, requests=requests, pages=pages, ranks=ranks)
    for name, seconds in PRICES_S.items():
        s.prices[:, lg.Price[name]] = seconds
    return s


def request(number, prompt, output=1, hashes=(), arrival=0.0, kind=0, content=0, pages=PAGES):
    """A request whose block hashes are its own, beyond the prefix `hashes`."""
    own = (number + 1) * 1000 + np.arange(pages, dtype=np.int64)
    own[: len(hashes)] = hashes
    return Request(number, arrival, prompt, output, own, kind, content)


def load(s, requests, lane=0, audit=1.0):
    """A cleared lane with `requests` and a window of one page."""
    lg.clear(s, lane)
    s.control_globals[lane, GlobalControl.WINDOW] = 1
    lg.load_requests(s, lane, requests, audit_seed=0, audit_share=audit)
    return s


def bank(seed=0, contents=6, pages=PAGES):
    """Random signals: tags, codec errors, mass, score."""
    rng = np.random.default_rng(seed)
    mass = rng.dirichlet(np.full(pages, 0.3), (contents, pages * TOKENS, LAYERS)).astype(np.float32)
    errors = np.tile(np.array([0, 0.002, 0.005, 0.08], np.float32), (contents, pages, LAYERS, 1))
    tags = rng.integers(0, EXPERTS, (contents, LAYERS, pages)).astype(np.int8)
    return Bank(tags, errors, mass, np.log(mass + 1e-6))


def workload(rng, count=14, pages=PAGES, documents=3, gap_s=0.1):
    """Requests that share the beginnings of a few documents."""
    requests, at = [], 0.0
    for number in range(count):
        at += float(rng.exponential(gap_s))
        prompt = int(rng.integers(1, pages * TOKENS - 2))
        output = int(rng.integers(1, pages * TOKENS - prompt + 1))
        document = int(rng.integers(documents))
        prefix = 100 * (document + 1) + np.arange(rng.integers(0, min(pages, 90)))
        requests.append(request(number, prompt, output, prefix, at, int(rng.integers(2)), document, pages))
    return requests


def random_control(rng, groups=GROUPS):
    """Any control a policy may come up with, clipped as the runtime clips it."""
    columns = np.array([(c.low, c.high) for c in GLOBAL_CONTROLS], np.float32)
    control = Control.neutral(groups)
    control.globals[:] = rng.uniform(columns[:, 0], columns[:, 1])
    for k, c in enumerate(GROUP_CONTROLS):
        control.groups[:, k] = rng.uniform(c.low, c.high, groups) * rng.integers(0, 2)
    if rng.random() < 0.3:  # extremes
        control.globals[:] = np.where(rng.random(len(columns)) < 0.5, -1e9, 1e9)
        control.groups[:] = np.where(rng.random(control.groups.shape) < 0.5, -1e9, 1e9)
    clip_control(control)
    return control


def put(s, control, lane=0):
    s.control_groups[lane], s.control_globals[lane] = control.groups, control.globals
    lg.apply_control(s, lane)


def steer(s, lane=0, apply=True, *, ratio=1.0, evict=0.0, bias=None, **totals):
    """Put a control into force: neutral but for what is given (globals by their names; the window stays)."""
    control = Control.neutral(s.control_groups.shape[1])
    control.groups[:, GroupControl.COMPRESSION_RATIO] = ratio
    control.groups[:, GroupControl.EVICT_FRACTION] = evict
    if bias is not None:
        control.groups[:, GroupControl.ROUTING_BIAS] = bias
    control.globals[GlobalControl.WINDOW] = s.control_globals[lane, GlobalControl.WINDOW]
    for name, value in totals.items():
        control.globals[GlobalControl[name.upper()]] = value
    s.control_groups[lane], s.control_globals[lane] = control.groups, control.globals
    if apply:
        lg.apply_control(s, lane)


def iterate(s, lane=0, signals=None, dt=0.05):
    """One iteration as the engine makes it. Returns the planned tokens."""
    planned = lg.plan(s, lane)
    if planned == 0:
        lg.advance(s, lane, dt)
        return 0
    if signals is not None:
        replay_signals(s, lane, signals)
    lg.commit(s, lane, lg.price(s, lane))
    lg.check_integrity(s, lane)
    return planned


def iterate_until(s, holds, lane=0, signals=None, limit=2000):
    """Iterate until `holds()`."""
    for _ in range(limit):
        if holds():
            return
        iterate(s, lane, signals)
    raise AssertionError("it never comes to that")


def drain(s, lane=0, signals=None):
    """Run until everybody is served."""
    iterate_until(s, lambda: s.unfinished[lane] <= 0, lane, signals)


def slot_of(s, q, lane=0):
    """Slot that runs request `q`."""
    return int(np.flatnonzero(s.slot_request[lane] == q)[0])


def decodes(s, q, lane=0):
    """Whether request `q` runs and has left prefill."""
    slots = np.flatnonzero(s.slot_request[lane] == q)
    return len(slots) > 0 and bool(s.slot_tokens[lane, slots[0]] >= s.slot_target[lane, slots[0]])


def blocks_of(s, q, lane=0):
    """Block slots that request `q` lists."""
    r = slot_of(s, q, lane)
    return s.page_block[lane, r, : s.slot_pages[lane, r]].copy()


def codecs_of(s, q, lane=0):
    """(pages, L) codec of every page that request `q` lists."""
    return s.block_codec[lane, blocks_of(s, q, lane)].copy()


def pages_of(s, q, lane=0, apart=1, sinks=1):
    """Numbers of the pages of request `q` that are outside its always-on set (window `apart`)."""
    return np.arange(sinks, s.slot_pages[lane, slot_of(s, q, lane)] - 1 - apart)


def bytes_by_group(s, q, lane=0):
    """(stored, dense) bytes (N,) of the resident pages of request `q` outside its always-on set."""
    r = slot_of(s, q, lane)
    stored, dense = np.zeros(GROUPS), np.zeros(GROUPS)
    for p in pages_of(s, q, lane, int(s.control_globals[lane, GlobalControl.WINDOW])):
        block = int(s.page_block[lane, r, p])
        for layer in range(LAYERS):
            if s.page_live[lane, r, layer, p] and s.block_sealed[lane, block]:
                g = int(s.block_tag[lane, block, layer]) * 2 + int(s.layer_group[layer])
                stored[g] += s.codec_bytes[s.block_codec[lane, block, layer]]
                dense[g] += s.bf16_bytes
    return stored, dense
