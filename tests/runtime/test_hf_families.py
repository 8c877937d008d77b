"""Other MoE families than the embedded one: served exactly, or refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from fake_ledger import FakeLedger

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.models import load_model
from pikv_runtime.models.hf import attach
from pikv_runtime.models.runner import ModelRunner

COMMON = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
SUPPORTED = {
    "Mixtral": {"num_local_experts": 4, "sliding_window": None},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 32, "mlp_only_layers": [0]},
    "Olmoe": {"num_experts": 4},
}


def make(family: str, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**COMMON, **options)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


@pytest.mark.parametrize("family", SUPPORTED)
def test_family_is_served_exactly(family):
    model = make(family, **SUPPORTED[family])
    ids = torch.randint(1, 64, (2, 40), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(ids, **options)
    with attach(model) as cache:
        got = model.generate(ids, past_key_values=cache, **options)
        assert [f.page for f in cache.last_result.filled] == []
        assert cache.nbytes()["native"] > 0
    assert torch.equal(got.sequences, expected.sequences)
    assert max((a - b).abs().max() for a, b in zip(got.logits, expected.logits, strict=True)) <= 1e-4


@pytest.mark.parametrize("family", SUPPORTED)
def test_family_is_run_packed(family):
    model = make(family, **SUPPORTED[family])
    prompts = [np.random.default_rng(seed).integers(1, 64, 20 + 7 * seed) for seed in range(3)]
    runner, ledger = ModelRunner(model, RuntimeConfig(blocks=64)), FakeLedger()
    result = runner.forward([ledger.segment(slot, ids) for slot, ids in enumerate(prompts)], ledger.view())
    for slot, ids in enumerate(prompts):
        with torch.no_grad():
            expected = model(torch.from_numpy(ids)[None]).logits[0, -1].argmax()
        assert result.next_tokens[slot] == int(expected)
    assert all((filled.tags >= 0).all() for filled in result.filled)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("Llama", {}, "no layer has a module named"),
        ("Mixtral", {"num_local_experts": 4, "sliding_window": 32}, "sliding-window"),
        ("DeepseekV3", {"n_routed_experts": 4, "n_group": 1, "topk_group": 1}, "separate K and V"),
        ("GptOss", {"num_local_experts": 4, "sliding_window": 32}, "sliding-window"),
        ("GptOss", {"num_local_experts": 4, "layer_types": ["full_attention"] * 4}, "attention sinks"),
    ],
)
def test_what_cannot_be_served_is_refused(family, options, reason):
    if family == "DeepseekV3":
        options = {**options, "first_k_dense_replace": 0, "moe_intermediate_size": 32}
    with pytest.raises(ValueError, match=reason), attach(make(family, **options)):
        pass


def test_unknown_model_is_one_clear_error():
    with pytest.raises(ValueError, match="no model at 'embeded': allowed are 'embedded'"):
        load_model("embeded")


def test_embedded_model_loads_in_fp32():
    model, tokenizer = load_model("embedded")
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert tokenizer("a").input_ids == [97]
