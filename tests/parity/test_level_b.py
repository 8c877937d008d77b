"""Level B: prices learned from logs, errors, the order of policies, and verdicts that can come out bad."""

from __future__ import annotations

import numpy as np
import pytest

from pikv_env.config import EnvConfig
from pikv_env.level_b import Row, measure, simulate
from pikv_env.log_prices import fit_log_prices, work_of
from pikv_env.parity_verdict import TARGETS, causes, policy_errors, ranking, summarise
from pikv_env.pool import WorkloadPool
from pikv_env.traces import synthetic_library
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.ledger.state import Price
from pikv_runtime.serving_log import LogError
from tests.parity.test_serving_log import LOSSY, changed, model, served

# J of the live runs, one number a repeat, from best to worst.
J = {"a": (1.0, 1.02), "b": (1.5, 1.52), "c": (1.53, 1.5), "d": (3.0, 3.1)}


def row(policy: str, live_j=(1.0, 1.02), trace_j: float | None = None, **trace: float) -> Row:
    """A policy whose trace agrees with its live runs but for what is given."""
    live = {"J": list(live_j)} | {name: [value] * 2 for name, value in BASE.items()}
    said = {"J": [np.mean(live_j) if trace_j is None else trace_j]} | {k: [trace.get(k, v)] for k, v in BASE.items()}
    return Row(policy, 1, live, said)


BASE = {"latency": 2.0, "bytes_mean": 1000.0, "hit_rate": 0.3, "loss": 0.05}


def test_perfect_agreement_meets_every_target() -> None:
    found = summarise([row(name, js) for name, js in J.items()])
    assert all(found["verdicts"].values()) and set(found["verdicts"]) == {*TARGETS, "replays_identical"}
    assert found["kendall_tau"] == 1.0 and found["bytes_error"] == 0.0


@pytest.mark.parametrize(
    ("name", "trace"),
    [
        ("bytes_error", {"bytes_mean": 1040.0}),
        ("hits_error", {"hit_rate": 0.27}),
        ("fidelity_mae", {"loss": 0.075}),
        ("latency_median_ape", {"latency": 2.4}),
    ],
)
def test_an_error_beyond_its_target_is_not_met(name: str, trace: dict[str, float]) -> None:
    found = summarise([row(policy, js, **trace) for policy, js in J.items()])
    assert [target for target, met in found["verdicts"].items() if not met] == [name]
    assert found["within"][name] == 0 and abs(found["worst"][name]["error"]) > TARGETS[name]


def test_one_bad_policy_is_named() -> None:
    found = summarise([row("a", J["a"]), row("b", J["b"], loss=0.08), row("d", J["d"])])
    assert found["worst"]["fidelity_mae"]["policy"] == "b" and found["within"]["fidelity_mae"] == 2


def test_a_latency_error_inside_the_spread_of_repeats_is_met() -> None:
    rows = [row(name, js, latency=2.4) for name, js in J.items()]
    for one in rows:
        one.live["latency"] = [1.7, 2.3]
    found = summarise(rows)
    assert found["latency_median_ape"] > 0.15 and found["run_to_run_spread"] == pytest.approx(0.3)
    assert found["verdicts"]["latency_median_ape"]


def test_only_pairs_that_differ_are_ranked() -> None:
    found = ranking([row(name, js) for name, js in J.items()])
    assert found["pairs_all"] == 6 and found["pairs"] == 5  # b and c are one within their spread
    swapped = ranking([row("a", J["a"], 1.6), row("b", J["b"], 1.0), row("c", J["c"]), row("d", J["d"])])
    assert ["a", "b"] in swapped["pairs_wrong"] and swapped["kendall_tau"] < 0.9
    blurred = [row(name, js, 2.0) for name, js in J.items()]
    assert ranking(blurred)["kendall_tau"] == 0.0  # who says the same of all has ranked nothing


def test_nothing_to_rank_is_not_met() -> None:
    found = summarise([row("a"), row("b")])
    assert found["kendall_tau"] is None and not found["verdicts"]["kendall_tau"]


