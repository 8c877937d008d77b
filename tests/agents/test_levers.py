"""Levers and the first policy: what is not learned stays put, what is starts as the heuristic does."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import START, tiny_library, tiny_training

from pikv_agents import training
from pikv_agents.checkpoints import network_of
from pikv_agents.levers import Levers, choose_levers
from pikv_agents.rollout import Learned
from pikv_agents.survey import survey
from pikv_env.pool import WorkloadPool
from pikv_runtime.contract import GLOBAL_CONTROLS, Control, GlobalControl, Telemetry
from pikv_runtime.control_views import make_view
from pikv_runtime.controllers import make_policy
from pikv_runtime.policy import NumpyRunner
from pikv_runtime.registry import UnknownNameError

HEURISTIC = "load_proportional:fan_out=0.2/h2o"


@pytest.fixture(scope="module", params=[START, HEURISTIC])
def started(request):
    config = tiny_training(start=request.param, levers=("fan_out", "window"))
    pool = WorkloadPool(tiny_library(), config.env, 0)
    found = survey(config, pool)
    env, levers = training.saving_env(config, pool, found)
    model = training.build(config, env, found, levers)
    yield request.param, found, env, levers, model
    env.close()


def asked(policy, found):
    """Controls (S, G) that a policy asks for in the situations of the survey."""
    told = zip(found.telemetry["groups"], found.telemetry["globals"], strict=True)
    return np.stack([policy.decide(Telemetry(g, s), Control.zeros(len(g))).globals for g, s in told])


def test_the_first_policy_does_what_the_start_does(started):
    spec, found, _, levers, model = started
    wanted = asked(make_policy(spec), found)
    given = asked(Learned(model, make_view("coef"), levers), found)
    span = np.array([c.high - c.low for c in GLOBAL_CONTROLS])
    error = np.abs(given - wanted) / span
    assert np.delete(error, GlobalControl.FAN_OUT, axis=1).max() < 0.01
    assert np.sqrt((error[:, GlobalControl.FAN_OUT] ** 2).mean()) < 0.05
    spread = np.ptp(given[:, GlobalControl.FAN_OUT])
    assert spread > 0.3 if spec == HEURISTIC else spread < 0.05


def test_only_levers_move(started):
    _, _, env, levers, _ = started
    assert env.action_space.shape == (2,)
    full = levers.expand(np.array([[-1.0, 1.0], [0.5, 0.5]]))
    moved = np.ptp(full, axis=0) > 0
    names = make_view("coef").action_names()
    assert {names[k] for k in np.flatnonzero(moved)} == {"fan_out", "window"}
    assert tuple(full[0, list(levers.columns)]) == (-1.0, 1.0)


def test_the_bundle_has_all_actions(started):
    _, found, _, levers, model = started
    network = network_of(model.policy.state_dict(), "coef", 32, levers)
    assert network.layers[-1][0].shape[0] == make_view("coef").num_actions
    learned, runner = Learned(model, make_view("coef"), levers), NumpyRunner(network)
    for groups, globals_ in list(zip(found.telemetry["groups"], found.telemetry["globals"], strict=True))[:50]:
        told = Telemetry(groups, globals_)
        np.testing.assert_allclose(runner.decide(told).globals, learned.decide(told).globals, atol=1e-4)


def test_levers_are_checked():
    view = make_view("coef")
    starts = np.zeros((2, view.num_actions), np.float32)
    with pytest.raises(UnknownNameError, match="did you mean 'fan_out'"):
        choose_levers(("fanout",), view, starts)
    starts[1, view.action_names().index("window")] = 0.5
    with pytest.raises(ValueError, match="the start changes 'window'"):
        choose_levers(("fan_out",), view, starts)
    assert choose_levers((), view, starts) is None
    assert isinstance(choose_levers(("window",), view, starts), Levers)
