"""The embedded model loads from the package and recalls far facts; its contexts are deterministic."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from pikv_runtime.models import EMBEDDED, load_model
from pikv_runtime.models.training.architecture import EMBEDDED_DIRECTORY
from pikv_runtime.models.training.evaluate import bits_per_byte, load, recall
from pikv_runtime.models.training.probes import PROBES
from pikv_runtime.models.training.tasks import TASKS
from pikv_runtime.models.training.text import documents

PROBE_COUNT = 24
SLACK = 0.15


@pytest.fixture(scope="module")
def model():
    return load(EMBEDDED_DIRECTORY)


@pytest.fixture(scope="module")
def report():
    return json.loads((EMBEDDED_DIRECTORY / "eval.json").read_text())


def test_the_directory_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in EMBEDDED_DIRECTORY.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "eval.json"} <= set(files)
    assert sum(files.values()) <= 8_000_000


def test_the_architecture_is_a_grouped_query_mixture_of_experts(model, report):
    config = model.config
    assert (config.num_local_experts, config.num_experts_per_tok) == (8, 2)
    assert config.num_key_value_heads >= 2 and config.num_attention_heads % config.num_key_value_heads == 0
    assert config.head_dim == 32 and config.sliding_window is None
    assert sum(p.numel() for p in model.parameters()) == report["parameters"]


def test_the_tokenizer_gives_bytes_and_gives_them_back():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIRECTORY)
    text = "Größe\t=\n  {'a': 1}\r\n"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, 258)


@pytest.mark.parametrize("kind", sorted(PROBES))
def test_recall_at_256_is_as_measured(model, report, kind):
    measured = report["recall"][kind]["256"]
    assert recall(model, kind, 256, PROBE_COUNT, seed=7) >= measured - SLACK


def test_recall_needs_the_far_context(model):
    assert recall(model, "facts", 256, PROBE_COUNT, far=False) <= 0.2


def test_bits_per_byte_are_as_measured(model, report):
    for kind, measured in report["bits_per_byte"].items():
        assert bits_per_byte(model, kind, 6, 512) <= measured + 0.6


def test_greedy_decoding_is_deterministic(model):
    prompt = torch.from_numpy(TASKS["facts"](np.random.default_rng(0), 96).ids)[None]
    first, second = (model.generate(prompt, max_new_tokens=16, do_sample=False) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_tasks_are_deterministic_and_exact(name):
    for length in (96, 500, 2048):
        first, second = (TASKS[name](np.random.default_rng(3), length) for _ in range(2))
        assert np.array_equal(first.ids, second.ids) and first.answers == second.answers
        assert len(first.ids) == len(first.answer_mask) == length
        assert first.ids.min() >= 0 and first.ids.max() < 256


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"prose", "code"}))
def test_every_answer_repeats_its_source(name):
    sample = TASKS[name](np.random.default_rng(5), 2048)
    assert sample.answers and sample.answer_mask.sum() == sum(a.end - a.start for a in sample.answers)
    for answer in sample.answers:
        width = answer.end - answer.start
        assert answer.distance >= width
        assert np.array_equal(sample.ids[answer.start : answer.end], sample.ids[answer.source : answer.source + width])


@pytest.mark.parametrize("kind", sorted(PROBES))
def test_probes_ask_at_their_distance(kind):
    for distance in (64, 256, 2048):
        (answer,) = PROBES[kind](np.random.default_rng(2), distance).answers
        assert abs(answer.distance - distance) <= 14


@pytest.mark.parametrize("kind", ["prose", "code"])
def test_held_out_documents_are_not_in_the_training_part(kind):
    assert set(documents(kind, "train")).isdisjoint(documents(kind, "heldout"))


@pytest.mark.parametrize("damage", ["truncated", "not json", "missing weights"])
def test_a_corrupt_model_is_refused_with_the_reason(tmp_path, damage):
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED, copy)
    if damage == "truncated":
        weights = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif damage == "not json":
        (copy / "config.json").write_text("{")
    else:
        (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"the model in {copy} cannot be loaded: .+"):
        load_model(str(copy))
