"""`pikv bench policy`: rows that are measured, and words that can also say no."""

from __future__ import annotations

import numpy as np

from pikv_agents import policy_bench as bench
from pikv_runtime.policy import PolicyNetwork


def test_others_are_measured_on_the_same_network_or_said_to_be_absent(monkeypatch):
    network = PolicyNetwork.random((64, 64))
    monkeypatch.setattr(bench, "_installed", lambda *modules: False)
    rows = {row["name"]: row for row in bench._rival_rows(network, native_us=2.0, calls=50)}
    assert rows["ONNX Runtime"]["value"] is None and rows["ONNX Runtime"]["absent"]
    for name in ("SB3 predict", "torch eager"):
        row = rows[name]
        assert row["value"] > 0 and row["ratio"] == row["value"] / 2.0 and row["p99"] >= row["value"]
    assert rows["SB3 predict"]["value"] > rows["torch eager"]["value"], "it does that, and more"
    cells = [cell for column in bench.table(list(rows.values())).columns for cell in column.cells]
    assert cells.count("absent") == 1


def test_torch_computes_what_the_runner_does():
    """Or the comparison would be between two different networks."""
    network = PolicyNetwork.random((16, 8), activation="relu")
    x = np.random.default_rng(0).normal(size=(1, len(network.mean))).astype(np.float32)
    wanted = x.astype(np.float64)
    for i, (weight, bias) in enumerate(network.layers):
        wanted = wanted @ weight.T + bias
        wanted = np.maximum(wanted, 0) if i < len(network.layers) - 1 else wanted
    np.testing.assert_allclose(bench._torch(network, x)(), wanted, atol=1e-4)


def test_an_aim_that_is_missed_is_said_to_be():
    rows = [
        {"name": "native, 32 groups", "value": 12.0, "unit": "µs", "baseline": None, "ratio": None},
        {"name": "native, 512 groups", "value": 80.0, "unit": "µs", "baseline": None, "ratio": None},
        {"name": "decision over a decode step", "value": 0.02, "unit": "ratio", "baseline": 5000.0, "ratio": 0.02},
    ]
    words = bench.in_words(rows).splitlines()
    assert [line.endswith(": reached") for line in words] == [False, True, False] and "not reached" in words[0]
