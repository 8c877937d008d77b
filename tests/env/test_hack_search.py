"""A small search for reward hacks nobody thought of: random schemes that change their mind, by the clock or by what
they are told. A hole in the objective would show as a scheme far below every fixed setting."""

from __future__ import annotations

import numpy as np
import pytest
from trace_kit import make_batch

from pikv_agents.hack_study import LAMBDAS, study
from pikv_agents.rollout import Job, run_jobs
from pikv_env.hacks import FIXED
from pikv_runtime.contract import EVICT_MAX, GLOBAL_FEATURES, RATIO_MAX, Control, GlobalControl, Telemetry
from pikv_runtime.contract import GroupControl as Column
from pikv_runtime.controllers import make_policy

SCHEMES = 100
PRESSURES = (1.0, 4.0)


class Scheme:
    """Two controls in turn: by the clock, or by whether a feature is above its median so far."""

    def __init__(self, seed: int, num_groups: int) -> None:
        rng = np.random.default_rng(seed)
        self.name = f"scheme-{seed}"
        self.one, self.other = self._draw(rng, num_groups), self._draw(rng, num_groups)
        self.by_clock, self.sign = bool(rng.random() < 0.5), rng.choice([-1.0, 1.0])
        self.span, self.period = sorted(rng.integers(1, 9, 2) + [0, 1])
        self.feature, self.heard = int(rng.integers(len(GLOBAL_FEATURES))), []
        self.step = 0

    @staticmethod
    def _draw(rng: np.random.Generator, num_groups: int) -> Control:
        """A fixed setting, an extreme for some of its levers, and sometimes groups that differ."""
        control = make_policy(str(rng.choice(FIXED))).decide(Telemetry.zeros(num_groups))
        extremes = {
            GlobalControl.FAN_OUT: (0.05, 0.3, 1.0),
            GlobalControl.WINDOW: (1.0, 16.0),
            GlobalControl.CACHED_SHARE: (0.0, 0.1, 1.0),
            GlobalControl.CACHED_RATIO: (1.0, RATIO_MAX),
            GlobalControl.R_PRESSURE: (1.0, RATIO_MAX),
        }
        for column, values in extremes.items():
            if rng.random() < 0.3:
                control.globals[column] = rng.choice(values)
        if rng.random() < 0.3:
            control.globals[GlobalControl.PAGE_RECENCY :] = rng.uniform(-1, 1, 12)
        if rng.random() < 0.3:
            control.groups[:, Column.COMPRESSION_RATIO] = rng.uniform(1, RATIO_MAX, num_groups)
            control.groups[:, Column.EVICT_FRACTION] = rng.uniform(0, EVICT_MAX, num_groups)
        return control

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        self.heard.append(self.sign * float(telemetry.globals[self.feature]))
        first = self.step % self.period < self.span if self.by_clock else self.heard[-1] > np.median(self.heard)
        chosen = self.one if first else self.other
        self.step += 1
        out.groups[:], out.globals[:] = chosen.groups, chosen.globals
        return out


@pytest.mark.slow
def test_no_scheme_falls_far_below_the_best_fixed_setting() -> None:
    batch = make_batch(40, families=("code-bursty", "facts-poisson"), horizon_s=60.0, load=0.5, pressure=1.0)
    played = study(batch, PRESSURES, [])
    best = np.array([played.fixed[spec][c].score.J for c, spec in enumerate(played.best)])
    jobs = [Job(Scheme(seed, batch.num_groups), *cell) for seed in range(SCHEMES) for cell in played.cells]
    costs = np.array([outcome.score.J for outcome in run_jobs(batch, jobs, LAMBDAS)]).reshape(SCHEMES, -1)
    ratios = np.sort(costs / best, axis=0)
    assert ratios[0].min() > 0.9, "look at what it does: a better setting, or a hole?"
    assert np.exp(np.log(costs / best).mean(1)).min() > 0.97
    assert np.median(ratios) > 1.05, "schemes as good as the best setting: nothing was at stake"
