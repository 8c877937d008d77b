"""`pikv run`'s ways of trying a policy: logs, replays, shadows and canaries."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pikv_agents.canary import Fleet, compare, deal, server_of
from pikv_agents.cli import main
from pikv_env.config import EnvConfig
from pikv_env.live import run_live
from pikv_env.pool import WorkloadPool
from pikv_env.traces import synthetic_library
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.policy import NativeRunner, NumpyRunner, Watch, load_bundle, replay, shelf
from pikv_runtime.policy.decision_log import read_decisions
from pikv_runtime.policy.toolchain import NativeBuildError

LAMBDAS = (0.25, 10.0)


@pytest.fixture(scope="module")
def pool():
    library = synthetic_library(
        0, ("facts",), contents_per_family=4, observe_tokens=4, prompt_range=(70, 90), output_range=(6, 10)
    )
    runtime = RuntimeConfig(
        slots=4, blocks=256, codec="bf16", read="sparse", router="centroid", interval_s=0.25, observe_tokens=4
    )
    config = EnvConfig(families=("facts-poisson",), horizon_s=2.0, workloads=1, load=(0.3, 0.3), runtime=runtime)
    return WorkloadPool(library, config, 0)


@pytest.fixture(scope="module")
def logged(pool, tmp_path_factory):
    """A live run under a shadow, with both logs."""
    path = tmp_path_factory.mktemp("logs") / "lazy.jsonl"
    watch = Watch(path, shadow="static:ratio=3/lru")
    return path, run_live(pool, "lazy/h2o", lambdas=LAMBDAS, clock="model", watch=watch)


def test_a_live_run_keeps_both_decisions_and_says_what_would_have_changed(pool, logged):
    path, result = logged
    plain = run_live(pool, "lazy/h2o", lambdas=LAMBDAS, clock="model")
    assert (plain.J, plain.intervals, plain.iterations) == (result.J, result.intervals, result.iterations)
    assert plain.shadow == {} and result.shadow["decisions"] == result.intervals
    assert "compression_ratio" in [row["control"] for row in result.shadow["controls"]]
    for log, ratio in ((path, 1.0), (path.with_suffix(".shadow.jsonl"), 3.0)):
        kept = list(read_decisions(log))
        assert len(kept) == result.intervals and all((d.control.groups[:, 1] == ratio).all() for d in kept)
        assert replay(log)["identical"] == result.intervals


def test_runners_agree_on_what_a_server_really_told(logged):
    """Real telemetry sits on the ends of its ranges far more often than random one does."""
    network = load_bundle(shelf.find_bundle("balance")).network
    reference = NumpyRunner(network)
    try:
        native = NativeRunner(network)
    except NativeBuildError as error:
        pytest.skip(str(error))
    for decision in read_decisions(logged[0]):
        one, two = reference.decide(decision.telemetry), native.decide(decision.telemetry)
        np.testing.assert_allclose(two.groups, one.groups, atol=1e-5)
        np.testing.assert_allclose(two.globals, one.globals, atol=1e-5)


def test_the_command_replays_a_log_and_asks_another_policy(logged, tmp_path, capsys):
    path = logged[0]
    out = tmp_path / "out.json"
    assert main(["run", "--replay", str(path), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["identical"] == found["decisions"] > 0 and found["first_difference"] is None
    assert main(["run", "--replay", str(path), "--policy", "static:ratio=2/h2o", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["different"] == found["decisions"] and "compression_ratio" in capsys.readouterr().out


def test_a_replay_that_differs_is_an_error(logged, tmp_path, capsys):
    lines = logged[0].read_text().splitlines()
    row = json.loads(lines[2])
    row["control"]["globals"][0] = 0.5
    changed = tmp_path / "changed.jsonl"
    changed.write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]))
    assert main(["run", "--replay", str(changed)]) == 2
    assert "1 decisions differ, the first is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "lazy/h2o"], "belongs to --replay"),
        (["lazy/h2o", "h2o", "--canary", "lru"], "compared with one policy: 2 given"),
        (["--canary", "lru", "--canary-share", "0.9"], "canary_share=0.9: must be more than 0, at most 0.5"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, message, capsys):
    assert main(["run", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_requests_are_dealt_out_once_and_alike_in_every_run(pool):
    workload = pool.prepared[0].workload
    hands = deal(workload, 3)
    dealt = [r.request_id for hand in hands for r in hand.requests]
    assert sorted(dealt) == sorted(r.request_id for r in workload.requests)
    assert all(list(h.requests) == sorted(h.requests, key=lambda r: r.arrival_s) for h in hands)
    spread = np.bincount([server_of(k, 4) for k in range(4000)])
    assert (abs(spread - 1000) < 120).all()


def test_the_canary_decides_on_its_server_alone(pool):
    fleet = Fleet(pool, 2, pressure=2.0)
    rows = list(fleet.play("capped_exact/lru", "static:ratio=4,evict=0.4,fan_out=0.1/lru"))
    assert [row["canary"] for row in rows] == [False, True]
    assert rows[1]["loss"] > 5 * rows[0]["loss"], "the incumbent is exact but for bf16, the canary is not"
    assert sum(row["requests"] for row in rows) == len(pool.prepared[0].workload.requests)
    sides = {row["metric"]: row["range"] for row in compare(rows)}
    assert sides["loss"] == "above"


@pytest.mark.parametrize("servers", [1, 500])
def test_a_fleet_needs_servers_with_requests(pool, servers):
    with pytest.raises(ValueError, match=f"servers={servers}"):
        list(Fleet(pool, servers, pressure=2.0).play("lru", "lru"))
