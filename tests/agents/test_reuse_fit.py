"""The learned block rule: its arithmetic, its labels, and that it learns what there is to learn."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_library

from pikv_agents.reuse_fit import ReuseConfig, Samples, auc, collect, fit, lookups, predictions, ranking, targets
from pikv_agents.rollout import Suite
from pikv_env.config import EnvConfig
from pikv_runtime.block_rules import make_block_rule
from pikv_runtime.block_rules.network import load_network, save_network
from pikv_runtime.ledger.reuse import FEATURES, WEIGHTS, predict

CONFIG = ReuseConfig(epochs=60, batch=128)


def samples(count=3000, seed=0):
    """Blocks whose next use follows their last gap, unless they are deep: those never come back."""
    rng = np.random.default_rng(seed)
    features = rng.uniform(0, 8, (count, len(FEATURES)))
    gap, deep = features[:, FEATURES.index("gap")], features[:, FEATURES.index("depth")] > 5
    return Samples(features, np.where(deep, np.inf, 2.0 * (2**gap - 1)))


def test_numpy_and_the_ledger_predict_the_same():
    rng = np.random.default_rng(1)
    network, features = rng.normal(size=WEIGHTS).astype(np.float32), rng.uniform(0, 9, (20, len(FEATURES)))
    told = [predict(network, row) for row in features]
    np.testing.assert_allclose(predictions(network, features), told, rtol=1e-9, atol=1e-9)


def test_beyond_the_window_counts_as_twice_the_window():
    some = Samples(np.zeros((4, len(FEATURES))), np.array([0.0, 900.0, 901.0, np.inf]))
    assert targets(some, 2.0, CONFIG) == pytest.approx(np.log2([1, 451, 901, 901]))


def test_auc_is_the_chance_of_a_right_order():
    assert auc(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True])) == 1.0
    assert auc(np.array([1.0, 1, 1, 1]), np.array([False, True, False, True])) == 0.5
    assert auc(np.array([3.0, 1, 2]), np.array([False, True, True])) == 0.0
    assert np.isnan(auc(np.array([1.0, 2]), np.array([True, True])))


def test_it_learns_what_recency_does_not_know():
    network = fit(samples(), 2.0, CONFIG)
    row = ranking(network, samples(seed=1), [60.0])[0]
    assert row["auc"] > 0.95 and abs(row["auc_recency"] - 0.5) < 0.1


def test_labels_are_the_next_lookups_of_the_workload():
    config = EnvConfig(families=("facts-poisson",), horizon_s=60.0, load=(0.3, 0.3), drain=1.0)
    suite = Suite(tiny_library(), config)
    found = collect(suite, ("facts-poisson",), (0,), ReuseConfig(pressure=0.2, blocks=8))
    assert np.isfinite(found.features).all() and (found.gaps_s > 0).all()
    assert 0 < np.isfinite(found.gaps_s).mean() < 1
    batch = suite.batch("facts-poisson", 0, 1)
    batch.reset_lane(0, 0, 1.0)
    first = batch.prepared(0).workload.requests[0]
    assert lookups(batch, 0)[int(first.hash_ids[0])][0] == first.arrival_s


def test_a_network_comes_back_from_its_file_and_others_are_refused(tmp_path):
    network = np.arange(WEIGHTS, dtype=np.float32)
    save_network(network, tmp_path / "net.safetensors", {"families": "none"})
    assert (make_block_rule(f"lrb:weights={tmp_path}/net.safetensors").network() == network).all()
    save_network(network[:-1], tmp_path / "short.safetensors", {})
    with pytest.raises(ValueError, match=rf"wanted {WEIGHTS} finite numbers"):
        load_network(tmp_path / "short.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_network(tmp_path / "text.safetensors")
