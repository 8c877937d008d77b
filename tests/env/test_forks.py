"""Forks and stored states: an episode goes on identically, in this environment, another one, or another process."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from trace_kit import SMALL, library

from pikv_env.pool import WorkloadPool
from pikv_env.snapshot import LaneState, StateError
from pikv_runtime.control_views import VIEWS


def make(**fields):
    return gym.make("PiKV/Trace-v0", library=library(), **{**SMALL, **fields})


def rest(env, seed: int = 1):
    """Observations, rewards and costs to the episode's end, and the first observation of the next one."""
    env.action_space.seed(seed)
    rows, over = [], False
    while not over:
        observation, reward, over, _, info = env.step(env.action_space.sample())
        rows.append(np.concatenate([observation, [reward, info.get("cost", 0.0)]]))
    rows.append(np.append(env.reset()[0], [0.0, 0.0]))
    return np.array(rows)


@pytest.mark.parametrize("control", list(VIEWS))
def test_a_fork_goes_on_identically_and_on_its_own(control: str) -> None:
    env = make(control=control, fidelity_floor=0.999, slo=1.0)
    env.reset(seed=2)
    for _ in range(5):
        env.step(env.action_space.sample())
    core = env.unwrapped
    twin, other = core.fork(), core.fork()
    assert twin.batch.pool is core.batch.pool and twin.batch is not core.batch
    rest(twin, seed=8)  # plays on without disturbing the others
    np.testing.assert_array_equal(rest(other), rest(core))


def test_a_fork_prepares_nothing_anew(monkeypatch) -> None:
    env = make()
    env.reset(seed=0)

    def refused(*_):
        raise AssertionError("a fork prepared workloads, which takes seconds")

    monkeypatch.setattr(WorkloadPool, "__init__", refused)
    env.unwrapped.fork()


def test_a_stored_state_goes_on_identically() -> None:
    env, other = make(slo=0.9), make(slo=0.9)
    env.reset(seed=4)
    for _ in range(4):
        env.step(env.action_space.sample())
    data = env.unwrapped.get_state().to_bytes()
    state = LaneState.from_bytes(data)
    assert state.to_bytes() == data
    other.reset(seed=9)
    other.unwrapped.set_state(state)
    np.testing.assert_array_equal(rest(other), rest(env))


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "pickle"])
def test_a_damaged_state_is_refused(damage: str) -> None:
    env = make()
    env.reset(seed=0)
    data = env.unwrapped.get_state().to_bytes()
    wrong = {"cut": data[: len(data) // 2], "noise": bytes(64), "empty": b"", "pickle": b"\x80\x04K\x01."}[damage]
    with pytest.raises(StateError, match="state"):
        LaneState.from_bytes(wrong)


def test_a_state_of_another_contract_or_pool_is_refused(monkeypatch) -> None:
    env, other = make(), make(seed=1)
    env.reset(seed=0)
    other.reset(seed=0)
    state = env.unwrapped.get_state()
    before = other.unwrapped.get_state().to_bytes()
    with pytest.raises(StateError, match="another pool"):
        other.unwrapped.set_state(state)
    assert other.unwrapped.get_state().to_bytes() == before
    data = state.to_bytes()
    monkeypatch.setattr("pikv_env.snapshot.CONTRACT_HASH", "0" * 16)
    with pytest.raises(StateError, match="of contract"):
        LaneState.from_bytes(data)
