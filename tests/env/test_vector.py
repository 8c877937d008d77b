"""The Gymnasium vector environment and the SB3 view: lane by lane the single environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from trace_kit import SMALL, library, make_batch, random_controls

import pikv_env
from pikv_env.sb3 import TraceVecEnv
from pikv_env.vector import TraceVectorEnv
from pikv_runtime.control_views import VIEWS

ID = "PiKV/Trace-v0"
ARGUMENTS = {**SMALL, "horizon_s": 20.0}


def sampled(space: gym.Space, steps: int, seed: int = 0) -> list[np.ndarray]:
    space.seed(seed)
    return [space.sample() for _ in range(steps)]


@pytest.mark.parametrize("control", list(VIEWS))
def test_every_lane_is_the_single_environment(control: str) -> None:
    seeds = [5, 9, 11]
    vector = gym.make_vec(ID, num_envs=3, library=library(), control=control, **ARGUMENTS)
    assert isinstance(vector.unwrapped, TraceVectorEnv)
    singles = [gym.make(ID, library=library(), control=control, **ARGUMENTS) for _ in seeds]
    first, _ = vector.reset(seed=seeds)
    for env, seed, expected in zip(singles, seeds, first, strict=True):
        np.testing.assert_array_equal(env.reset(seed=seed)[0], expected)
    ends = 0
    for actions in sampled(vector.action_space, 30):
        seen, rewards, terminated, truncated, info = vector.step(actions)
        assert not truncated.any()
        for i, env in enumerate(singles):
            observation, reward, over, _, own = env.step(actions[i])
            assert reward == rewards[i] and over == terminated[i]
            assert own["J_interval"] == info["J_interval"][i]
            if over:
                ends += 1
                np.testing.assert_array_equal(info["final_obs"][i], observation)
                assert info["final_info"]["episode_cost"]["J"][i] == own["episode_cost"]["J"]
                observation, _ = env.reset()
            np.testing.assert_array_equal(observation, seen[i])
    assert ends >= 3


def test_lane_zero_of_one_seed_is_the_single_environment() -> None:
    vector = TraceVectorEnv(2, library(), **ARGUMENTS)
    single = pikv_env.TraceEnv(library(), **ARGUMENTS)
    seen, _ = vector.reset(seed=3)
    np.testing.assert_array_equal(seen[0], single.reset(seed=3)[0])
    assert not np.array_equal(vector.batch.pressure[0], vector.batch.pressure[1])


def test_sb3_view_equals_the_vector_environment() -> None:
    vector = TraceVectorEnv(4, library(), **ARGUMENTS)
    view = pikv_env.make_sb3(ID, num_envs=4, library=library(), **ARGUMENTS)
    view.seed(6)
    first, _ = vector.reset(seed=6)
    np.testing.assert_array_equal(view.reset(), first)
    total = np.zeros(4)
    for actions in sampled(vector.action_space, 20):
        expected = vector.step(actions)
        seen, rewards, dones, infos = view.step(actions)
        total += expected[1]
        np.testing.assert_array_equal(seen, expected[0])
        np.testing.assert_array_equal(rewards, expected[1].astype(np.float32))
        np.testing.assert_array_equal(dones, expected[2])
        for i in np.flatnonzero(dones):
            np.testing.assert_array_equal(infos[i]["terminal_observation"], expected[4]["final_obs"][i])
            assert infos[i]["TimeLimit.truncated"] is False
            assert infos[i]["episode"]["r"] == pytest.approx(total[i])
            assert infos[i]["episode_cost"]["J"] == pytest.approx(-total[i])
            total[i] = 0.0


def test_threads_do_not_change_answers() -> None:
    outcomes = []
    for threads in (1, 3):
        batch = make_batch(4, threads=threads)
        for i in range(4):
            batch.reset_lane(i)
        rng = np.random.default_rng(0)
        rewards = []
        for _ in range(8):
            random_controls(batch, rng)
            rewards.append(batch.step())
        outcomes.append((np.array(rewards), batch.groups.copy(), batch.globals.copy()))
        batch.close()
    for one, other in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(one, other)


def test_reset_mask_and_options() -> None:
    vector = TraceVectorEnv(3, library(), **ARGUMENTS)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    _, info = vector.reset(seed=1, options={"workload": 1})
    assert info["workload"].tolist() == [1, 1, 1]
    vector.step(vector.action_space.sample())
    vector.reset(options={"reset_mask": np.array([True, False, False]), "pressure": 3.0})
    assert vector.batch.elapsed.tolist() == [0, 1, 1]
    assert vector.batch.pressure[0] == 3.0
    with pytest.raises(ValueError, match="2 seeds for 3 lanes"):
        vector.reset(seed=[1, 2])


def test_sb3_attributes_and_methods() -> None:
    view = TraceVecEnv(3, library(), **ARGUMENTS)
    view.seed(0)
    view.set_options({"pressure": 2.0})
    view.reset()
    assert view.get_attr("pressure") == [2.0, 2.0, 2.0]
    assert view.reset_infos[2]["pressure"] == 2.0
    view.set_attr("limit_s", 4.0, indices=1)
    assert view.get_attr("limit_s", indices=[0, 1])[1] == 4.0
    with pytest.raises(AttributeError, match="common to all lanes"):
        view.set_attr("pool", None)
    (state,) = view.env_method("get_state", indices=0)
    actions = np.zeros((3, 30), np.float32)
    seen, *_ = view.step(actions)
    view.env_method("set_state", state, indices=0)
    again, *_ = view.step(actions)
    np.testing.assert_array_equal(seen[0], again[0])
    assert view.env_is_wrapped(gym.Wrapper) == [False] * 3
    assert view.get_attr("render_mode") == [None] * 3


def test_wrong_actions_are_refused() -> None:
    view = TraceVecEnv(2, library(), control="discrete", **ARGUMENTS)
    view.reset()
    with pytest.raises(ValueError, match="shape"):
        view.step(np.zeros((2, 5), np.int64))
    with pytest.raises(ValueError, match="off the grid"):
        view.step(np.full((2, 6), 7))


@pytest.mark.parametrize("control", ["coef", "discrete"])
def test_ppo_learns_two_thousand_steps(control: str) -> None:
    view = TraceVecEnv(16, library(), control=control, **ARGUMENTS)
    stacked = VecNormalize(VecMonitor(view))
    model = PPO("MlpPolicy", stacked, n_steps=64, batch_size=256, n_epochs=2, seed=0, device="cpu")
    model.learn(2048)
    assert model.num_timesteps == 2048
    assert len(model.ep_info_buffer) > 16
    action, _ = model.predict(stacked.reset(), deterministic=True)
    assert action.shape[0] == 16
