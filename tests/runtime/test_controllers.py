"""Heuristics: full legal controls, specs that round-trip, and the behaviour that their names promise."""

from __future__ import annotations

import numpy as np
import pytest

from pikv_runtime.contract import (
    Control,
    GlobalControl,
    GlobalFeature,
    GroupControl,
    GroupFeature,
    Telemetry,
    clip_control,
)
from pikv_runtime.controllers import CONTROLLERS, make_policy
from pikv_runtime.policy import Policy, random_telemetry
from pikv_runtime.rankers import RANKERS
from pikv_runtime.registry import UnknownNameError

RATIO, EVICT = GroupControl.COMPRESSION_RATIO, GroupControl.EVICT_FRACTION
R_PRESSURE = GlobalControl.R_PRESSURE


def under(pressure, cached=0.0, previous_r=1.0, queued=0.0, groups=3):
    telemetry = Telemetry.zeros(groups)
    telemetry.globals[GlobalFeature.PRESSURE] = pressure
    telemetry.globals[GlobalFeature.CACHED_SHARE] = cached
    telemetry.globals[GlobalFeature.PREVIOUS_R_PRESSURE] = np.log2(previous_r)
    telemetry.globals[GlobalFeature.QUEUED_PROMPT] = queued
    return telemetry


@pytest.mark.parametrize("ranker", RANKERS)
@pytest.mark.parametrize("name", CONTROLLERS)
def test_writes_a_full_legal_control(name, ranker):
    policy, rng = make_policy(f"{name}/{ranker}"), np.random.default_rng(0)
    assert isinstance(policy, Policy)
    for num_groups in (1, 8):
        out = Control.zeros(num_groups)
        for _ in range(20):
            out.groups[:], out.globals[:] = np.nan, np.nan
            assert policy.decide(random_telemetry(num_groups, rng), out) is out
            assert clip_control(out) == 0
            assert tuple(out.globals[GlobalControl.PAGE_RECENCY : GlobalControl.BLOCK_RECENCY]) == RANKERS[ranker]
    assert policy.decide(random_telemetry(5, rng)).groups.shape == (5, 3)


@pytest.mark.parametrize(
    "spec",
    ["h2o", "lazy", "capped_exact/lfu", "static:ratio=2,fan_out=0.25,demote=yes/h2o", "random:seed=7/lru",
     "pressure_proportional:start=0.3,evict=0.2/streaming_llm", "lazy:int8_at=0.5,hysteresis=0.1/h2o"],
)  # fmt: skip
def test_specs_round_trip(spec):
    policy = make_policy(spec)
    assert make_policy(policy.name) == policy


@pytest.mark.parametrize(
    "spec,message",
    [
        ("h20", "unknown policy 'h20': did you mean 'h2o'"),
        ("statik:ratio=2", "did you mean 'static'"),
        ("static/lruu", "unknown ranker 'lruu': did you mean 'lru'"),
        ("static:rato=2", "unknown parameter of 'static' 'rato': did you mean 'ratio'"),
    ],
)
def test_unknown_names_get_the_closest(spec, message):
    with pytest.raises(UnknownNameError, match=message):
        make_policy(spec)


@pytest.mark.parametrize(
    "spec,message",
    [
        ("static:ratio=9", r"ratio=9.0: allowed 1..4.0"),
        ("static:ratio=nan", "ratio=nan: allowed"),
        ("static:ratio=two", "must be a number"),
        ("static:demote=maybe", "allowed true, yes"),
        ("static:ratio=2,ratio=3", "given twice"),
        ("lazy:int8_at=0.9,int4_at=0.5", "int4_at=0.5: allowed 0.9..1"),
    ],
)
def test_bad_parameters_name_value_and_range(spec, message):
    with pytest.raises(ValueError, match=message):
        make_policy(spec)


def test_bare_ranker_lets_pressure_demote_and_asks_nothing_else():
    control = make_policy("h2o").decide(under(1.0))
    assert control.globals[R_PRESSURE] == 4
    assert (control.groups[:, RATIO] == 1).all() and (control.groups[:, EVICT] == 0).all()


def test_capped_exact_is_never_lossy():
    rng = np.random.default_rng(1)
    for _ in range(50):
        control = make_policy("capped_exact").decide(random_telemetry(4, rng))
        np.testing.assert_array_equal(control.groups, Control.neutral(4).groups)
        assert control.globals[R_PRESSURE] == 1 and control.globals[GlobalControl.FAN_OUT] == 1
        assert control.globals[GlobalControl.CACHED_RATIO] == 1


