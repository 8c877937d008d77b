"""Models of other families than the embedded one through `attach` and the packed runner, or refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_ledger import FakeLedger
from moe_families import FAMILIES, LATENT, LAYERS, SINKS, SLIDING, WINDOW, family_model, make, prompt_ids

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.ledger.state import CODECS
from pikv_runtime.models.hf import attach
from pikv_runtime.models.runner import ModelRunner, geometry_of_model

GREEDY = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
GREEDY |= {"return_dict_in_generate": True, "output_logits": True}


def padded(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts with padding on the left, and their mask."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.from_numpy(prompt_ids(row, length)).long()
        mask[row, -length:] = 1
    return ids, mask


@pytest.mark.parametrize("family", FAMILIES)
def test_attach_serves_padded_batches_exactly(family):
    model = family_model(family)
    ids, mask = padded((40, 7, 29))
    expected = model.generate(ids, attention_mask=mask, **GREEDY)
    with attach(model) as cache:
        got = model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
        assert cache.nbytes()["native"] > 0
    assert torch.equal(got.sequences, expected.sequences)
    assert max((a - b).abs().max() for a, b in zip(got.logits, expected.logits, strict=True)) <= 1e-4


@pytest.mark.parametrize("family", sorted(SLIDING | SINKS | LATENT))
def test_sealed_pages_of_lower_codecs_stay_close(family):
    """Codecs, centroids and sparse reading work on every kind of attention: errors stay what a codec costs."""
    model, ids = family_model(family), torch.from_numpy(prompt_ids(0, 90)).long()[None]
    options = {**GREEDY, "max_new_tokens": 12}
    expected = model.generate(ids, **options)
    config = RuntimeConfig(page_tokens=8, codec="bf16", read="sparse", router="centroid", interval_s=0.001)
    for policy, codec, bound in (("static/lru", "bf16", 0.1), ("static:ratio=1.6/lru", "int8", 0.5)):
        with attach(model, config, policy) as cache:
            got = model.generate(ids, past_key_values=cache, **options)
            stored = cache.nbytes()
        first = (got.logits[0] - expected.logits[0]).abs().max()
        last = (got.logits[1] - expected.logits[1]).abs().max()
        assert first <= 1e-4  # prefill reads native pages
        assert 0 < last < bound, (policy, last)
        assert stored[codec] > 0


def stored_bytes(family: str, latent: bool, codec: str) -> int:
    """Bytes of one page of 16 tokens, from its tensors."""
    runner = ModelRunner(family_model(family), RuntimeConfig(latent=latent), blocks=4)
    return runner.stores[0].page_bytes(CODECS.index(codec))


@pytest.mark.parametrize(("latent", "numbers"), [(True, 16 + 8), (False, 4 * (20 + 10))])
def test_bytes_of_latent_pages_are_those_of_their_tensors(latent, numbers):
    model = family_model("deepseek-v3")
    assert stored_bytes("deepseek-v3", latent, "native") == numbers * 16 * 4
    geometry = geometry_of_model(model, latent)
    for codec in CODECS:
        assert geometry.page_bytes(codec, 16) == stored_bytes("deepseek-v3", latent, codec)
    assert geometry.kv_token_bytes() == LAYERS * numbers * 4
    runner = ModelRunner(model, RuntimeConfig(latent=latent, blocks=64))
    ledger = FakeLedger()
    runner.forward([ledger.segment(0, prompt_ids(0, 32))], ledger.view())
    assert runner.nbytes()[0]["native"] == 2 * LAYERS * stored_bytes("deepseek-v3", latent, "native")
    assert geometry.centroid_bytes() == runner.centroids.nbytes_page


@pytest.mark.parametrize("family", sorted(SLIDING))
@pytest.mark.parametrize("ranks", [1, 2])
def test_pages_before_a_window_are_never_read(family, ranks):
    """They may even be gone: logits and observed mass of the sliding layers stay what they were."""
    from pikv_runtime.transport import LocalTransport

    model, ids = family_model(family), prompt_ids(3, 72)
    runner = ModelRunner(model, RuntimeConfig(page_tokens=8, blocks=64), LocalTransport(ranks))
    ledger = FakeLedger(page_tokens=8)
    result = runner.forward([ledger.segment(0, ids[:70])], ledger.view())
    for filled in result.filled:
        for layer in range(LAYERS):
            ledger.move(0, filled.page, layer, (filled.page + layer) % ranks)
    runner.apply_events(ledger.drain())
    windows = runner.geometry.windows
    assert set(windows) <= {0, WINDOW} and any(windows)
    before, _ = runner.logits([ledger.segment(0, ids[70:71], decode=True)], ledger.view())
    hidden = (71 - WINDOW) // 8  # pages that lie before the window of position 71
    for layer in (i for i, window in enumerate(windows) if window):
        for page in range(hidden):
            ledger.evict(0, page, layer)
    runner.apply_events(ledger.drain())
    segment = ledger.segment(0, ids[71:], decode=True, observe=True)
    after, found = runner.logits([segment], ledger.view())
    with torch.no_grad():
        stock = model(torch.from_numpy(ids).long()[None]).logits[0]
    assert (before[0] - stock[70]).abs().max() <= 1e-4
    assert (after[0] - stock[71]).abs().max() <= 1e-4
    (seen,) = found.observations
    for layer, window in enumerate(windows):
        assert seen.mass[layer].sum() == pytest.approx(1, abs=1e-5)  # of what KV gets: a sink's share is no page's
        assert (seen.mass[layer, :hidden].sum() > 0) == (window == 0)


@pytest.mark.parametrize("audited", [True, False])
def test_observed_mass_in_windows_is_the_models_attention(audited):
    model, ids = family_model("mixtral-window"), prompt_ids(4, 61)
    runner, ledger = ModelRunner(model, RuntimeConfig(page_tokens=8, blocks=64)), FakeLedger(page_tokens=8)
    runner.forward([ledger.segment(0, ids[:60], audited=audited)], ledger.view())
    segment = ledger.segment(0, ids[60:], decode=True, observe=True, audited=audited)
    (seen,) = runner.forward([segment], ledger.view()).observations
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(torch.from_numpy(ids).long()[None], output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    for layer, attention in enumerate(attentions):
        share = torch.nn.functional.pad(attention[0, :, -1].mean(0), (0, 3)).view(-1, 8).sum(1)
        assert np.allclose(seen.mass[layer, :8], share, atol=1e-5)


def test_sparse_reads_in_windows_spend_no_read_on_what_is_hidden():
    model, ids = family_model("mixtral-window"), prompt_ids(5, 121)
    runner, ledger = ModelRunner(model, RuntimeConfig(page_tokens=8, blocks=64)), FakeLedger(page_tokens=8)
    runner.forward([ledger.segment(0, ids[:120])], ledger.view())
    view = ledger.view(sparse=True, router="centroid", fan_out=0.1, window_pages=1)
    (seen,) = runner.forward([ledger.segment(0, ids[120:], decode=True, observe=True)], view).observations
    for layer in range(LAYERS):
        hidden, visible = seen.score[layer, 1:12], seen.score[layer, 12:14]  # the window of 24 begins in page 12
        assert hidden.max() < visible.min()
        # Two of 13 candidates are read: those that are visible beside the always-on set, 12 and 13.
        assert set(np.flatnonzero(seen.mass[layer])) == {12, 13, 14, 15}


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("Llama", {}, "no layer has a module named"),
        ("Mixtral", {"num_local_experts": 200}, "200 experts: allowed are at most 128"),
        (
            "GptOss",
            {"num_local_experts": 4, "layer_types": ["full_attention", "chunked_attention"] * 2},
            "chunked_attention layers are not supported",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(family, options, reason):
    with pytest.raises(ValueError, match=reason), attach(make(family, **options)):
        pass
