"""Folding: a recorded layer for f layers, a recorded token for s tokens; the model clock must agree with unfolded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from trace_kit import SMALL, library, neutral_controls

import pikv_env
from pikv_env.batch import TraceBatch
from pikv_env.builtin import make_config
from pikv_env.folding import Folding
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.ledger import build, load_requests
from pikv_runtime.ledger.drive import Bank, run_interval
from pikv_runtime.ledger.state import Price, Tally
from pikv_runtime.profiles import load_geometry, load_profile
from pikv_runtime.requests import BATCH, INTERACTIVE, Request

QWEN = load_geometry("qwen3-30b-a3b")
CONFIG = RuntimeConfig(slots=4, blocks=2048, max_batch_tokens=64, codec="bf16")


def serve(folding: Folding, scale: int = 1, count: int = 2) -> np.ndarray:
    """Tally of `count` requests served to the end under folded prices; their tokens times `scale`."""
    prices = folding.fold(load_profile("h100-nvlink8").prices(folding.geometry, ranks=2))
    requests = [
        Request(i, 0.0, 512 * scale, 32 * scale + 1, np.arange(1, 34 * scale) + 1000 * i, content=-1)
        for i in range(count)
    ]
    pages = (512 + 48) * scale // 16 + 1
    classes = (INTERACTIVE, BATCH)
    s = build(CONFIG, folding.shape(16), classes, requests=count, pages=pages, ranks=2)
    s.prices[0] = prices
    load_requests(s, 0, requests, audit_seed=0, audit_share=0.0)
    bank = Bank.empty(folding.layers, pages)
    while not run_interval(s, 0, bank, 1e9):
        pass
    return s.tally[0].copy()


def test_folded_layers_cost_what_the_layers_cost():
    geometry = replace(QWEN, layers=12, moe_layers=12)
    whole, folded = serve(Folding(geometry, 12, 128)), serve(Folding(geometry, 4, 128))
    assert whole[Tally.ENCODED_PAGES] == 3 * folded[Tally.ENCODED_PAGES] > 0
    for part in Tally:
        if part not in (Tally.ENCODED_PAGES, Tally.ASKED, Tally.VETOES):
            np.testing.assert_allclose(folded[part], whole[part], rtol=1e-9, err_msg=part.name)


def test_scaled_tokens_cost_what_the_tokens_cost():
    geometry, s = replace(QWEN, layers=4, moe_layers=4), 4
    whole, folded = serve(Folding(geometry, 4, 128), s, 1), serve(Folding(geometry, 4, 128, s), 1, 1)
    assert whole[Tally.ITERATIONS] == s * folded[Tally.ITERATIONS]
    for part in (Tally.PREFILL_S, Tally.WEIGHTS_S, Tally.LINK_S):
        np.testing.assert_allclose(folded[part], whole[part], rtol=1e-9, err_msg=part.name)
    # An open page counts whole: at 32 to 34 pages of context half a page too much, on average.
    assert folded[Tally.ATTENTION_S] == pytest.approx(whole[Tally.ATTENTION_S], rel=0.03)
    assert folded[Tally.PEAK_BYTES] == pytest.approx(whole[Tally.PEAK_BYTES], rel=0.03)


def test_bytes_and_classes_carry_the_factors():
    fold = Folding(QWEN, 4, 8, 32)
    assert fold.depth == 12
    one, many = QWEN.shape(16), fold.shape(16)
    assert many.codec_bytes == tuple(12 * 32 * size for size in one.codec_bytes)
    assert 4 * many.codec_bytes[0] == 16 * 32 * QWEN.kv_token_bytes()
    assert (many.layers, many.experts) == (4, 8)
    assert fold.service_class(INTERACTIVE).slo_tpot_s == 32 * INTERACTIVE.slo_tpot_s
    assert fold.service_class(INTERACTIVE).slo_ttft_s == INTERACTIVE.slo_ttft_s


def test_layers_that_do_not_divide_keep_their_bytes_to_rounding():
    for name, paged in (("deepseek-v3", 61), ("gpt-oss-120b", 18)):
        g = load_geometry(name)
        fold = Folding(g, 4, 8)
        for size, folded in zip(g.shape(16).codec_bytes, fold.shape(16).codec_bytes, strict=True):
            assert abs(4 * folded - paged * size) <= 2


def test_nothing_changes_without_folding():
    embedded = load_geometry("embedded")
    fold, row = Folding(embedded, 4, 8), load_profile("cpu-gloo").prices()
    np.testing.assert_array_equal(fold.fold(row), row)
    assert fold.shape(16) == embedded.shape(16) and not fold.what_if and "as recorded" in fold.label()


def test_wrong_foldings_are_refused():
    with pytest.raises(ValueError, match="8 layers and 8 experts; geometry 'embedded' has 4 layers"):
        Folding(load_geometry("embedded"), 8, 8)
    with pytest.raises(ValueError, match="token_scale=0"):
        make_config(token_scale=0)
    with pytest.raises(ValueError, match="ranks=200"):
        make_config(ranks=200)
    with pytest.raises(ValueError, match="load_of='space'"):
        make_config(load_of="space")


@pytest.fixture(scope="module")
def gpu() -> TraceBatch:
    fields = {**SMALL, "horizon_s": 200.0, "load": 0.5, "pressure": 1.0, "families": ("facts-poisson", "copy-onoff")}
    config = make_config(profile="h100-nvlink8", geometry="qwen3-30b-a3b", token_scale=8, ranks=2, **fields)
    return TraceBatch(library(), config, 2)


def test_a_gpu_profile_makes_a_playable_environment(gpu):
    for i in range(2):
        gpu.reset_lane(i, workload=i)
        prepared = gpu.prepared(i)
        residence = float(prepared.reference.latency)
        assert residence > 0 and gpu.state.cap_bytes[i] > prepared.floor_bytes, "the pressure is the asked one"
    total = np.zeros(2)
    while not gpu.done.all():
        neutral_controls(gpu)
        total += gpu.step()
    iterations = gpu.state.tally[:, Tally.ITERATIONS] / gpu.elapsed
    assert (iterations > 2).all() and (iterations < 120).all()
    for i in range(2):
        score = gpu.score(i)
        assert total[i] == pytest.approx(-score.J, rel=1e-6) and 0.9 < score.latency < 50 and 0 < score.memory < 2


def test_load_of_a_gpu_is_a_share_of_slots(gpu):
    assert gpu.pool.load_of == "slots"
    occupied = []
    for prepared in gpu.pool.prepared:
        busy = prepared.reference.busy_share
        assert busy <= 1.0
        occupied.append(prepared.reference.live_bytes_mean)
    time = TraceBatch(library(), replace(gpu.config, load_of="time"), 1).pool
    assert time.load_of == "time"
    assert np.mean([len(p.workload.requests) for p in gpu.pool.prepared]) > np.mean(
        [len(p.workload.requests) for p in time.prepared]
    )
    assert min(occupied) > 0


def test_what_ifs_say_so(gpu):
    env = pikv_env.TraceEnv(library(), pool=gpu.pool, config=gpu.config)
    _, info = env.reset(seed=0)
    assert info["what_if"].startswith("what-if: traces of 4 layers") and "not evidence" in info["what_if"]
    assert "1 recorded token = 8 tokens" in info["what_if"]
    plain = pikv_env.TraceEnv(library(), **{**SMALL, "workloads": 1})
    assert "what_if" not in plain.reset(seed=0)[1]


def test_powers_cover_every_price():
    ones = Folding(replace(QWEN, layers=8), 4, 8, 3).fold(np.ones(len(Price)))
    found = {p.name: ones[p] for p in Price}
    assert found["STEP"] == found["DECODE_TOKEN"] == found["PREFILL_TOKEN"] == 3 and found["PREFILL_PAIR"] == 9
    assert found["READ_INT4"] == found["SELECT_PAGE"] == 18 and found["ENCODE_PAGE"] == found["QUERY_BYTES"] == 6
    assert found["COLLECTIVE"] == 6 and found["LINK_BYTE"] == found["DECISION"] == 1
