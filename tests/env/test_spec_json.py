"""`EnvSpec` to JSON and back: the environment that comes out plays the same trajectories."""

from __future__ import annotations

import json
from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import TimeLimit
from trace_kit import SMALL, library

from pikv_env.builtin import make_config
from pikv_env.config import EnvConfig
from pikv_env.vector import TraceVectorEnv
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.registry import UnknownNameError

FIELDS = {**SMALL, "horizon_s": 20.0, "families": ("facts-poisson", "code-bursty")}
RUNTIME = RuntimeConfig(codec="bf16", read="sparse", router="gate", slots=8, blocks=512, interval_s=1.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "traces.safetensors"
    library().save(path)
    return path


def trajectory(env, steps: int = 12):
    env.action_space.seed(4)
    seen = [env.reset(seed=3)[0]]
    for _ in range(steps):
        observation, reward, terminated, *_ = env.step(env.action_space.sample())
        seen.append(np.append(observation, reward))
        if np.any(terminated):
            break
    return seen


def assert_same(one, other) -> None:
    for a, b in zip(trajectory(one), trajectory(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "arguments",
    [
        {**FIELDS, "control": "discrete", "runtime": RUNTIME},
        {"config": make_config(**{**FIELDS, "pressure": (0.1, 0.5)}, runtime=RUNTIME), "seed": 5},
        {"config": make_config(**FIELDS), "fidelity_floor": 0.9, "slo": np.float64(0.8), "lambda2": 3},
    ],
    ids=["fields", "config", "constrained"],
)
def test_a_spec_survives_json(path, arguments) -> None:
    env = gym.make("PiKV/Trace-v0", library=path, **arguments)
    text = env.spec.to_json()
    back = EnvSpec.from_json(text)
    again = gym.make(back)
    assert again.unwrapped.config == env.unwrapped.config
    assert_same(env, again)
    assert json.loads(again.spec.to_json()) == json.loads(text)


def test_a_vector_spec_survives_json(path) -> None:
    vector = gym.make_vec("PiKV/Trace-v0", num_envs=3, library=str(path), runtime=RUNTIME, **FIELDS)
    again = gym.make_vec(EnvSpec.from_json(vector.spec.to_json()))
    assert isinstance(again.unwrapped, TraceVectorEnv) and again.num_envs == 3
    assert_same(vector, again)


def test_wrappers_and_the_registered_variant_survive_too(path) -> None:
    env = TimeLimit(gym.make("PiKV/TraceConstrained-v0", library=path, **FIELDS), 3)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.cost_limits == pytest.approx({"fidelity": 0.05, "slo": 0.1})
    again.reset(seed=0)
    assert [again.step(again.action_space.sample())[3] for _ in range(3)] == [False, False, True]


def test_what_json_cannot_hold_is_named(path) -> None:
    env = gym.make("PiKV/Trace-v0", library=library(), **FIELDS)
    with pytest.raises(ValueError, match=r"argument 'library' is a TraceLibrary.*pass the path of its file"):
        env.spec.to_json()
    pooled = gym.make("PiKV/Trace-v0", library=path, pool=env.unwrapped.batch.pool, **FIELDS)
    with pytest.raises(ValueError, match=r"argument 'pool' is a WorkloadPool.*leave it out"):
        pooled.spec.to_json()


def test_mappings_stand_for_configurations() -> None:
    config = make_config(**FIELDS, runtime=RUNTIME)
    assert make_config(json.loads(json.dumps(asdict(config)))) == config
    assert make_config(runtime={"slots": 4}).runtime.codec == EnvConfig().runtime.codec
    assert make_config({"horizon_s": 9.0}, EnvConfig(workloads=3)) == EnvConfig(workloads=3, horizon_s=9.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runtime": {"slot": 4}}, "unknown field of runtime 'slot': did you mean 'slots'"),
        ({"runtime": 3}, "runtime=3: a RuntimeConfig or a mapping"),
        ({"config": {"horizon": 4.0}}, "did you mean 'horizon_s'"),
        ({"config": "quick"}, "config='quick': an EnvConfig or a mapping"),
        ({"pressure": [1.0, 2.0, 3.0]}, r"pressure=\[1.0, 2.0, 3.0\]: a number or a pair"),
        ({"load": "high"}, "load='high': a number or a pair"),
        ({"fidelity_floor": 1.5}, "fidelity_floor=1.5: allowed 0 to 1"),
        ({"lambda1": float("inf")}, r"lambda1=\(inf, inf\): allowed"),
        ({"drain": float("nan")}, "drain=nan: allowed"),
        ({"horizon_s": float("inf")}, "horizon_s=inf, drain=0.5: allowed"),
        ({"token_scale": 2.5}, "token_scale=2.5: must be a whole number"),
        ({"ranks": 1.5}, "ranks=1.5: must be a whole number"),
    ],
)
def test_what_cannot_be_read_is_named(given, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**given)
    assert issubclass(UnknownNameError, ValueError)
