"""Random traces with the shape of real ones, so that environments can be tested without a model.

Attention is recency, a sink and a few far hot pages per request; centroid scores follow the mass more or less
well by layer; tags carry no information about it, as measured on small models. Tags and codec errors are
functions of the block's hash, so that shared blocks agree between the rows that share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.hashing import mix, to_uniform
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.requests import chain_hashes

SESSION_FAMILIES = ("dialogue",)  # their groups are dialogues: each row's prompt extends the row before it
ERROR_MEDIAN = (0.0, 0.002, 0.005, 0.08)  # relative attention error: native, bf16, int8, int4
ERROR_SPREAD = 0.5  # sigma of its logarithm
KINDS = ("facts", "needle", "copy", "code", "prose", "dictionary", "dialogue", "regime")
HOT_PAGES = 3  # far pages that one request looks at


Range = tuple[int, int]


@dataclass(frozen=True)
class _Row:
    """One content before its attention is drawn."""

    tokens: NDArray[np.int32]
    prompt: int
    family: int
    group: int
    turn: int
    shared: int


def synthetic_library(
    seed: int,
    families: Sequence[str] = KINDS,
    contents_per_family: int = 16,
    layers: int = 4,
    experts: int = 8,
    page_tokens: int = 16,
    observe_tokens: int = 32,
    prompt_range: Range = (128, 1200),
    output_range: Range = (16, 160),
    rows_per_group: int = 4,
) -> TraceLibrary:
    """Draw a library.

    Args:
        seed: Same seed and arguments, same library, bit for bit.
        families: Content families; "dialogue" holds dialogues, the others documents with questions.
        contents_per_family: Rows of each family.
        layers: Recorded layers.
        experts: Experts of a layer.
        page_tokens: Token slots of a page.
        observe_tokens: Decode steps between two observations.
        prompt_range: Shortest and longest prompt, tokens.
        output_range: Shortest and longest output, tokens.
        rows_per_group: Questions of a document, or turns of a dialogue.

    Returns:
        A library that passes `TraceLibrary.check`.
    """
    rng = np.random.default_rng(seed)
    rows: list[_Row] = []
    for family, name in enumerate(families):
        for group, start in enumerate(range(0, contents_per_family, rows_per_group)):
            count = min(rows_per_group, contents_per_family - start)
            draw = _dialogue if name in SESSION_FAMILIES else _document
            rows += draw(rng, family, group, count, prompt_range, output_range)
    totals = np.array([len(row.tokens) for row in rows])
    prompts = np.array([row.prompt for row in rows])
    pages = int(-(-totals.max(initial=1) // page_tokens))
    steps = int(-(-(totals - prompts).max(initial=1) // observe_tokens))
    chain = _padded([chain_hashes(row.tokens, page_tokens) for row in rows], 0)
    contexts = prompts[:, None] + np.arange(steps) * observe_tokens + 1  # (C, O)
    seen = np.arange(steps) * observe_tokens < (totals - prompts)[:, None]
    mass, score = _attention(rng, -(-contexts // page_tokens), seen, layers, pages)
    tags, error = _page_facts(chain, -(-totals // page_tokens), layers, pages, experts)
    gate = rng.dirichlet(np.full(experts, 0.5), (len(rows), steps, layers)) * seen[..., None, None]
    return TraceLibrary(
        families=tuple(families),
        page_tokens=page_tokens,
        observe_tokens=observe_tokens,
        layers=layers,
        experts=experts,
        model=f"synthetic-{seed}",
        prompt_tokens=prompts.astype(np.int32),
        output_tokens=(totals - prompts).astype(np.int32),
        family_of=np.array([row.family for row in rows], np.int32),
        group_of=np.array([row.group for row in rows], np.int32),
        turn_of=np.array([row.turn for row in rows], np.int32),
        shared_tokens=np.array([row.shared for row in rows], np.int32),
        chain=chain,
        tags=tags,
        mass=mass,
        score=score,
        gate=gate.astype(np.float32),
        error=error,
        token_ids=_padded([row.tokens for row in rows], -1).astype(np.int32),
        provenance={"source": "synthetic", "seed": seed},
    )


def _log_uniform(rng: np.random.Generator, bounds: Range) -> int:
    """An integer whose logarithm is uniform, both bounds included."""
    return int(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1] + 1))))


def _bytes(rng: np.random.Generator, count: int) -> NDArray[np.int32]:
    """Random printable byte tokens (count,)."""
    return rng.integers(32, 127, count, dtype=np.int32)


def _document(
    rng: np.random.Generator, family: int, group: int, count: int, prompts: Range, outputs: Range
) -> list[_Row]:
    """A document and `count` questions about it."""
    prompt = _log_uniform(rng, prompts)
    document = _bytes(rng, max(1, int(prompt * 0.9)))
    rows = []
    for _ in range(count):
        rest = _bytes(rng, prompt - len(document) + _log_uniform(rng, outputs))
        rows.append(_Row(np.concatenate([document, rest]), prompt, family, group, 0, len(document)))
    return rows


def _dialogue(
    rng: np.random.Generator, family: int, group: int, count: int, prompts: Range, outputs: Range
) -> list[_Row]:
    """A dialogue of `count` turns, each prompt extending the one before."""
    first, last = sorted(_log_uniform(rng, prompts) for _ in range(2))
    lengths = np.linspace(first, max(last, first), count).astype(int)
    text = _bytes(rng, int(lengths[-1]))
    rows = []
    for turn, prompt in enumerate(lengths.tolist()):
        tokens = np.concatenate([text[:prompt], _bytes(rng, _log_uniform(rng, outputs))])
        rows.append(_Row(tokens, prompt, family, group, turn, int(lengths[turn - 1]) if turn else 0))
    return rows


def _padded(parts: list[NDArray[Any]], padding: int) -> NDArray[np.int64]:
    """Rows of different lengths as one array (C, longest)."""
    out = np.full((len(parts), max((len(p) for p in parts), default=0)), padding, np.int64)
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return out


def _attention(
    rng: np.random.Generator, context_pages: NDArray[Any], seen: NDArray[np.bool_], layers: int, pages: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mass and centroid score, both (C, O, L, P); `context_pages` and `seen` are (C, O)."""
    contents, steps = seen.shape
    page = np.arange(pages)
    age = context_pages[..., None] - 1 - page  # (C, O, P), 0 for the newest page
    valid = ((age >= 0) & seen[..., None])[:, :, None, :]
    far = np.linspace(0.6, 0.15, layers)[:, None]  # early layers look back further in this toy
    recency = 0.6 * np.exp(-np.maximum(age, 0) / 2.0)[:, :, None, :]
    sink = 0.25 * (page == 0)
    background = 0.02 * rng.lognormal(0, 1, (contents, 1, layers, pages))
    flicker = rng.lognormal(0, 0.4, (contents, steps, layers, pages))
    hot = _hot_pages(rng, context_pages, layers, pages) * flicker
    raw = ((1 - far) * (recency + sink) + far * hot + background) * valid
    mass = raw / np.maximum(raw.sum(axis=3, keepdims=True), 1e-12)
    follow = np.linspace(0.9, 0.4, layers)[:, None]  # correlation of score and log mass
    logs = np.log(mass + 1e-6)
    centred = (logs - logs.mean(axis=3, keepdims=True)) / (logs.std(axis=3, keepdims=True) + 1e-6)
    score = follow * centred + np.sqrt(1 - follow**2) * rng.standard_normal(mass.shape)
    return mass.astype(np.float32), (score * valid).astype(np.float32)