def test_a_replay_that_differs_is_not_met() -> None:
    rows = [row(name, js) for name, js in J.items()]
    rows[1].replay_difference = "iteration 3: bytes_rank"
    assert not summarise(rows)["verdicts"]["replays_identical"]


def test_causes_add_up_to_the_error() -> None:
    one = row("a", latency=1.0, loss=0.02)
    for where, seconds in (("live", 2.0), ("trace", 2.5), ("modelled", 2.2)):
        getattr(one, where).update({"busy_s": [seconds], "iterations": [100.0]})
    one.modelled |= {"latency": [1.6], "loss": [0.04], "hit_rate": [0.3]}
    found = causes(one)
    assert found["iteration_s"] == pytest.approx(0.1)
    assert (1 + found["latency_by_prices"]) * (1 + found["latency_by_signals"]) == pytest.approx(1.0 / 2.0)
    assert found["loss_by_prices"] + found["loss_by_signals"] == pytest.approx(0.02 - 0.05)


def test_errors_are_signed() -> None:
    errors = policy_errors(row("a", latency=1.0, bytes_mean=1100.0))
    assert errors["latency_median_ape"] == -0.5 and errors["bytes_error"] == pytest.approx(0.1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_work_of_a_log_at_its_prices_is_its_time(ranks: int) -> None:
    # On the model clock the ledger itself priced the iterations, so counting must give back what it charged.
    log = served(LOSSY, "model", ranks)
    work, prices = work_of(log), log.arrays["prices"].copy()
    prices[Price.QUERY_BYTES] = 0.0
    modelled = (work.counts @ prices).max(axis=1)
    # Encoding is charged when a page is encoded, and paid by the next iteration: sums agree, and most iterations.
    assert modelled.sum() == pytest.approx(work.seconds.sum(), rel=0.02)
    assert np.median(np.abs(modelled / work.seconds - 1)) < 0.01


def test_prices_are_found_again() -> None:
    logs = [served(LOSSY, "model"), served("lazy/lru", "model")]
    with pytest.raises(LogError, match="iteration 5: plan"):
        fit_log_prices([changed(logs[0], "plan", lambda a: a.__setitem__((5, 0), 99))], logs[0].arrays["prices"])
    prior = logs[0].arrays["prices"] * 2.0
    prior[Price.QUERY_BYTES] /= 2.0
    prior[Price.STEP] /= 3.0
    fitted = fit_log_prices(logs, prior)
    truth = logs[0].arrays["prices"]
    assert fitted.error < 0.05 and fitted.iterations == sum(log.iterations for log in logs)
    assert fitted.prices[Price.STEP] == pytest.approx(truth[Price.STEP], rel=0.15)
    assert fitted.prices[Price.QUERY_BYTES] == truth[Price.QUERY_BYTES]


def test_policies_are_measured_and_simulated() -> None:
    library = synthetic_library(
        0, ("facts",), contents_per_family=4, observe_tokens=4, prompt_range=(100, 160), output_range=(6, 12)
    )
    runtime = RuntimeConfig(
        codec="bf16", read="sparse", router="centroid", slots=6, blocks=256, observe_tokens=4, interval_s=0.25,
        audit_share=0.5,
    )  # fmt: skip
    config = EnvConfig(families=("facts-poisson",), horizon_s=1.5, workloads=1, load=(0.3, 0.3), runtime=runtime)
    pool = WorkloadPool(library, config, 0)
    specs = ("lazy/lru", "static:ratio=4,fan_out=0.1/lru")
    told: list[str] = []
    found = measure(pool, pool, specs, pressure=0.5, repeats=1, model=model(), clock="wall", note=told.append)
    assert len(told) == len(specs) + 3 and len(found.fits) == 1
    for one in found.rows:
        assert not one.replay_difference
        assert one.live["iterations"][0] > 10 and one.trace["bytes_mean"][0] > 0
    fast = simulate(pool, specs[0], 0.5, found.fits[0].prices)
    slow = simulate(pool, specs[0], 0.5, 2 * found.fits[0].prices)
    assert fast["latency"] == found.rows[0].trace["latency"][0]
    assert slow["busy_s"] / slow["iterations"] > 1.5 * fast["busy_s"] / fast["iterations"]
