"""Over native pages the runner gives the stock model's logits, however requests are packed and spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_ledger import EXPERTS, LAYERS, PAGE_TOKENS, FakeLedger
from tiny_model import random_ids, stock, tiny_model

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.models.runner import ModelRunner
from pikv_runtime.transport import LocalTransport, TorchDistTransport, run_ranks

LENGTHS = (70, 33, 100)
DECODED = 20
CONFIG = RuntimeConfig(blocks=64)


def scatter(ledger: FakeLedger, slot: int, ranks: int, filled) -> None:
    """Send filled pages to arbitrary ranks, layer by layer."""
    for page in {f.page for f in filled if f.slot == slot}:
        for layer in range(LAYERS):
            ledger.move(slot, page, layer, (slot + 3 * page + 2 * layer) % ranks)


def serve(transport, owners, **options):
    """Chunked prefill, then packed decode, one request joining late.

    Returns the runner and, by slot, logits (tokens, vocabulary) and top experts (L, tokens).
    """
    runner = ModelRunner(tiny_model(), CONFIG, transport)
    ledger = FakeLedger(owners=owners)
    ids = {slot: random_ids(slot, n + DECODED) for slot, n in enumerate(LENGTHS)}
    logits = {slot: [] for slot in ids}
    experts = {slot: [] for slot in ids}
    for step in range(60):
        segments = []
        for slot, length in enumerate(LENGTHS):
            at = int(ledger.tokens[slot])
            if at < length and not (slot == 2 and step < 4):
                segments.append(ledger.segment(slot, ids[slot][at : min(at + 24 + slot, length)]))
            elif length <= at < len(ids[slot]):
                segments.append(ledger.segment(slot, ids[slot][at : at + 1], decode=True))
        if not segments:
            break
        found, result = runner.logits(segments, ledger.view(**options))
        first = 0
        order = sorted(segments, key=lambda s: (s.owner, not s.decode))
        for segment in (s for s in order if s.owner in transport.local_ranks):
            until = first + len(segment.token_ids)
            logits[segment.slot].append(found[first:until])
            experts[segment.slot].append(runner.gates.choices()[:, first:until])
            first = until
        for slot in ids:
            scatter(ledger, slot, transport.world, result.filled)
        for filled in result.filled:
            ledger.block_tag[ledger.page_block[filled.slot, filled.page]] = filled.tags
        runner.apply_events(ledger.drain())
    assert all(ledger.tokens[slot] == len(i) for slot, i in ids.items())
    return runner, *({s: torch.cat(x, d) for s, x in y.items() if x} for y, d in ((logits, 0), (experts, 1)))


def assert_exact(slot: int, logits: torch.Tensor, experts: torch.Tensor | None = None) -> None:
    reference = stock(random_ids(slot, LENGTHS[slot] + DECODED))
    assert (logits - reference.logits[0]).abs().max() <= 1e-4
    if experts is None:
        return
    for layer, gate in enumerate(reference.router_logits):
        top = gate.softmax(-1).topk(2, -1)
        flipped = experts[layer] != top.indices[:, 0]
        gap = (top.values[:, 0] - top.values[:, 1])[flipped]
        assert gap.numel() == 0 or gap.max() < 1e-5


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"sparse": True, "router": "centroid"}, {"sparse": True, "router": "gate"}])
def test_packed_logits_equal_the_stock_cache(ranks, options):
    owners = tuple(slot % ranks for slot in range(4))
    runner, logits, experts = serve(LocalTransport(ranks), owners, **options)
    for slot in range(len(LENGTHS)):
        assert_exact(slot, logits[slot], experts[slot])
    assert all(store.nbytes()["native"] for store in runner.stores.values())
    assert tiny_model().config._attn_implementation != "pikv"


def test_rank_without_requests_serves_others():
    _, logits, _ = serve(LocalTransport(2), (0, 0, 0, 0))
    for slot in range(len(LENGTHS)):
        assert_exact(slot, logits[slot])


def _serve_process(rank: int, world: int, owners, options):
    transport = TorchDistTransport(timeout_s=60)
    _, logits, _ = serve(transport, owners, **options)
    sent = {f"sent_{name}": np.array(count) for name, count in transport.sent_bytes.items()}
    return {**{str(slot): x.numpy() for slot, x in logits.items()}, **sent}


@pytest.mark.distributed
@pytest.mark.parametrize("owners", [(0, 1, 0, 0), (1, 1, 1, 1)])
def test_two_processes_over_gloo(owners):
    tiny_model()
    options = {"sparse": True, "router": "centroid"}
    results = run_ranks(_serve_process, 2, owners, options)
    for slot in range(len(LENGTHS)):
        assert_exact(slot, torch.from_numpy(results[owners[slot]][str(slot)]))
    virtual = LocalTransport(2)
    serve(virtual, owners, **options)
    for name, count in virtual.sent_bytes.items():
        assert count == sum(int(r[f"sent_{name}"]) for r in results), name


def prefilled(ids, ranks: int = 1, others: int = 0, **flags):
    """A runner whose slot 0 holds `ids` (and `others` more requests), by way of one prefill."""
    runner = ModelRunner(tiny_model(), CONFIG, LocalTransport(ranks))
    ledger = FakeLedger()
    segments = [ledger.segment(0, ids, **flags)]
    segments += [ledger.segment(slot, random_ids(90 + slot, 80)) for slot in range(1, 1 + others)]
    result = runner.forward(segments, ledger.view())
    for filled in result.filled:
        ledger.block_tag[ledger.page_block[filled.slot, filled.page]] = filled.tags
    return runner, ledger, result


@pytest.mark.parametrize("page", [0, 2, 3])
def test_evicting_a_page_is_masking_its_positions(page):
    ids = random_ids(7, 70 + 20)
    runner, ledger, _ = prefilled(ids[:70], others=1)
    other = random_ids(91, 100)
    for layer in range(LAYERS):
        ledger.evict(0, page, layer)
    runner.apply_events(ledger.drain())
    logits = []
    for t in range(20):
        segments = [
            ledger.segment(0, ids[70 + t : 71 + t], decode=True),
            ledger.segment(1, other[80 + t : 81 + t], decode=True),
        ]
        found, _ = runner.logits(segments, ledger.view())
        logits.append(found)
    mask = torch.full((90, 90), -torch.inf).triu(1)
    mask[70:, page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS] = -torch.inf
    expected = stock(ids, mask[None, None]).logits[0, 70:]
    assert (torch.stack(logits)[:, 0] - expected).abs().max() <= 1e-4
    assert (expected - stock(ids).logits[0, 70:]).abs().max() > 1e-2  # the page mattered
    joined = np.concatenate([random_ids(91, 80), other[80:]])
    assert (torch.stack(logits)[:, 1] - stock(joined).logits[0, 80:]).abs().max() <= 1e-4


def test_tags_are_the_majority_of_top_experts_and_pages_land_right():
    ids = random_ids(8, 75)
    runner, ledger, result = prefilled(ids[:40])
    filled = list(result.filled)
    for t in range(40, 75):
        filled += runner.forward([ledger.segment(0, ids[t : t + 1], decode=True)], ledger.view()).filled
    assert [f.page for f in filled] == [0, 1, 2, 3]
    gates = torch.stack(stock(ids).router_logits).argmax(-1)
    for f in filled:
        for layer in range(LAYERS):
            counts = np.bincount(gates[layer, f.page * PAGE_TOKENS : (f.page + 1) * PAGE_TOKENS], minlength=EXPERTS)
            assert f.tags[layer] == counts.argmax()
        assert (np.diff(f.errors, axis=1) > 0).all()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("audited", [True, False])
def test_observed_mass_is_the_models_attention(ranks, audited):
    ids = random_ids(9, 71)
    runner, ledger, result = prefilled(ids[:70], ranks, audited=audited)
    scatter(ledger, 0, ranks, result.filled)
    runner.apply_events(ledger.drain())
    segment = ledger.segment(0, ids[70:], decode=True, observe=True, audited=audited)
    (seen,) = runner.forward([segment], ledger.view()).observations
    for layer, attention in enumerate(stock(ids, attentions=True).attentions):
        share = torch.nn.functional.pad(attention[0, :, -1].mean(0), (0, 9)).view(-1, PAGE_TOKENS).sum(1)
        assert np.allclose(seen.mass[layer, :5], share, atol=1e-5)
    assert not seen.mass[:, 5:].any() and np.ptp(seen.score[:, :4], axis=1).all()
    assert np.allclose(seen.gate.sum(1), 1, atol=1e-5)


def test_audit_sees_what_was_evicted_and_others_do_not():
    ids = random_ids(9, 71)
    masses = []
    for audited in (True, False):
        runner, ledger, _ = prefilled(ids[:70], audited=audited)
        ledger.evict(0, 1, 0)
        runner.apply_events(ledger.drain())
        segment = ledger.segment(0, ids[70:], decode=True, observe=True, audited=audited)
        (seen,) = runner.forward([segment], ledger.view()).observations
        masses.append(seen.mass[0])
        assert seen.score[0, 1] != 0  # the ghost keeps its centroid
    assert masses[0][1] > 0 and masses[1][1] == 0
    assert np.allclose([m.sum() for m in masses], 1, atol=1e-5)
    runner.drop_shadow(0)
    assert runner.shadows.nbytes == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_prefix_hits_are_read_where_they_are(ranks):
    ids = random_ids(5, 90)
    runner, ledger, result = prefilled(ids[:70], ranks)
    scatter(ledger, 0, ranks, result.filled)
    runner.apply_events(ledger.drain())
    ledger.share(0, 1, 4)
    tail = np.concatenate([ids[:64], random_ids(6, 26)])
    found, _ = runner.logits([ledger.segment(1, tail[64:-1], audited=True)], ledger.view())
    reference = stock(tail, attentions=True)
    assert (found - reference.logits[0, 64:-1]).abs().max() <= 1e-4
    segment = ledger.segment(1, tail[-1:], decode=True, observe=True, audited=True)
    (seen,) = runner.forward([segment], ledger.view()).observations
    assert np.allclose(seen.mass.sum(1), 1, atol=1e-5)
    share = reference.attentions[0][0, :, -1, :64].mean(0).view(4, PAGE_TOKENS).sum(1)
    assert np.allclose(seen.mass[0, :4], share, atol=1e-5)
    if ranks > 1:
        assert runner.transport.sent_bytes["prefill_query"] > 0


def test_sparse_reads_fewer_pages_by_score():
    ids = random_ids(4, 201)
    runner, ledger, _ = prefilled(ids[:200])
    view = ledger.view(sparse=True, router="centroid", fan_out=0.3)
    segment = ledger.segment(0, ids[200:], decode=True, observe=True)
    (seen,) = runner.forward([segment], view).observations
    for layer in range(LAYERS):
        read = np.flatnonzero(seen.mass[layer])
        others = np.arange(1, 10)  # 13 pages: sink 0, window 10 and 11, open 12
        best = others[np.argsort(-seen.score[layer, others], kind="stable")[:3]]
        assert set(read) == {0, 10, 11, 12, *best}


def test_routing_bias_moves_the_read_set():
    ids = random_ids(4, 201)
    runner, ledger, _ = prefilled(ids[:200])
    bias = np.zeros((EXPERTS, LAYERS), np.float32)
    wanted = ledger.block_tag[ledger.page_block[0, 4], 0]
    bias[wanted, 0] = 100.0
    view = ledger.view(sparse=True, router="centroid", fan_out=0.1, routing_bias=bias)
    segment = ledger.segment(0, ids[200:], decode=True, observe=True)
    (seen,) = runner.forward([segment], view).observations
    (chosen,) = set(np.flatnonzero(seen.mass[0])) - {0, 10, 11, 12}
    assert ledger.block_tag[ledger.page_block[0, chosen], 0] == wanted


def test_segments_that_do_not_fit_the_ledger_are_refused():
    runner, ledger, _ = prefilled(random_ids(1, 20))
    segment = ledger.segment(0, random_ids(2, 30))
    ledger.page_block[0, 2] = -1
    with pytest.raises(ValueError, match="slot 0: the ledger has not placed"):
        runner.forward([segment], ledger.view())