def _hot_pages(rng: np.random.Generator, context_pages: NDArray[Any], layers: int, pages: int) -> NDArray[np.float64]:
    """Weights (C, 1, L, P) of the few far pages that each request keeps looking at in each layer."""
    contents = len(context_pages)
    weight = np.zeros((contents, layers, pages))
    at = (rng.random((contents, layers, HOT_PAGES)) * context_pages[:, :1, None]).astype(int)
    rows, columns = np.arange(contents)[:, None, None], np.arange(layers)[None, :, None]
    np.add.at(weight, (rows, columns, at), rng.lognormal(-0.5, 0.7, at.shape))
    return weight[:, None]


def _page_facts(
    chain: NDArray[np.int64], page_counts: NDArray[Any], layers: int, pages: int, experts: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Tags (C, L, P) and codec errors (C, L, P, 4), functions of block hash and layer."""
    contents = len(chain)
    ids = np.zeros((contents, pages), np.int64)
    ids[:, : chain.shape[1]] = chain
    # A last, open page has no hash: its row and place stand in.
    ids = np.where(ids == 0, np.arange(contents)[:, None] * pages + np.arange(pages), ids)
    words = mix(ids[:, None, :], np.arange(layers)[:, None])  # (C, L, P)
    inside = (np.arange(pages) < page_counts[:, None])[:, None, :]
    tags = np.where(inside, words % np.uint64(experts), -1).astype(np.int8)
    u, v = (np.maximum(to_uniform(mix(words, salt)), 1e-12) for salt in (1, 2))
    normal = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)  # Box-Muller, one draw per page
    spread = np.exp(ERROR_SPREAD * normal)
    error = np.where(inside, spread, 0.0)[..., None] * np.array(ERROR_MEDIAN)
    return tags, error.astype(np.float32)
