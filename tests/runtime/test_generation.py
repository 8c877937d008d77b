"""`generate`: prompts of any lengths in, completions out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from moe_families import FAMILIES, family_model, prompt_ids
from tiny_model import random_ids, tiny_model

import pikv_runtime as pikv


def stock_tokens(model, ids: np.ndarray, count: int) -> list[int]:
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None}
    return model.generate(torch.from_numpy(ids).long()[None], **options)[0, len(ids) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_on_as_with_the_stock_cache(family):
    model = family_model(family)
    prompts = [prompt_ids(slot, length) for slot, length in enumerate((33, 5, 60))]
    config = pikv.RuntimeConfig(page_tokens=8, max_batch_tokens=24)  # prompts in chunks, beside decoding rows
    done = pikv.generate(model, prompts, max_new_tokens=16, config=config, ranks=2)
    for prompt, completion in zip(prompts, done, strict=True):
        assert completion.ids.tolist() == stock_tokens(model, prompt, 16) and completion.text is None


def test_texts_and_policies():
    model, tokenizer = pikv.load_model("embedded")
    prompts = ["kq=739;ab=120;kq=", "The door is", "kq=739;ab=120;kq="]
    done = pikv.generate("embedded", prompts, policy="lazy/h2o", max_new_tokens=4)
    for prompt, completion in zip(prompts, done, strict=True):
        expected = stock_tokens(model, np.array(tokenizer.encode(prompt)), 4)[: len(completion.ids)]
        assert completion.ids.tolist() == expected
        assert completion.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_a_text_is_cut_where_it_ends(monkeypatch):
    model, ids = tiny_model(), random_ids(3, 20)
    whole = stock_tokens(model, ids, 8)
    for end in (whole[2], [whole[2], 999]):
        monkeypatch.setattr(model.generation_config, "eos_token_id", end)
        (done,) = pikv.generate(model, [ids], max_new_tokens=8)
        assert done.ids.tolist() == whole[: whole.index(whole[2]) + 1]


def test_prompts_wait_for_each_other_under_a_cap(monkeypatch):
    monkeypatch.setattr(tiny_model().generation_config, "eos_token_id", None)
    model, prompts = tiny_model(), [random_ids(s, 60 + 10 * s) for s in range(4)]
    config = pikv.RuntimeConfig(cap_bytes=8 * 4 * 16 * 2 * 2 * 32 * 4)  # 8 blocks: two requests at most
    done = pikv.generate(model, prompts, max_new_tokens=8, config=config)
    for prompt, completion in zip(prompts, done, strict=True):
        assert completion.ids.tolist() == stock_tokens(model, prompt, 8)


def test_mistakes_are_named():
    model = tiny_model()
    with pytest.raises(ValueError, match="prompts='one': wanted a list"):
        pikv.generate(model, "one")
    with pytest.raises(ValueError, match=r"prompt 1 is text, and there is no tokenizer"):
        pikv.generate(model, [[1, 2], "two"])
    with pytest.raises(ValueError, match=r"prompt 0 has shape \(0,\)"):
        pikv.generate(model, [[]])
    with pytest.raises(ValueError, match=r"cap_bytes=70000: too small for prompts 1 \(90 tokens\)"):
        pikv.generate(model, [[1] * 4, [1] * 90], max_new_tokens=4, config=pikv.RuntimeConfig(cap_bytes=70000))


def test_the_readme_says_what_works(capsys):
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = [b.partition("```")[0] for b in text.split("```python\n")[1:]]
    names: dict[str, object] = {}
    for word in ("pikv.generate(", "pikv.attach("):
        (block,) = [b for b in blocks if word in b]
        exec(block, names)
    both = zip(
        names["prompts"], names["tokenizer"].batch_decode(names["output"], skip_special_tokens=True), strict=True
    )
    assert capsys.readouterr().out == "".join(text.removeprefix(prompt) + "\n" for prompt, text in both)
