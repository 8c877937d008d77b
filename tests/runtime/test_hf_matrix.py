"""Every family, page size, number of ranks and way to prefill gives the stock cache's logits over 64 decode steps."""

from __future__ import annotations

import itertools

import pytest
import torch
from exactness import Case, Run, assert_exact, flips, serve
from moe_families import FAMILIES, LATENT, LENGTHS, family_model, stock_answers

from pikv_runtime.transport import TorchDistTransport, run_ranks

PAGES, RANKS, CHUNKS = (8, 16, 64), (1, 2, 4), (13, 1000)
FORMS = [*((family, True) for family in FAMILIES), *((family, False) for family in LATENT)]
ALL = [
    Case(family, page_tokens, ranks, chunk, latent)
    for (family, latent), page_tokens, ranks, chunk in itertools.product(FORMS, PAGES, RANKS, CHUNKS)
]


def _sample() -> list[Case]:
    """One case for each family; together they hold every pair of page size, ranks and chunk."""
    pairs = list(itertools.product(PAGES, RANKS))
    return [
        Case(family, page_tokens, ranks, CHUNKS[(page_tokens // 8 + ranks) % 2], latent)
        for (family, latent), (page_tokens, ranks) in zip(FORMS, pairs, strict=True)
    ]


SAMPLE = _sample()


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_sampled_case_is_exact(case):
    assert_exact(case, serve(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in ALL if case not in SAMPLE], ids=str)
def test_case_is_exact(case):
    assert_exact(case, serve(case))


def test_the_sample_holds_every_pair():
    for a, b in itertools.combinations(("page_tokens", "ranks", "chunk"), 2):
        held = {(getattr(case, a), getattr(case, b)) for case in SAMPLE}
        assert held == set(itertools.product(*({getattr(case, name) for case in ALL} for name in (a, b)))), (a, b)


def _serve_process(rank: int, world: int, case: Case):
    run = serve(case, TorchDistTransport(timeout_s=60))
    return {str(slot): logits.numpy() for slot, logits in run.logits.items()}


@pytest.mark.distributed
@pytest.mark.parametrize("family", ["qwen3", "deepseek-v3", "gpt-oss"])
def test_two_processes_give_the_same_logits(family):
    family_model(family)
    case = Case(family, ranks=2, chunk=13)
    for rank, result in enumerate(run_ranks(_serve_process, 2, case)):
        assert sorted(result) == [str(slot) for slot in range(len(LENGTHS)) if slot % 2 == rank]
        for slot, logits in result.items():
            stock = stock_answers(family, int(slot)).logits
            assert (torch.from_numpy(logits) - stock).abs().max() <= 1e-4


def test_a_flip_that_is_no_tie_is_told_from_one_that_is():
    case = Case("mixtral")
    run, answers = serve(case), stock_answers("mixtral", 0)
    assert len(flips(answers, run.chosen[0])) == 0
    other = {i: (chosen + 1) % 4 for i, chosen in run.chosen[0].items()}
    assert flips(answers, other).max() > 1e-3
    forced = serve(case, forced={slot: stock_answers("mixtral", slot) for slot in range(len(LENGTHS))})
    assert (forced.logits[0] - answers.logits).abs().max() <= 1e-4
    wrong = stock_answers("mixtral", 0)
    turned = {i: (chosen + 1) % 4 for i, chosen in wrong.chosen.items()}
    changed = type(wrong)(wrong.logits, wrong.weights, turned, wrong.gap)
    bent = serve(case, forced={slot: changed if slot == 0 else stock_answers("mixtral", slot) for slot in range(3)})
    assert (bent.logits[0] - answers.logits).abs().max() > 1e-2  # forcing has force
    with pytest.raises(AssertionError, match="slot 0 is off by"):
        assert_exact(case, Run({0: bent.logits[0]}, {0: run.chosen[0]}, run.runner))
