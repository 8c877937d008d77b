"""Traces and configurations small enough for tests: seconds, not minutes."""

from __future__ import annotations

from dataclasses import replace

from pikv_agents.greedy import Lookahead
from pikv_agents.headroom_config import HeadroomConfig
from pikv_agents.presets import QUICK, TrainConfig
from pikv_agents.rollout import Suite
from pikv_env.config import EnvConfig
from pikv_env.traces import TraceLibrary, synthetic_library

START = "static:demote=true,r_pressure=2,cached_share=0.5/h2o"
FAMILIES = ("facts-poisson", "code-bursty")


def tiny_library() -> TraceLibrary:
    return synthetic_library(
        0, ("facts", "code", "needle"), contents_per_family=4, prompt_range=(64, 320), output_range=(16, 64)
    )


def tiny_env(**changes: object) -> EnvConfig:
    return replace(EnvConfig(families=FAMILIES, horizon_s=60.0, workloads=2, load=(0.4, 0.5)), **changes)


def tiny_suite() -> Suite:
    return Suite(tiny_library(), tiny_env())


def tiny_training(**changes: object) -> TrainConfig:
    config = replace(
        QUICK,
        env=tiny_env(),
        steps=256,
        num_envs=4,
        rollout=32,
        batch_size=64,
        epochs=2,
        hidden=(16, 16),
        start=START,
        evaluations=2,
        validation_pressures=(2.0,),
    )
    return replace(config, **changes)


def tiny_headroom() -> HeadroomConfig:
    grid = ("static:ratio=1.0/lru", START)
    return HeadroomConfig(
        (0, 1), (2.0,), grid, ("lazy/h2o", "h2o"), Lookahead(8, 16), candidates=3, rounds=0, foresight_rounds=None
    )
