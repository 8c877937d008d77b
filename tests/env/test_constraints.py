"""Constraints: costs beside the reward, their sums against the episode's own numbers, and who may know of them."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from trace_kit import SMALL, library, make_batch, play, random_controls

import pikv_env
from pikv_env.constraints import late_requests
from pikv_env.episode import costs, episode_info
from pikv_runtime.ledger.state import Status

ID = "PiKV/Trace-v0"
FLOORS = {"fidelity_floor": 0.9, "slo": 0.95}


def make(**fields):
    return gym.make(ID, library=library(), **{**SMALL, **fields})


def episode(env, seed: int = 1, pressure: float | None = None):
    env.action_space.seed(seed)
    env.reset(seed=seed, options={"pressure": pressure} if pressure else None)
    infos, rewards, over = [], [], False
    while not over:
        _, reward, over, _, info = env.step(env.action_space.sample())
        infos.append(info)
        rewards.append(reward)
    return infos, np.array(rewards)


@pytest.mark.parametrize("floors", [FLOORS, {"fidelity_floor": 0.2}, {"slo": 0.0}, {"fidelity_floor": 1.0, "slo": 1.0}])
def test_costs_sum_to_what_the_episode_says(floors) -> None:
    env = make(**floors, drain=0.05)
    for seed in range(3):
        infos, _ = episode(env, seed, pressure=4.0)
        total = infos[-1]["episode_cost"]
        for name in ("cost", *(f"{kind}_{key}" for key in env.unwrapped.cost_limits for kind in ("cost", "spent"))):
            assert sum(info[name] for info in infos) == pytest.approx(total[name], abs=1e-12)
            assert all(info[name] >= 0 for info in infos)
        if "fidelity_floor" in floors:
            assert total["spent_fidelity"] == pytest.approx(total["loss"], abs=1e-12)
        if "slo" in floors:
            classes = env.unwrapped.costs().classes
            in_time = sum(c.slo_share * c.requests for c in classes) / sum(c.requests for c in classes)
            assert total["spent_slo"] == pytest.approx(1.0 - in_time)


def test_a_cost_is_zero_exactly_where_its_floor_holds() -> None:
    env = make()
    infos, _ = episode(env, 1)
    loss = infos[-1]["episode_cost"]["loss"]
    late = late_requests(env.unwrapped.batch.state, np.array([True]))[0] / env.unwrapped.batch.state.num_requests[0]
    assert 0 < loss < 0.9 and 0 <= late < 0.9
    for floor, held in ((1 - loss - 1e-9, True), (1 - loss + 1e-9, False)):
        infos, _ = episode(make(fidelity_floor=floor), 1)
        assert (sum(info["cost_fidelity"] for info in infos) == 0.0) is held
    for floor, held in ((1 - late - 1e-9, True), (min(1.0, 1 - late + 1e-9), bool(late == 0))):
        infos, _ = episode(make(slo=floor), 1)
        assert (sum(info["cost_slo"] for info in infos) == 0.0) is held


def test_the_reward_keeps_what_no_constraint_takes_over() -> None:
    plain, rewards = episode(make(lambda1=0.5, lambda2=4.0), 2)
    for floors, lost in (({"fidelity_floor": 0.9}, 0.0), ({"slo": 0.9}, 4.0), (FLOORS, 0.0)):
        infos, paid = episode(make(lambda1=0.5, lambda2=4.0, **floors), 2)
        for info, before, reward in zip(infos, plain, paid, strict=True):
            assert reward == pytest.approx(-(info["latency"] + 0.5 * info["memory"] + lost * info["loss"]), abs=1e-15)
            assert info["J_interval"] == before["J_interval"]
        assert infos[-1]["episode_cost"]["J"] == plain[-1]["episode_cost"]["J"]
    assert rewards.sum() == pytest.approx(-plain[-1]["episode_cost"]["J"])


def test_nothing_of_it_enters_telemetry() -> None:
    seen = []
    for floors in ({}, FLOORS):
        batch = make_batch(2, **floors)
        for lane in range(2):
            batch.reset_lane(lane, workload=0, pressure=1.0)
        rng = np.random.default_rng(0)
        rows = []
        for _ in range(15):
            random_controls(batch, rng)
            batch.step()
            rows.append(np.concatenate([batch.groups.ravel(), batch.globals.ravel()]))
        seen.append(np.array(rows))
    np.testing.assert_array_equal(*seen)


def test_a_request_is_late_as_soon_as_that_is_certain_and_stays_late() -> None:
    batch = make_batch(1, slo=0.9, load=0.8)
    batch.reset_lane(0, workload=0, pressure=50.0)
    s, never, before = batch.state, np.array([False]), 0
    early = 0
    rng = np.random.default_rng(0)
    while not batch.done[0]:
        random_controls(batch, rng)
        batch.step()
        if batch.done[0]:
            break
        count = int(late_requests(s, never)[0])
        finished = s.req_status[0] == Status.DONE
        ttft, tpot = s.req_first_s[0] - s.req_arrival_s[0], s.req_finish_s[0] - s.req_first_s[0]
        classes = s.req_class[0]
        missed = (ttft > s.class_ttft_s[0, classes]) | (
            tpot / np.maximum(1, s.req_output[0] - 1) > s.class_tpot_s[0, classes]
        )
        known = np.count_nonzero(finished & missed)
        assert count >= before and count >= known
        early += count > known
        before = count
    assert early > 0


def test_whoever_is_refused_or_unserved_is_late() -> None:
    batch = make_batch(1, slo=0.5, drain=0.0, load=0.8)
    batch.reset_lane(0, workload=0)
    play(batch)
    n = int(batch.state.num_requests[0])
    unserved = np.count_nonzero(batch.state.req_status[0, :n] != Status.DONE)
    assert unserved > 0
    assert round(batch.spent[0, 1] * n) >= unserved
    assert episode_info(batch, 0)["episode_cost"]["spent_slo"] == batch.spent[0, 1]
    assert costs(batch, 0).classes[0].slo_share <= 1.0


def test_vector_and_sb3_report_the_costs_of_each_lane() -> None:
    vector = gym.make_vec(ID, num_envs=2, library=library(), **SMALL, **FLOORS)
    view = pikv_env.make_sb3("PiKV/TraceConstrained-v0", num_envs=2, library=library(), **SMALL, **FLOORS)
    single = make(**FLOORS)
    vector.reset(seed=3)
    view.seed(3)
    view.reset()
    single.reset(seed=3)
    vector.action_space.seed(0)
    some = 0.0
    for _ in range(60):
        actions = vector.action_space.sample()
        *_, told = vector.step(actions)
        infos = view.step(actions)[3]
        *_, over, _, own = single.step(actions[0])
        names = [name for name in own if name.startswith(("cost", "spent"))]
        assert names == ["cost", "cost_fidelity", "spent_fidelity", "cost_slo", "spent_slo"]
        for name in names:
            assert [info[name] for info in infos] == told[name].tolist()
            assert own[name] == told[name][0]
        some += told["spent_fidelity"].sum()
        if over:
            single.reset()
    assert some > 0


def test_without_constraints_there_is_no_cost() -> None:
    env = make()
    infos, _ = episode(env)
    assert env.unwrapped.cost_limits == {}
    assert not any(name.startswith(("cost", "spent")) for info in infos for name in info)
    assert not any(name.startswith(("cost", "spent")) for name in infos[-1]["episode_cost"])
    assert pikv_env.make_sb3(num_envs=1, library=library(), **SMALL).batch.constraints.limits == {}


def test_the_checkers_accept_the_constrained_variant() -> None:
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as check_sb3

    env = gym.make("PiKV/TraceConstrained-v0", library=library(), **SMALL).unwrapped
    check_env(env, skip_render_check=True)
    check_sb3(env)


def test_the_lagrangian_of_the_document_learns() -> None:
    text = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    code = next(part.split("```")[0] for part in text.split("```python\n") if "class Lagrangian" in part)
    for given, used in (("num_envs=16, horizon_s=600.0", "num_envs=2, horizon_s=30.0, workloads=1"),
                        ("100_000", "64"), ('"MlpPolicy", ', '"MlpPolicy", n_steps=32, env=')):  # fmt: skip
        assert given in code
        code = code.replace(given, used)
    names: dict = {}
    exec(code, names)
    prices = names["constrained"].prices
    assert set(prices) == {"fidelity", "slo"} and prices["fidelity"] > 1.0
