"""The learner's speed is measured on a loaded server, learning what the preset learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pikv_agents.learning_speed import learning_speed
from pikv_agents.presets import QUICK
from pikv_env import speed
from pikv_runtime.contract import Control, GlobalControl

SMALL = speed.Instance(running=4, live_pages=320, cached_blocks=60)
CONFIG = replace(QUICK, rollout=16, batch_size=32, epochs=1)


def test_ppo_is_timed_on_a_loaded_server_with_the_levers_of_the_config() -> None:
    view = speed.LoadedView(SMALL, num_envs=2, intervals=100)
    before, loaded = view.batch.elapsed.copy(), view.batch.state.tally.copy()
    asked = []
    learnt = learning_speed(view, CONFIG, rollouts=1, repeats=2, on_repeat=lambda: asked.append(view.batch.elapsed[0]))
    assert (view.batch.elapsed - before == 16 * 3).all(), "one rollout to warm up and two that are timed, no restart"
    assert (view.batch.state.tally >= loaded - 1e-9).all() and len(asked) == len(learnt.rates) == 2
    assert min(learnt.rates) <= learnt.steps_per_s <= max(learnt.rates)
    assert 0 < learnt.stepping < 1 and 0 < learnt.updating < 1 and learnt.stepping + learnt.updating < 1
    neutral = Control.neutral(view.batch.num_groups)
    moved = np.abs(view.batch.control_globals - neutral.globals).max(0) > 1e-4
    levers = [GlobalControl.FAN_OUT, GlobalControl.CACHED_SHARE]
    assert not moved[[c for c in range(len(moved)) if c not in levers]].any()
    np.testing.assert_allclose(view.batch.control_groups, np.broadcast_to(neutral.groups, (2, *neutral.groups.shape)))
    view.close()


def test_a_view_that_idles_is_no_measurement() -> None:
    view = speed.LoadedView(SMALL, num_envs=1, intervals=10)
    view.batch.state.running_count[:] = 4
    speed.demand_busy(view.batch)
    view.batch.state.running_count[:] = 1
    with pytest.raises(RuntimeError, match=r"only 1\.0 requests of 4 run"):
        speed.demand_busy(view.batch)
    view.close()
