"""`PiKV/Trace-v0` as one Gymnasium environment."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from trace_kit import SMALL, library

import pikv_env
from pikv_env.builtin import BUILTIN_PATH, make_config, resolve_library
from pikv_env.traces import synthetic_library
from pikv_env.workloads import FAMILIES, Family, Phase
from pikv_env.workloads.arrivals import Gamma
from pikv_runtime.contract import Control
from pikv_runtime.control_views import VIEWS
from pikv_runtime.registry import UnknownNameError

ID = "PiKV/Trace-v0"


def make(**fields):
    return gym.make(ID, library=library(), **{**SMALL, **fields})


@pytest.fixture(scope="module", params=list(VIEWS))
def env(request):
    return make(control=request.param)


def rollout(env, steps: int, actions_seed: int = 0):
    """Observations and rewards under random actions; stops at the episode's end."""
    env.action_space.seed(actions_seed)
    seen, rewards = [], []
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert not truncated
        seen.append(observation)
        rewards.append(reward)
        if terminated:
            break
    return np.array(seen), np.array(rewards), terminated, info


def test_checkers_accept_every_control_view(env) -> None:
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as check_sb3

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*render.*|.*spec.*")
        check_env(env.unwrapped, skip_render_check=True)
        check_sb3(env.unwrapped)


def test_observations_lie_in_finite_bounds(env) -> None:
    space = env.observation_space
    assert np.isfinite(space.low).all() and np.isfinite(space.high).all()
    first, _ = env.reset(seed=4)
    seen, _, terminated, _ = rollout(env, 10_000)
    assert terminated
    for observation in [first, *seen]:
        assert space.contains(observation)
    assert len(env.unwrapped.spaces.names) == len(first)


def test_same_seed_same_trajectory_other_seed_another(env) -> None:
    runs = []
    for seed in (3, 3, 4):
        env.reset(seed=seed)
        runs.append(rollout(env, 12)[:2])
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    assert not np.array_equal(runs[0][1], runs[2][1])


def test_same_seed_in_a_new_environment() -> None:
    seen = []
    for _ in range(2):
        env = make(seed=7)
        env.reset()
        seen.append(rollout(env, 10)[0])
    np.testing.assert_array_equal(seen[0], seen[1])


def test_state_continues_identically_over_the_episode_end(env) -> None:
    env.reset(seed=1)
    rollout(env, 5)
    core = env.unwrapped
    state, runs = core.get_state(), []
    for _ in range(2):
        core.set_state(state)
        seen, rewards, terminated, _ = rollout(env, 10_000, actions_seed=9)
        assert terminated
        after, _ = env.reset()
        runs.append((seen, rewards, after))
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_state_moves_to_another_environment_of_the_same_pool() -> None:
    one, other = make(), make()
    one.reset(seed=1)
    other.reset(seed=2)
    rollout(one, 6)
    moved = other.unwrapped.set_state(one.unwrapped.get_state())
    a, b = rollout(one, 8, actions_seed=2), rollout(other, 8, actions_seed=2)
    np.testing.assert_array_equal(a[0], b[0])
    assert moved in one.observation_space
    strange = make(workloads=1, horizon_s=20.0)
    strange.reset(seed=0)
    with pytest.raises(ValueError, match="another pool"):
        strange.unwrapped.set_state(one.unwrapped.get_state())


def test_info_of_steps_and_of_the_end(env) -> None:
    _, start = env.reset(seed=0, options={"workload": 1, "pressure": 2.5, "lambdas": (0.5, 4.0)})
    assert (start["workload"], start["pressure"]) == (1, 2.5)
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert info["J_interval"] == -reward
    assert info["J_interval"] == pytest.approx(info["latency"] + 0.5 * info["memory"] + 4.0 * info["loss"])
    assert "episode_cost" not in info
    _, rewards, _, info = rollout(env, 10_000)
    cost = info["episode_cost"]
    assert cost["J"] == pytest.approx(-(reward + rewards.sum()))
    assert cost["J"] == pytest.approx(cost["latency"] + 0.5 * cost["memory"] + 4.0 * cost["loss"])
    assert cost["steps"] == len(rewards) + 1
    assert info["family"] == env.unwrapped.batch.prepared(0).workload.family


def test_what_options_fix_does_not_shift_later_draws() -> None:
    env, drawn = make(), []
    for options in (None, {"workload": 0, "pressure": 1.0}):
        env.reset(seed=8, options=options)
        drawn.append(env.reset()[1])
    assert drawn[0] == drawn[1]


