"""`PiKV/Runtime-v0`: the live engine as a Gymnasium environment, on the model clock unless said otherwise."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded

import pikv_env  # noqa: F401 - registers the environments
from pikv_env.config import EnvConfig
from pikv_env.pool import WorkloadPool
from pikv_env.runtime_env import RuntimeEnv
from pikv_env.trace_env import TraceEnv
from pikv_env.traces import synthetic_library
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control
from pikv_runtime.control_views import VIEWS
from pikv_runtime.models import load_model
from pikv_runtime.registry import UnknownNameError
from pikv_runtime.transport import LocalTransport

RUNTIME = RuntimeConfig(
    codec="bf16",
    read="sparse",
    router="centroid",
    slots=4,
    blocks=256,
    observe_tokens=4,
    interval_s=0.5,
    audit_share=0.5,
)
CONFIG = EnvConfig(
    families=("facts-poisson",), horizon_s=2.0, workloads=2, load=(0.1, 0.1), pressure=(0.02, 1.0), runtime=RUNTIME
)


@functools.cache
def model():
    return load_model("embedded")[0]


@functools.cache
def library():
    ranges = {"prompt_range": (70, 90), "output_range": (6, 10)}
    return synthetic_library(0, ("facts",), contents_per_family=4, observe_tokens=4, **ranges)


@functools.cache
def pool(ranks: int = 1) -> WorkloadPool:
    return WorkloadPool(library(), replace(CONFIG, ranks=ranks), 0)


def make(control: str = "coef", ranks: int = 1, **options) -> RuntimeEnv:
    config = replace(CONFIG, control=control, ranks=ranks)
    return RuntimeEnv(library(), model=model(), config=config, pool=pool(ranks), **options)


def episode(env: RuntimeEnv, seed: int, actions_seed: int = 0):
    """Observations, rewards and last info of a whole episode under random actions."""
    env.action_space.seed(actions_seed)
    observation, _ = env.reset(seed=seed)
    seen, rewards, over = [observation], [], False
    while not over:
        observation, reward, over, truncated, info = env.step(env.action_space.sample())
        assert not truncated and env.observation_space.contains(observation)
        seen.append(observation)
        rewards.append(reward)
    return np.array(seen), np.array(rewards), info


@pytest.mark.parametrize("control", list(VIEWS))
def test_checkers_accept_every_control_view(control: str) -> None:
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as check_sb3

    env = make(control)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*render.*|.*spec.*")
        check_env(env, skip_render_check=True)
        check_sb3(env)


@pytest.mark.parametrize("ranks", [1, 2])
def test_same_seed_same_episode_other_seed_another(ranks: int) -> None:
    first, again = (episode(make(ranks=ranks), 3) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[2]["episode_cost"] == again[2]["episode_cost"]
    # Two seeds may draw one of the two workloads, and caps that do not bind.
    others = (episode(make(ranks=ranks), seed)[1] for seed in range(4, 12))
    assert any(not np.array_equal(first[1], other) for other in others)


@pytest.mark.parametrize("control", list(VIEWS))
def test_rewards_sum_to_minus_the_objective(control: str) -> None:
    _, rewards, info = episode(make(control), 1, actions_seed=5)
    assert len(rewards) > 1 and (rewards <= 0).all()
    assert rewards.sum() == pytest.approx(-info["episode_cost"]["J"], rel=1e-9)
    assert info["episode_cost"]["J"] > 0


def test_draws_the_episodes_of_the_trace_environment() -> None:
    trace, live = TraceEnv(library(), config=CONFIG, pool=pool()), make()
    for seed in range(3):
        assert live.reset(seed=seed)[1] == trace.reset(seed=seed)[1]
    np.testing.assert_array_equal(live.reset(seed=9)[0], trace.reset(seed=9)[0])
    options = {"workload": 1, "pressure": 0.7, "lambdas": (0.5, 5.0)}
    _, info = live.reset(options=options)
    assert info["workload"] == 1 and info["pressure"] == 0.7
    assert live.engine.ledger.lambdas[0].tolist() == [0.5, 5.0]


def test_requests_are_really_served() -> None:
    env = make()
    env.reset(seed=2)
    over, control = False, Control.neutral(env.batch.num_groups)
    while not over:
        *_, over, _, _ = env.step_control(control)
    engine = env.engine
    assert [len(o) for o in engine.outputs] == [r.output_tokens for r in engine.requests]
    audited = np.flatnonzero(engine.ledger.req_audited[0, : len(engine.requests)])
    for q in audited:  # audits follow the recorded continuation
        assert engine.outputs[q] == engine.requests[q].exact_ids.tolist()
    assert len(audited) and env.costs().counters["iterations"] > 0


def test_registered_by_name_with_the_embedded_model() -> None:
    spec = gym.spec("PiKV/RuntimeWall-v0")
    assert spec.nondeterministic and spec.kwargs == {"clock": "wall"}
    assert not gym.spec("PiKV/Runtime-v0").nondeterministic
    fields = {"families": "facts-poisson", "horizon_s": 2.0, "workloads": 1, "load": 0.1, "runtime": RUNTIME}
    env = gym.make("PiKV/RuntimeWall-v0", library=library(), **fields)
    observation, _ = env.reset(seed=0)
    assert env.unwrapped.engine.clock == "wall" and observation in env.observation_space
    _, reward, *_ = env.step(env.action_space.sample())
    assert np.isfinite(reward)
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": "modal"}, "clock='modal': allowed are 'model' and 'wall'"),
        ({"signals": "none"}, "signals='none': allowed are 'live' and 'recorded'"),
        ({"control": "boxes"}, "did you mean 'box'"),
        ({"horizon": 3.0}, "did you mean 'horizon_s'"),
        ({"model": "no/such/folder"}, "no model at 'no/such/folder'"),
        ({"transport": LocalTransport(3)}, "the transport has 3 ranks, the configuration 1"),
    ],
)
def test_bad_arguments_give_one_clear_error(options, message) -> None:
    arguments = {"model": model(), "config": CONFIG, "pool": pool(), **options}
    if "control" in options:
        arguments["pool"] = None
    with pytest.raises(ValueError, match=message) as raised:
        RuntimeEnv(library(), **arguments)
    assert "\n" not in str(raised.value)


def test_a_model_of_another_shape_is_refused() -> None:
    from transformers import MixtralForCausalLM

    small = model().config.__class__(**{**model().config.to_dict(), "num_key_value_heads": 1})
    with pytest.raises(ValueError, match="geometry 'embedded'"):
        RuntimeEnv(library(), model=MixtralForCausalLM(small), config=CONFIG, pool=pool())


def test_traces_without_prompts_are_refused() -> None:
    blind = replace(library(), token_ids=None)
    env = RuntimeEnv(blind, model=model(), config=CONFIG)
    with pytest.raises(ValueError, match="prompt_ids"):
        env.reset(seed=0)


def test_unknown_reset_option_and_actions_off_the_space() -> None:
    env = make("discrete")
    with pytest.raises(UnknownNameError, match="did you mean 'pressure'"):
        env.reset(options={"presure": 1.0})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="off the grid"):
        env.step(np.full(env.action_space.shape, 99))
    with pytest.raises(ValueError, match="actions have shape"):
        env.step(np.zeros(1, np.int64))


def test_steps_need_an_episode_and_closing_ends_it() -> None:
    env = make()
    action = env.action_space.sample()
    for ask in (lambda: env.step(action), env.costs, lambda: env.telemetry):
        with pytest.raises(ResetNeeded):
            ask()
    episode(env, 0)
    with pytest.raises(ResetNeeded, match="the episode is over"):
        env.step(action)
    env.reset(seed=1)
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step(action)


def test_costs_pictures_and_terms_are_those_of_the_trace_environment() -> None:
    config = replace(CONFIG, fidelity_floor=1.0, slo=0.9)
    trace = TraceEnv(library(), config=config, pool=pool(), render_mode="rgb_array")
    live = RuntimeEnv(library(), model=model(), config=config, pool=pool(), signals="recorded", render_mode="rgb_array")
    assert str(live.describe()) == str(trace.describe()) and live.cost_limits == trace.cost_limits
    for each in (trace, live):
        each.action_space.seed(0)
        each.reset(seed=1)
    over, total = False, 0.0
    while not over:
        action = trace.action_space.sample()
        _, reward, over, _, told = trace.step(action)
        _, own_reward, own_over, _, own = live.step(action)
        assert (own_over, own_reward) == (over, reward)
        names = [name for name in told if name.startswith(("cost", "spent"))]
        assert len(names) == 5 and [own[n] for n in names] == [told[n] for n in names]
        total += own["cost"]
    assert own["episode_cost"]["cost"] == pytest.approx(total) and total > 0
    image, other = live.render(), trace.render()
    np.testing.assert_array_equal(image[60:], other[60:])  # all but the title


def test_a_spec_survives_json_unless_it_holds_a_model(tmp_path) -> None:
    library().save(tmp_path / "traces.safetensors")
    fields = {"library": tmp_path / "traces.safetensors", "config": CONFIG, "control": "discrete"}
    env = gym.make("PiKV/Runtime-v0", **fields)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.config == env.unwrapped.config == replace(CONFIG, control="discrete")
    held = gym.make("PiKV/Runtime-v0", model=model(), **fields)
    with pytest.raises(ValueError, match=r"argument 'model' is a .*pass the path of its folder"):
        held.spec.to_json()