def test_lazy_steps_up_with_pressure_and_holds_with_hysteresis():
    lazy, asked = make_policy("lazy"), []
    in_force = 1.0
    for pressure in (0.3, 0.8, 0.6, 0.5, 0.95, 0.75, 0.65, 0.5):
        control = lazy.decide(under(pressure, previous_r=in_force))
        in_force = float(control.globals[R_PRESSURE])
        asked.append(in_force)
    assert asked == [1, 2, 2, 1, 4, 4, 2, 1]


def test_cached_blocks_do_not_count_as_pressure():
    for spec in ("lazy", "pressure_proportional"):
        control = make_policy(spec).decide(under(1.0, cached=0.7))
        assert control.globals[R_PRESSURE] == 1 and (control.groups[:, RATIO] == 1).all()


def test_pressure_proportional_grows_linearly_and_saturates():
    policy = make_policy("pressure_proportional:start=0.5,ratio=3,evict=0.2,queue_gain=0.5")
    ratios = [float(policy.decide(under(p)).groups[0, RATIO]) for p in (0.4, 0.5, 0.75, 1.0)]
    assert ratios == pytest.approx([1, 1, 2, 3])
    assert float(policy.decide(under(0.75)).groups[0, EVICT]) == pytest.approx(0.1)
    assert float(policy.decide(under(0.5, queued=0.5)).groups[0, RATIO]) == pytest.approx(2)
    assert float(policy.decide(under(1.0, queued=9)).groups[0, RATIO]) == pytest.approx(3)


def test_random_is_reproducible_and_varies():
    first, second, other = (make_policy(s) for s in ("random:seed=1", "random:seed=1", "random:seed=2"))
    one, two, three = (p.decide(under(0.5)) for p in (first, second, other))
    np.testing.assert_array_equal(one.groups, two.groups)
    assert not np.array_equal(one.groups, three.groups)
    assert not np.array_equal(first.decide(under(0.5)).globals, one.globals)


def of_groups(mass, held, ratio=(1.0, 1.0, 1.0), pressure=0.95):
    telemetry = under(pressure, groups=len(mass))
    telemetry.groups[:, GroupFeature.TOKENS_SHARE] = 1 / len(mass)
    telemetry.groups[:, GroupFeature.MASS_DENSITY] = np.log2(np.asarray(mass) * len(mass))
    telemetry.groups[:, GroupFeature.RESIDENT_SHARE] = held
    telemetry.groups[:, GroupFeature.MEAN_RATIO] = np.log2(ratio)
    return telemetry


def test_utility_greedy_asks_nothing_without_need():
    control = make_policy("utility_greedy/h2o").decide(of_groups((0.5, 0.3, 0.2), (0.3, 0.3, 0.2), pressure=0.7))
    assert (control.groups[:, RATIO] == 1).all() and (control.groups[:, EVICT] == 0).all()


def test_utility_greedy_takes_the_group_that_loses_least_per_byte():
    # 0.1 short; int8 on any group frees half of its bytes: one group will do, the one with the least mass per byte.
    control = make_policy("utility_greedy:target=0.85/h2o").decide(of_groups((0.6, 0.1, 0.3), (0.3, 0.3, 0.3)))
    assert control.groups[:, RATIO].tolist() == [1.0, 2.0, 1.0]
    assert (control.groups[:, EVICT] == 0).all()


def test_utility_greedy_evicts_where_that_is_cheaper_than_the_codec():
    told = of_groups((0.5, 0.02, 0.48), (0.4, 0.4, 0.1))
    mild = make_policy("utility_greedy:target=0.9,int8_error=0.4,int4_error=0.8/h2o").decide(told)
    assert (mild.groups[:, RATIO] == 1).all() and mild.groups[1, EVICT] > 0 == mild.groups[0, EVICT]
    coded = make_policy("utility_greedy:target=0.9,int8_error=0,int4_error=0.8/h2o").decide(told)
    assert coded.groups[:, RATIO].max() == 2 and (coded.groups[:, EVICT] == 0).all()


def test_utility_greedy_goes_on_from_the_rung_that_is_reached():
    told = of_groups((0.4, 0.3, 0.3), (0.3, 0.3, 0.3), ratio=(2.0, 2.0, 2.0), pressure=1.0)
    control = make_policy("utility_greedy:target=0.9,int4_error=0.01,skew=1/h2o").decide(told)
    assert control.groups[:, RATIO].max() == np.float32(3.4), "int8 frees nothing any more"


def test_a_block_rule_belongs_to_the_spec():
    assert make_policy("lazy/h2o").block_rule == ""
    policy = make_policy("static:ratio=1e+0/lru+tlru:threshold=0.2,next_prompt=2")
    assert policy.block_rule == "tlru:threshold=0.2,next_prompt=2" and make_policy(policy.name) == policy
    assert make_policy("h2o+sieve").block_rule == "sieve"
    with pytest.raises(UnknownNameError, match="unknown block rule 'seive': did you mean 'sieve'"):
        make_policy("lazy/h2o+seive")
