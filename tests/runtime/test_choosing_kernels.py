"""The kernels floor chooses as the ledger does: the rule exists once, the kernels are held to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pikv_kernels import page_utility, read_set, victims
from pikv_runtime.ledger.readset import select


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("fan_out", [0.0, 0.1, 0.37, 1.0])
def test_read_sets_are_the_ledgers(fan_out, biased):
    rng = np.random.default_rng(int(fan_out * 100))
    for pages in (1, 7, 30, 200):
        score = rng.normal(size=pages).astype(np.float32) * 5
        if not biased:
            score = score.round()  # ties
        bias = rng.uniform(-1, 1, pages).astype(np.float32) * biased
        candidate = (rng.random(pages) < 0.8).astype(np.int8)
        expected, _ = select(score, candidate, np.zeros(pages, np.int8), bias, fan_out)
        row = torch.from_numpy(score).unsqueeze(0), torch.from_numpy(candidate).bool().unsqueeze(0), fan_out
        chosen = read_set(*row, torch.from_numpy(bias).unsqueeze(0) if biased else None)
        assert np.array_equal(chosen[0].numpy(), expected != 0)


def test_victims_by_weighted_features_are_the_lowest():
    rng = np.random.default_rng(0)
    features, weights = rng.random((2, 50, 6)).astype(np.float32), np.array([0.5, -1, 2, 0, 0.1, 0], np.float32)
    evictable = rng.random((2, 50)) < 0.6
    utility = page_utility(torch.from_numpy(features), torch.from_numpy(weights))
    chosen = victims(utility, torch.from_numpy(evictable), torch.tensor([4, 11], dtype=torch.int32)).numpy()
    for row, count in enumerate((4, 11)):
        value = np.where(evictable[row], features[row] @ weights, np.inf)
        assert set(np.flatnonzero(chosen[row])) == set(np.argsort(value, kind="stable")[:count])