def test_more_pressure_is_a_smaller_cap() -> None:
    env = make()
    caps = [env.reset(options={"workload": 0, "pressure": p})[1]["cap_bytes"] for p in (0.01, 0.1, 100.0)]
    assert caps[0] > caps[1] > caps[2]


def test_info_tells_a_pressure_that_the_largest_request_keeps_out_of_reach() -> None:
    for ranks in (1, 2):
        env = make(ranks=ranks)
        (met, _), (asked, cap) = (
            (info["pressure_reached"], info["cap_bytes"])
            for info in (env.reset(options={"workload": 0, "pressure": p})[1] for p in (0.01, 100.0))
        )
        prepared = env.unwrapped.batch.pool.prepared[0]
        assert met == pytest.approx(0.01, rel=1e-3)
        assert cap == prepared.floor_bytes and asked < 50
        assert asked == pytest.approx(prepared.working_set_bytes / (cap * ranks))


def test_an_action_may_be_a_list(env) -> None:
    action, rewards = env.action_space.sample(), []
    for given in (action, action.tolist()):
        env.reset(seed=4)
        rewards.append(env.step(given)[1])
    assert rewards[0] == rewards[1]


def test_step_control_takes_the_contract_itself(env) -> None:
    core = env.unwrapped
    neutral = Control.neutral(core.batch.num_groups)
    rewards = []
    for _ in range(2):
        env.reset(seed=2)
        rewards.append(sum(core.step_control(neutral)[1] for _ in range(8)))
    assert rewards[0] == rewards[1]
    assert core.telemetry.groups.shape[0] == core.batch.num_groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workload": 99}, "the pool has 0..1"),
        ({"workload": 0.5}, "workload=0.5: the pool has 0..1"),
        ({"pressure": "high"}, "pressure='high': must be positive"),
        ({"lambdas": (float("inf"), 1.0)}, "two positive numbers"),
        ({"pressure": 0.0}, "must be positive"),
        ({"lambdas": (1.0, -1.0)}, "two positive numbers"),
        ({"presure": 1.0}, "did you mean 'pressure'"),
    ],
)
def test_wrong_options_are_named(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().reset(options=options)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'pressure'"):
        make_config(presure=2.0)
    with pytest.raises(UnknownNameError, match="family"):
        make(families=("facts-poison",))
    with pytest.raises(ValueError, match="with 8 layers"):
        pikv_env.TraceEnv(synthetic_library(0, ("facts",), 4, layers=8), **SMALL)
    with pytest.raises(ValueError, match="recorded with page_tokens=8"):
        pikv_env.TraceEnv(synthetic_library(0, ("facts",), 4, page_tokens=8), **SMALL)


def test_a_missing_library_says_what_to_do(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match="pikv record"):
        resolve_library(tmp_path / "none.safetensors")
    monkeypatch.setattr("pikv_env.builtin.BUILTIN_PATH", tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="no built-in trace library"):
        resolve_library()
    assert BUILTIN_PATH.parent.name == "data"


def test_a_library_is_read_from_its_file_once(tmp_path) -> None:
    path = tmp_path / "traces.safetensors"
    library().save(path)
    assert resolve_library(path) is resolve_library(str(path))
    env = gym.make(ID, library=path, families="facts-poisson", **{**SMALL, "workloads": 1})
    assert env.reset(seed=0)[1]["family"] == "facts-poisson"


def test_numbers_stand_for_ranges() -> None:
    config = make_config(pressure=2, lambda2=[5.0, 20.0], families="facts-poisson")
    assert config.pressure == (2, 2)
    assert config.lambda2 == (5.0, 20.0)
    assert config.families == ("facts-poisson",)


def test_a_family_of_ones_own() -> None:
    name = "own-of-this-test"
    phases = (Phase({"code": 1.0}, rate=2.0), Phase({"facts": 1.0}))
    family = Family(id=name, split="train", description="mine", phases=phases, arrivals=Gamma(cv=2.0))
    if name not in FAMILIES:
        FAMILIES.add(name, family)
    try:
        assert make(families=name, pressure=2.0).reset(seed=0)[1]["family"] == name
    finally:
        del FAMILIES._entries[name]


def test_a_saturated_draw_is_drawn_again() -> None:
    pool = make(load=0.85, workloads=4).unwrapped.batch.pool
    assert max(p.reference.busy_share for p in pool.prepared) <= 0.85


def test_step_needs_an_episode() -> None:
    env = make().unwrapped
    with pytest.raises(ResetNeeded):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="wants"):
        env.step(np.zeros(3, np.float32))
