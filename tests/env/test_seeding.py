"""Bit-exact seeding: the same numbers in every face, in another process, and with other threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from trace_kit import SMALL, library

import pikv_env

FIELDS = {**SMALL, "horizon_s": 20.0}
STEPS = 25  # beyond the first episodes' ends
SEED = 17


def digest(rows) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(row).tobytes() for row in rows)).hexdigest()


def actions_of(space, lanes: int):
    space.seed(1)
    return [np.stack([space.sample() for _ in range(lanes)]) for _ in range(STEPS)]


def vector_rows(lanes: int, seed, control: str = "coef", threads: int = 1, slo=None):
    """(lanes, STEPS + 1, D + 1) observations and rewards of a vector environment, over the ends of episodes."""
    env = gym.make_vec("PiKV/Trace-v0", num_envs=lanes, library=library(), control=control, threads=threads,
                       slo=slo, **FIELDS)  # fmt: skip
    first, _ = env.reset(seed=seed)
    rows = [np.column_stack([first, np.zeros(lanes)])]
    for actions in actions_of(env.single_action_space, lanes):
        observation, rewards, *_ = env.step(actions)
        rows.append(np.column_stack([observation, rewards]))
    env.close()
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("control", ["coef", "box", "discrete"])
def test_single_vector_and_sb3_agree_over_the_ends_of_episodes(control: str) -> None:
    vector = vector_rows(2, SEED, control)
    single = gym.make("PiKV/Trace-v0", library=library(), control=control, **FIELDS)
    view = pikv_env.make_sb3(num_envs=2, library=library(), control=control, **FIELDS)
    view.seed(SEED)
    seen, first, ends = view.reset(), single.reset(seed=SEED)[0], 0
    np.testing.assert_array_equal(vector[:, 0, :-1], seen)
    np.testing.assert_array_equal(vector[0, 0, :-1], first)
    for k, actions in enumerate(actions_of(single.action_space, 2), start=1):
        seen, rewards, dones, _ = view.step(actions)
        np.testing.assert_array_equal(vector[:, k, :-1], seen)
        np.testing.assert_array_equal(vector[:, k, -1].astype(np.float32), rewards)
        observation, reward, over, *_ = single.step(actions[0])
        assert reward == vector[0, k, -1] and over == dones[0]
        if over:
            ends, observation = ends + 1, single.reset()[0]
        np.testing.assert_array_equal(vector[0, k, :-1], observation)
    assert ends >= 1


def test_lanes_of_one_seed_differ_and_a_list_of_seeds_makes_them_equal() -> None:
    one = vector_rows(2, SEED)
    assert not np.array_equal(one[0], one[1])
    alike = vector_rows(2, [SEED, SEED])
    np.testing.assert_array_equal(alike[0, 0], alike[1, 0])


def test_threads_change_nothing() -> None:
    np.testing.assert_array_equal(vector_rows(3, SEED, threads=1, slo=0.9), vector_rows(3, SEED, threads=3, slo=0.9))


def test_another_process_sees_the_same() -> None:
    code = "import test_seeding as t; print(t.digest(t.vector_rows(2, t.SEED)))"
    folder = os.path.dirname(__file__)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(vector_rows(2, SEED))
