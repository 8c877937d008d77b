"""The whole loop, tiny: every stage runs on real input and leaves what it promises."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from pikv_agents.greedy import Lookahead
from pikv_agents.headroom_config import HeadroomConfig
from pikv_agents.presets import QUICK
from pikv_agents.quickstart import Quickstart, QuickstartConfig
from pikv_agents.report.schema import load_summary
from pikv_agents.tracking import read_metrics
from pikv_runtime.policy import load_policy

FAMILIES = ("facts-poisson", "needle-onoff")
GRID = ("static:ratio=1.0/lru", "static:demote=true,r_pressure=2,fan_out=0.5/h2o")


def tiny() -> QuickstartConfig:
    env = replace(QUICK.env, families=("facts-poisson",), horizon_s=30.0, workloads=1, load=(0.3, 0.3))
    training = replace(
        QUICK, env=env, steps=256, num_envs=4, rollout=32, batch_size=64, epochs=2, evaluations=1, hidden=(8, 8),
        start_grid=GRID, validation=("facts-poisson",), validation_pressures=(2.0,),
    )  # fmt: skip
    lookahead = HeadroomConfig((0,), (2.0,), GRID, ("lazy/h2o",), Lookahead(5, 10), candidates=2)
    return QuickstartConfig(
        headroom_families=FAMILIES,
        contents=2,
        prompt_tokens=(160, 320),
        output_tokens=(16, 32),
        training=training,
        seeds=2,
        live_horizon_s=3.0,
        track="disabled",
        threads=1,
        lookahead=lookahead,
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    Quickstart(tiny(), folder, Console(quiet=True), "pikv quickstart").run()
    return folder


@pytest.mark.distributed
def test_every_stage_leaves_its_section(out):
    summary = load_summary(out / "summary.json")
    assert {"coverage", "headroom", "training", "evaluation", "policy", "live", "timeline", "verdict"} <= set(summary)
    assert [s["stage"] for s in summary["meta"]["stages"]] == [
        "record", "headroom", "train", "evaluate", "export", "live", "report",
    ]  # fmt: skip
    assert {row["family"] for row in summary["headroom"]} == set(FAMILIES)
    policies = summary["evaluation"]["families"]["needle-onoff"]["policies"]
    wanted = {"capped_exact", "static_ladder", "lazy/lru", "random", "learned", "static_global"}
    wanted |= {f"pressure_proportional/{ranker}" for ranker in ("lru", "h2o", "streaming_llm")}
    assert wanted <= set(policies)
    assert all(len(row["scores"]) == 2 and row["J"] > 0 for row in policies.values())


@pytest.mark.distributed
def test_the_live_run_measures_two_ranks(out):
    live = load_summary(out / "summary.json")["live"]
    assert live["ranks"] == 2
    assert [(row["where"]) for row in live["rows"]] == ["trace", "live", "trace", "live"]
    for row in live["rows"][1::2]:
        assert row["controls_identical_on_ranks"] and row["tokens_per_second"] > 0 and row["J"] > 0
    runs = json.loads((out / "live.json").read_text())["runs"]
    assert all(run["fallback_decisions"] == 0 and sum(run["wire_bytes"].values()) > 0 for run in runs.values())


@pytest.mark.distributed
def test_the_bundle_loads_and_the_files_are_there(out):
    policy = load_summary(out / "summary.json")["policy"]
    assert policy["golden_pairs"] > 0 and policy["golden_error"] < 1e-4
    assert {"numpy", "sb3_predict"} <= set(policy["decision_us"])
    assert load_policy(out / "policy" / "quickstart-0.1").name
    page = (out / "report.html").read_text()
    assert "<script" not in page and "needle-onoff" in page and "https://" not in page.replace("https://arxiv", "")
    assert (out / "figures" / "overall.svg").exists() and (out / "traces.safetensors").exists()
    assert "charts/episode_return" in read_metrics(out / "train") or "eval/J" in read_metrics(out / "train")
