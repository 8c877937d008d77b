"""`attach`: one line around `model.generate`, with any policy, undone on exit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_model import random_ids, tiny_model

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, GlobalControl, GroupControl
from pikv_runtime.models.hf import attach

GREEDY = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
BLOCK_BYTES = 4 * 16 * 2 * 2 * 32 * 4
"""Of 16 tokens in 4 layers: K and V of 2 heads of 32 channels in fp32."""


def batch(rows: int = 3, tokens: int = 50) -> torch.Tensor:
    return torch.from_numpy(np.stack([random_ids(s, tokens) for s in range(rows)])).long()


def furthest(got, expected) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(got.logits, expected.logits, strict=True))


def test_generates_what_the_stock_cache_does_and_leaves_no_trace():
    model, ids = tiny_model(), batch()
    expected = model.generate(ids, max_new_tokens=40, **GREEDY)
    before = model.config._attn_implementation
    with attach(model) as cache:
        for _ in range(2):
            got = model.generate(ids, past_key_values=cache, max_new_tokens=40, **GREEDY)
            assert torch.equal(got.sequences, expected.sequences) and furthest(got, expected) <= 1e-4
            assert cache.nbytes()["native"] == 3 * 6 * BLOCK_BYTES  # 89 tokens: the last one is never fed back
            cache.reset()
            assert cache.nbytes() == {}
    assert model.config._attn_implementation == before
    assert not model.base_model._forward_hooks and not model.base_model.layers[0]._forward_pre_hooks
    assert torch.equal(model.generate(ids, max_new_tokens=40, **GREEDY).sequences, expected.sequences)


def test_a_conversation_goes_on_in_the_same_pages():
    from transformers import DynamicCache

    model, ids = tiny_model(), batch(rows=2, tokens=30)
    more, stock = torch.from_numpy(np.stack([random_ids(7, 21), random_ids(8, 21)])).long(), DynamicCache()
    with attach(model) as cache:
        answers = []
        for past in (cache, stock):
            if past is stock:
                model.config._attn_implementation = "sdpa"
            first = model.generate(ids, past_key_values=past, max_new_tokens=10, **GREEDY)
            asked = torch.cat([first.sequences, more], dim=1)
            answers.append(model.generate(asked, past_key_values=past, max_new_tokens=10, **GREEDY))
        assert torch.equal(*(a.sequences for a in answers)) and furthest(*answers) <= 1e-4
        model.config._attn_implementation = "pikv"


def test_a_prompt_may_come_in_chunks():
    model, ids = tiny_model(), batch(rows=2, tokens=45)
    with torch.no_grad(), attach(model) as cache:
        parts = [model(ids[:, a:b], past_key_values=cache).logits for a, b in ((0, 17), (17, 33), (33, 34), (34, 45))]
    with torch.no_grad():
        assert (torch.cat(parts, dim=1) - model(ids).logits).abs().max() <= 1e-4


def test_a_policy_decides_what_is_kept():
    model, ids = tiny_model(), batch(tokens=150)
    config = RuntimeConfig(codec="bf16", read="sparse", router="centroid", interval_s=0.001)
    sizes, calls = {}, []

    def halve(telemetry) -> Control:
        calls.append(float(telemetry.globals.sum()))
        control = Control.neutral(len(telemetry.groups))
        control.groups[:, GroupControl.COMPRESSION_RATIO] = 2.0
        return control

    fixed = Control.neutral(32)
    fixed.globals[GlobalControl.WINDOW], fixed.globals[GlobalControl.FAN_OUT] = 1, 0.25
    policies = {
        "nothing": None, "spec": "static:ratio=3,evict=0.2/h2o", "function": halve, "control": fixed,
        "bundle": "trained_policies/balance-1.0",
    }  # fmt: skip
    for name, policy in policies.items():
        with attach(model, config, policy) as cache:
            model.generate(ids, past_key_values=cache, max_new_tokens=40, **GREEDY)
            sizes[name] = sum(cache.nbytes().values())
            assert len(cache.engine.control_log) > 1
    assert sizes["nothing"] < 3 * 12 * BLOCK_BYTES  # sealed pages are bf16
    assert sizes["spec"] < sizes["function"] < sizes["nothing"]
    assert len(set(calls)) > 1  # telemetry moves
    assert sizes["control"] <= sizes["nothing"]


def test_a_fan_out_below_one_reads_less_and_shows():
    model, ids = tiny_model(), batch(rows=1, tokens=200)
    config = RuntimeConfig(read="sparse", router="centroid", window_pages=1)
    expected = model.generate(ids, max_new_tokens=6, **GREEDY)
    for fan_out, exact in ((1.0, True), (0.2, False)):
        with attach(model, config, f"static:fan_out={fan_out},window=1/lru") as cache:
            got = model.generate(ids, past_key_values=cache, max_new_tokens=6, **GREEDY)
        assert (furthest(got, expected) <= 1e-4) == exact


def test_a_cap_holds_where_the_policy_makes_room_and_is_an_error_where_it_does_not():
    model, ids, cap = tiny_model(), batch(tokens=100), 3 * 9 * BLOCK_BYTES
    config = RuntimeConfig(codec="bf16", cap_bytes=cap)
    with attach(model, config, "lazy/h2o") as cache:
        most = 0
        for _ in range(2):
            model.generate(ids, past_key_values=cache, max_new_tokens=100, **GREEDY)
            most = max(most, sum(cache.nbytes().values()))
            cache.reset()
        assert 0.5 * cap < most <= cap
    with attach(model, RuntimeConfig(cap_bytes=cap)) as cache, pytest.raises(ValueError, match="a batch cannot wait"):
        model.generate(ids, past_key_values=cache, max_new_tokens=100, **GREEDY)
    with (
        attach(model, RuntimeConfig(cap_bytes=1000)) as cache,
        pytest.raises(ValueError, match="cap_bytes=1000 has room"),
    ):
        model.generate(ids, past_key_values=cache, max_new_tokens=1, **GREEDY)


def test_what_cannot_be_done_is_one_clear_error():
    model, ids = tiny_model(), batch(rows=2, tokens=20)
    with attach(model) as cache:
        with pytest.raises(ValueError, match="past_key_values=cache"):
            model(ids)
        for holes in ([0, 1, 0], [1, 1, 0]):
            mask = torch.ones_like(ids)
            mask[0, :3] = torch.tensor(holes)
            with pytest.raises(ValueError, match="padding must be on the left"):
                model(ids, attention_mask=mask, past_key_values=cache)
        with torch.no_grad():
            model(ids, past_key_values=cache)
        with pytest.raises(ValueError, match="batch of 1 on a cache of 2"):
            model(ids[:1], past_key_values=cache)
        mask = torch.ones(2, 21, dtype=torch.long)
        mask[0, 0] = 0
        with pytest.raises(ValueError, match=r"padding changed from \[0, 0\] to \[1, 0\]"):
            model(ids[:, :1], attention_mask=mask, past_key_values=cache)
    with attach(model, RuntimeConfig(blocks=4)) as cache, pytest.raises(ValueError, match="blocks=4 has room for 30"):
        model(batch(rows=2, tokens=40), past_key_values=cache)
    with pytest.raises(ValueError, match="did you mean 'h2o'"), attach(model, policy="lazy/h20"):
        pass
    with pytest.raises(ValueError, match="Control of 8 groups, this model and config have 32"):
        attach(model, policy=Control.neutral(8)).__enter__()
    with attach(model) as cache, pytest.raises(ValueError, match="beam search"):
        model.generate(ids, past_key_values=cache, num_beams=2, max_new_tokens=3)
    assert not model.base_model.layers[0]._forward_pre_hooks  # even after passes that failed


def test_hooks_go_when_a_pass_fails():
    model, ids = tiny_model(), batch(rows=1, tokens=8)
    with attach(model) as cache:
        with pytest.raises(IndexError), torch.no_grad():
            model(ids + 10_000, past_key_values=cache)
        cache.reset()
        with torch.no_grad():
            model(ids, past_key_values=cache)
    assert not model.base_model.layers[0]._forward_pre_hooks
