"""Block rules on the ledger against their papers' text over plain lists, on random traces."""

from __future__ import annotations

import numpy as np
import pytest
from block_rule_references import REFERENCES, Cache, next_use, serve
from ledger_lab import BLOCK_BYTES, LAYERS, PAGE_BYTES, TOKENS, bank, drain, iterate, load, make, request

from pikv_runtime import ledger as lg
from pikv_runtime.block_rules import BLOCK_RULES, Orders, make_block_rule
from pikv_runtime.ledger.rule_room import next_uses, with_orders
from pikv_runtime.ledger.state import RuleCode

ROOM, WIDE, COUNT = 14, 8, 60
BF16_BLOCK = LAYERS * PAGE_BYTES[1]


def trace(seed, count=COUNT, documents=7):
    """(hashes, prompt tokens) of requests that share the beginnings of a few documents, some twice as popular."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        document = int(rng.integers(documents) * rng.random())
        shared, pages = int(rng.integers(0, WIDE)), int(rng.integers(1, WIDE))
        names = [100 * (document + 1) + p if p < shared else 10_000 * (number + 1) + p for p in range(WIDE)]
        found.append((names, pages * TOKENS + int(rng.integers(1, TOKENS))))
    return found


def ledger(rule, seed, room=ROOM, slots=1, gap_s=1.0, **options):
    """A ledger with one request after the other, native pages only: all blocks weigh the same."""
    s = make(
        slots=slots, requests=COUNT, blocks=room + 2 * WIDE, pages=WIDE, codec="native", max_batch_tokens=64, **options
    )
    s.cap_bytes[0] = room * BLOCK_BYTES
    requests = [request(q, prompt, 1, names, gap_s * q, pages=WIDE) for q, (names, prompt) in enumerate(trace(seed))]
    load(s, requests)
    return with_orders(s, 0, Orders(make_block_rule(rule)))


def cached(s):
    return set(s.block_hash[0, np.flatnonzero(s.block_cached[0])].tolist())


def after(s, q):
    """Serve up to the end of request `q`; what is cached then."""
    while s.req_status[0, q] != lg.Status.DONE:  # integrity is checked elsewhere
        if lg.plan(s, 0) == 0:
            lg.advance(s, 0, 0.5)
        else:
            lg.commit(s, 0, lg.price(s, 0))
    return cached(s)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rule", REFERENCES)
def test_queue_rules_do_what_their_papers_say(rule, seed):
    s, reference = ledger(rule, seed), REFERENCES[rule]()
    hit = 0
    for q, (names, prompt) in enumerate(trace(seed)):
        pages, full, lookup = -(-prompt // TOKENS), prompt // TOKENS, (prompt - 1) // TOKENS
        hits = serve(reference, names, full, lookup, lambda hits, pages=pages: pages - hits, ROOM)
        held = after(s, q)
        assert held == set(reference.first) | set(reference.second), f"request {q}"
        assert s.req_hit_tokens[0, q] == hits * TOKENS
        hit += hits
    assert hit > 20 and s.tally[0, lg.Tally.EVICTED_BLOCKS] > 40, "the trace tells nothing"


class Belady(Cache):
    """Furthest next use first, deepest block first among equals."""

    def __init__(self, requests, lookups):
        super().__init__()
        self.requests, self.lookups, self.q = requests, lookups, 0

    def evict(self):
        def order(name):
            # The request being served has looked up already: what it uses next is what the later ones use.
            depth = next(names.index(name) for names in self.requests if name in names)
            return next_use(self.requests, self.q, name, self.lookups), depth

        self.first.remove(max(self.free(self.first), key=order))


@pytest.mark.parametrize("seed", range(6))
def test_belady_evicts_the_block_that_is_used_last(seed):
    requests = trace(seed)
    s = ledger("belady", seed)
    reference = Belady([names for names, _ in requests], [(prompt - 1) // TOKENS for _, prompt in requests])
    for q, (names, prompt) in enumerate(requests):
        reference.q = q
        pages, full, lookup = -(-prompt // TOKENS), prompt // TOKENS, (prompt - 1) // TOKENS
        hits = serve(reference, names, full, lookup, lambda hits, pages=pages: pages - hits, ROOM)
        held = after(s, q)
        assert len(held) == reference.size()
        wanted = [  # who is never used again goes in any order
            {name for name in names if next_use(reference.requests, q, name, reference.lookups) < COUNT}
            for names in (held, reference.first)
        ]
        assert wanted[0] == wanted[1], f"request {q}"
        assert s.req_hit_tokens[0, q] == hits * TOKENS


def test_next_uses_are_lookups_of_the_same_block():
    s = ledger("belady", 3)
    requests = trace(3)
    found = next_uses(s, 0)
    lookups = [(prompt - 1) // TOKENS for _, prompt in requests]
    for q, (names, _) in enumerate(requests):
        wanted = [next_use([n for n, _ in requests], q, name, lookups) for name in names]
        assert found[q].tolist() == [-1 if w == float("inf") else w for w in wanted]


def hits_of(rule, seed, slots=1):
    s = ledger(rule, seed, slots=slots)
    after(s, COUNT - 1)
    return s.tally[0, lg.Tally.HIT_TOKENS]


def test_belady_beats_every_other_rule_in_sum():
    best = sum(hits_of("belady", seed) for seed in range(4))
    for rule in (*REFERENCES, "utility", "tlru"):
        assert sum(hits_of(rule, seed) for seed in range(4)) <= best, rule


def test_tlru_gives_up_what_the_budget_would_recompute_anyway():
    """Two conversations of the same length, the first used earlier: within the budget only deep blocks go, of both,
    before any of their beginnings; LRU takes the whole first one."""
    s = make(slots=1, requests=3, blocks=64, pages=20, codec="native", max_batch_tokens=256)
    a, b = ([1000 * (k + 1) + p for p in range(20)] for k in range(2))
    long = 12 * TOKENS + 1
    requests = [request(q, long, 1, names, 10.0 * q, pages=20) for q, names in enumerate((a, b))]
    requests.append(request(2, 7 * TOKENS + 1, 1, [9000 + p for p in range(20)], 20.0, pages=20))
    s.cap_bytes[0] = 24 * BLOCK_BYTES  # both conversations fit; the third request wants 8 blocks
    load(s, requests)
    # Half of the objective of 2 s at 0.05 s a token: 20 tokens, 5 blocks. One page is expected: 12 + 1 - 5 must stay.
    s.prices[0, lg.Price.PREFILL_TOKEN] = 0.05
    s = with_orders(s, 0, Orders(make_block_rule("tlru:threshold=0.5,next_prompt=1")))
    kept = after(s, 2)
    # history 49 tokens + 4 - 20 = 33 tokens: blocks that begin at 36 or later (9, 10, 11) are safe, of either.
    assert {1009, 1010, 1011, 2009, 2010, 2011}.isdisjoint(kept)
    assert {2000 + p for p in range(9)} <= kept, "the younger conversation keeps what its budget needs"
    assert {1000 + p for p in range(7)} <= kept and not {1007, 1008} & kept, "then plain LRU, deepest first"


@pytest.mark.parametrize("rule", BLOCK_RULES.names())
@pytest.mark.parametrize("ranks", [1, 2])
def test_integrity_holds_with_blocks_in_use_ranks_and_a_host(rule, ranks):
    s = make(slots=3, requests=COUNT, blocks=28, pages=WIDE, ranks=ranks, host_bytes=1, block_rule=rule)
    s.cap_bytes[0], s.host_cap[0] = 10 * BLOCK_BYTES, 2 * BLOCK_BYTES
    requests = [
        request(q, prompt, 3, names, 0.02 * q, content=q % 6, pages=WIDE) for q, (names, prompt) in enumerate(trace(9))
    ]
    load(s, requests)
    s = with_orders(s, 0, Orders(make_block_rule(rule)))
    drain(s, 0, bank(pages=WIDE))  # `iterate` checks the integrity after every step
    assert s.tally[0, lg.Tally.EVICTED_BLOCKS] > 20 and s.tally[0, lg.Tally.HIT_TOKENS] > 0
    assert s.tally[0, lg.Tally.HOST_OUT_BLOCKS] > 0


def test_a_rule_can_take_over_in_the_middle():
    s = ledger("utility", 1, slots=2, gap_s=0.03)
    for rule in ("arc", "tlru", "s3fifo", "utility", "sieve"):
        for _ in range(25):
            iterate(s)
        before = cached(s)
        s = with_orders(s, 0, Orders(make_block_rule(rule)))
        lg.check_integrity(s, 0)
        assert cached(s) == before
    drain(s)


def test_room_is_made_only_for_who_asks():
    s = make()
    sizes = {
        name: getattr(s, name).size for name in ("queue_next", "ghost_key", "block_past", "req_next", "page_future")
    }
    assert not any(sizes.values())
    assert with_orders(s, 0, Orders()) is s
    grown = with_orders(s, 0, Orders(make_block_rule("arc")))
    assert grown is not s and grown.queue_next.size > 0 and grown.block_past.size == 0
    assert np.shares_memory(grown.block_hash, s.block_hash) and with_orders(grown, 0, Orders()) is grown


def test_lanes_follow_rules_of_their_own():
    one = ledger("sieve", 2)
    after(one, COUNT - 1)
    two = make(
        slots=1, requests=COUNT, blocks=ROOM + 2 * WIDE, pages=WIDE, codec="native", max_batch_tokens=64, lanes=2
    )
    two.cap_bytes[:] = ROOM * BLOCK_BYTES
    requests = [request(q, prompt, 1, names, 1.0 * q, pages=WIDE) for q, (names, prompt) in enumerate(trace(2))]
    for lane, rule in enumerate(("utility", "sieve")):
        load(two, requests, lane)
        two = with_orders(two, lane, Orders(make_block_rule(rule)))
    while two.unfinished.max() > 0:
        for lane in (0, 1):
            lg.plan(two, lane)
            lg.commit(two, lane, max(lg.price(two, lane), 0.5))
    assert (
        two.tally[1, [lg.Tally.HIT_TOKENS, lg.Tally.EVICTED_BLOCKS]]
        == one.tally[0, [lg.Tally.HIT_TOKENS, lg.Tally.EVICTED_BLOCKS]]
    ).all()
    assert two.tally[0, lg.Tally.HIT_TOKENS] == hits_of("utility", 2) != one.tally[0, lg.Tally.HIT_TOKENS]


def test_a_cleared_lane_keeps_its_rule_and_forgets_the_rest():
    s = ledger("arc", 4)
    after(s, COUNT - 1)
    before = s.tally[0].copy()
    requests = [request(q, prompt, 1, names, 1.0 * q, pages=WIDE) for q, (names, prompt) in enumerate(trace(4))]
    load(s, requests)
    assert s.block_rule[0] == RuleCode.ARC and s.queue_size[0, 3] == 0
    after(s, COUNT - 1)
    assert (s.tally[0] == before).all()


@pytest.mark.parametrize(
    "spec,message",
    [
        ("siev", "unknown block rule 'siev': did you mean 'sieve'"),
        ("tlru:treshold=1", "unknown parameter of 'tlru' 'treshold': did you mean 'threshold'"),
        ("tlru:threshold=-1", "threshold=-1.0: allowed 0..100"),
        ("tlru:threshold=x", "must be a number"),
        ("lrb:weights=/nowhere.safetensors", "not a readable safetensors file"),
    ],
)
def test_bad_rules_say_what_is_allowed(spec, message):
    with pytest.raises(ValueError, match=message):
        rule = make_block_rule(spec)
        rule.network()
