"""Models by path: any causal MoE folder, with or without a tokenizer, on a device and in a dtype of one's choice."""

from __future__ import annotations

import json

import pytest
import torch
from moe_families import family_model, make, prompt_ids

import pikv_runtime as pikv
from pikv_runtime.__main__ import main
from pikv_runtime.models import EMBEDDED, load_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a tiny DeepSeek-V3 and no tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    family_model("deepseek-v3").save_pretrained(folder)
    return folder


def test_a_saved_model_serves_as_it_did(saved):
    model, tokenizer = load_model(str(saved))
    assert tokenizer is None and not model.training
    ids = torch.from_numpy(prompt_ids(0, 20)).long()[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, family_model("deepseek-v3")(ids).logits)
    done = [pikv.generate(m, [prompt_ids(0, 20)], max_new_tokens=6)[0].ids.tolist() for m in (model, str(saved))]
    assert done[0] == done[1]


@pytest.mark.parametrize(
    ("flag", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.float32)]
)
def test_dtype_is_that_of_weights_and_native_pages(saved, flag, dtype):
    model, _ = load_model(str(saved), device="auto", dtype=flag)
    assert {p.dtype for p in model.parameters()} == {dtype}
    with torch.no_grad(), pikv.attach(model) as cache:
        model(torch.from_numpy(prompt_ids(0, 16)).long()[None].to(model.device), past_key_values=cache)
        assert cache.nbytes()["native"] == 4 * 16 * (16 + 8) * dtype.itemsize


def test_embedded_model_loads_in_fp32():
    model, tokenizer = load_model("embedded")
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert tokenizer("a").input_ids == [97]


def test_mistakes_are_one_clear_error(saved, tmp_path):
    with pytest.raises(ValueError, match="no model at 'embeded': allowed are 'embedded'"):
        load_model("embeded")
    with pytest.raises(ValueError, match="unknown device 'cud': did you mean 'cuda'"):
        load_model(str(saved), device="cud")
    with pytest.raises(ValueError, match="unknown dtype 'float23': did you mean 'float32'"):
        load_model(str(saved), dtype="float23")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no CUDA device"):
            load_model(str(saved), device="cuda")
    make("Llama").save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"dense cannot be loaded: not a Mixture-of-Experts model"):
        load_model(str(tmp_path / "dense"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    with pytest.raises(ValueError, match="BertModel is no causal language model"):
        load_model(str(tmp_path / "other"))
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "nobody-knows"}))
    with pytest.raises(ValueError, match=r"other cannot be loaded: .*nobody-knows"):
        load_model(str(tmp_path / "other"))
    family_model("mixtral").save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="broken cannot be loaded"):
        load_model(str(tmp_path / "broken"))


def test_serving_from_the_command_line(saved, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "ab", "output_tokens": 3}\n')
    assert main(["serve", str(prompts), "--model", str(saved)]) == 2
    assert "has no tokenizer" in capsys.readouterr().err
    result = tmp_path / "result.json"
    options = ["--model", str(EMBEDDED), "--device", "auto", "--dtype", "bfloat16", "--json", str(result)]
    assert main(["serve", str(prompts), *options]) == 0
    (served,) = json.loads(result.read_text())["requests"]
    assert len(served["text"]) >= 1
