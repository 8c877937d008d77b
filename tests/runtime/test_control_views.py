"""Observations and control views: finite, equivariant, legal, and the identity where they promise it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pikv_runtime.contract import (
    EVICT_MAX,
    GLOBAL_FEATURES,
    GROUP_FEATURES,
    RATIO_MAX,
    Control,
    GlobalControl,
    GroupControl,
    GroupFeature,
    clip_control,
)
from pikv_runtime.control_views import DISCRETE_GRID, VIEWS, make_view, observation_names, observe
from pikv_runtime.rankers import RANKERS, apply_ranker
from pikv_runtime.registry import UnknownNameError
from pikv_runtime.views.base import GLOBAL_BOUNDS, GROUP_BOUNDS


def told(rng, n, num_groups):
    groups = rng.uniform(*GROUP_BOUNDS, size=(n, num_groups, len(GROUP_FEATURES))).astype(np.float32)
    return groups, rng.uniform(*GLOBAL_BOUNDS, size=(n, len(GLOBAL_FEATURES))).astype(np.float32)


def decode(view, actions, groups, globals_):
    n, num_groups = groups.shape[:2]
    out = np.full((n, num_groups, 3), np.nan, np.float32), np.full((n, 17), np.nan, np.float32)
    view.decode(actions, groups, globals_, *out)
    return out


def sample(view, rng, n):
    if view.name == "discrete":
        return rng.integers(0, view.nvec, size=(n, len(view.nvec)))
    return rng.uniform(view.action_low, view.action_high, size=(n, view.num_actions)).astype(np.float32)


@pytest.mark.parametrize("name", VIEWS)
def test_observation_matches_names(name):
    groups, globals_ = told(np.random.default_rng(0), 5, 7)
    seen = observe(groups, globals_, view=name)
    names = observation_names(7, name)
    assert seen.shape == (5, len(names)) and seen.dtype == np.float32
    assert len(set(names)) == len(names)
    np.testing.assert_allclose(
        seen[:, names.index("mean_recency")], groups[:, :, GroupFeature.RECENCY].mean(axis=1), rtol=1e-6
    )
    np.testing.assert_array_equal(seen[:, names.index("max_recency")], groups[:, :, GroupFeature.RECENCY].max(axis=1))
    np.testing.assert_array_equal(seen[:, names.index("price_host")], globals_[:, -1])


def test_observation_is_always_finite_and_leaves_telemetry_alone():
    rng = np.random.default_rng(1)
    groups, globals_ = told(rng, 3, 4)
    groups[0, 1], globals_[1, :5], groups[2, :, 3] = np.nan, np.inf, -np.inf
    before = groups.copy(), globals_.copy()
    out = np.empty((3, 63), np.float32)
    assert observe(groups, globals_, out) is out
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(before[0], groups)
    np.testing.assert_array_equal(before[1], globals_)


@pytest.mark.parametrize("name", VIEWS)
def test_every_action_gives_a_legal_control(name):
    rng, view = np.random.default_rng(2), make_view(name, 6)
    groups, globals_ = told(rng, 200, 6)
    groups[0], groups[1] = np.nan, np.inf
    actions = sample(view, rng, 200)
    if name != "discrete":
        actions[2], actions[3] = view.action_low, view.action_high
    out_groups, out_globals = decode(view, actions, groups, globals_)
    for i in range(200):
        assert clip_control(Control(out_groups[i], out_globals[i])) == 0
    assert len(view.action_names(6)) == view.num_actions


@pytest.mark.parametrize("name", ["coef", "discrete"])
def test_batch_equals_one_by_one_and_any_number_of_groups(name):
    rng, view = np.random.default_rng(3), make_view(name)
    for num_groups in (1, 3, 32):
        groups, globals_ = told(rng, 4, num_groups)
        actions = sample(view, rng, 4)
        whole = decode(view, actions, groups, globals_)
        for i in range(4):
            single = decode(view, actions[i : i + 1], groups[i : i + 1], globals_[i : i + 1])
            np.testing.assert_allclose(single[0][0], whole[0][i], atol=1e-6)
            np.testing.assert_array_equal(single[1][0], whole[1][i])


def test_coef_is_equivariant_to_permutations_and_ignores_other_groups():
    rng, view = np.random.default_rng(4), make_view("coef")
    groups, globals_ = told(rng, 8, 16)
    actions, order = sample(view, rng, 8), rng.permutation(16)
    straight, permuted = (
        decode(view, actions, groups, globals_),
        decode(view, actions, groups[:, order], globals_),
    )
    np.testing.assert_allclose(permuted[0], straight[0][:, order], atol=1e-6)
    np.testing.assert_array_equal(permuted[1], straight[1])
    fewer = decode(view, actions, groups[:, :5], globals_)
    np.testing.assert_allclose(fewer[0], straight[0][:, :5], atol=1e-6)
    np.testing.assert_allclose(observe(groups[:, order], globals_), observe(groups, globals_), rtol=1e-6, atol=1e-6)


def test_coef_follows_its_formula():
    rng, view = np.random.default_rng(5), make_view("coef")
    groups, globals_ = told(rng, 1, 1)
    a = sample(view, rng, 1)[0].astype(np.float64) * 0.2
    f = dict(zip([c.name for c in GROUP_FEATURES], groups[0, 0].astype(np.float64), strict=True))
    density, recency, layer = f["mass_density"] / 4, f["recency"] / 4, 2 * f["layer_position"] - 1
    ratio = np.tanh(2 * a[:5] @ [1, density, recency, f["codec_error"], layer]) / 0.96
    evict = np.tanh(2 * a[5:10] @ [1, density, recency, f["ghost_share"], layer]) / 0.96
    routing = np.tanh(2 * a[10:13] @ [f["miss_rate"], density, f["routing_share"]])
    out_groups, out_globals = decode(view, a[None], groups, globals_)
    expected = [
        routing,
        1 + (RATIO_MAX - 1) * (np.clip(ratio, -1, 1) + 1) / 2,
        EVICT_MAX * np.clip(evict, 0, 1),
    ]
    np.testing.assert_allclose(out_groups[0, 0], expected, atol=1e-6)
    assert out_globals[0, GlobalControl.WINDOW] == pytest.approx(16 ** ((a[14] + 1) / 2), rel=1e-6)
    assert out_globals[0, GlobalControl.R_PRESSURE] == pytest.approx(1 + 3 * (a[17] + 1) / 2, rel=1e-6)
    np.testing.assert_allclose(out_globals[0, GlobalControl.PAGE_RECENCY :], a[18:], atol=1e-7)


@pytest.mark.parametrize("ratio,evict", [(1.0, 0.0), (RATIO_MAX, EVICT_MAX), (2.2, 0.1)])
def test_coef_reaches_and_encodes_uniform_controls(ratio, evict):
    rng, view = np.random.default_rng(6), make_view("coef")
    groups, globals_ = told(rng, 2, 4)
    control = Control.neutral(4)
    control.groups[:, GroupControl.COMPRESSION_RATIO], control.groups[:, GroupControl.EVICT_FRACTION] = (
        ratio,
        evict,
    )
    actions = view.encode(np.stack([control.groups] * 2), np.stack([control.globals] * 2))
    assert np.abs(actions).max() <= 1
    out_groups, out_globals = decode(view, actions, groups, globals_)
    np.testing.assert_allclose(out_groups[0], control.groups, atol=1e-5)
    np.testing.assert_allclose(out_globals[0], control.globals, atol=1e-5)
    if ratio == 1.0:
        np.testing.assert_array_equal(out_groups[0], control.groups)  # exactly nothing lossy


def test_box_encodes_what_it_decodes():
    rng, view = np.random.default_rng(7), make_view("box", 5)
    groups, globals_ = told(rng, 3, 5)
    actions = sample(view, rng, 3)
    np.testing.assert_allclose(view.encode(*decode(view, actions, groups, globals_)), actions, atol=1e-5)


def test_discrete_is_the_identity_on_its_whole_grid():
    view = make_view("discrete")
    grid = np.array(list(itertools.product(*(range(k) for k in view.nvec))))
    groups, globals_ = told(np.random.default_rng(8), len(grid), 2)
    controls = decode(view, grid, groups, globals_)
    np.testing.assert_array_equal(view.encode(*controls), grid)
    again = decode(view, view.encode(*controls), groups, globals_)
    np.testing.assert_array_equal(again[0], controls[0])
    np.testing.assert_array_equal(again[1], controls[1])


def test_discrete_grid_is_as_documented():
    control, view = Control.neutral(3), make_view("discrete")
    control.groups[:, GroupControl.COMPRESSION_RATIO] = 2.0
    control.globals[GlobalControl.R_PRESSURE] = 4.0
    apply_ranker("h2o", control)
    index = view.encode(control.groups[None], control.globals[None])[0]
    assert [values[i] for i, (_, values) in zip(index, DISCRETE_GRID, strict=True)] == [
        2.0,
        0.0,
        1.0,
        1.0,
        4.0,
        "h2o",
    ]
    logits = np.zeros((1, view.num_outputs))
    logits[0, 1] = 3.0
    np.testing.assert_array_equal(view.act(logits)[0], [1, 0, 0, 0, 0, 0])


def test_faults_are_named():
    with pytest.raises(UnknownNameError, match="did you mean 'coef'"):
        make_view("coeff")
    with pytest.raises(ValueError, match="num_groups=None"):
        make_view("box")
    view, (groups, globals_) = make_view("box", 2), told(np.random.default_rng(0), 1, 3)
    with pytest.raises(ValueError, match="23 actions, allowed 26 for 3 groups"):
        decode(view, np.zeros((1, 23)), groups, globals_)
    with pytest.raises(UnknownNameError, match="did you mean 'h2o'"):
        apply_ranker("h20", Control.neutral(1))


def test_nan_actions_stay_visible():
    groups, globals_ = told(np.random.default_rng(9), 1, 2)
    out_groups, out_globals = decode(make_view("coef"), np.full((1, 30), np.nan), groups, globals_)
    assert np.isnan(out_groups).any() and np.isnan(out_globals).all()


@pytest.mark.parametrize("name", RANKERS)
def test_rankers_write_all_weights(name):
    control = Control.zeros(1)
    control.globals[:] = np.nan
    apply_ranker(name, control)
    assert np.isfinite(control.globals[GlobalControl.PAGE_RECENCY :]).all()
    assert control.globals[GlobalControl.BLOCK_RECENCY] == 1


def test_biases_alone_decode_to_the_same_bits_beside_lanes_that_look_at_features():
    rng, view = np.random.default_rng(7), make_view("coef")
    groups, globals_ = told(rng, 3, 6)
    actions = sample(view, rng, 3)
    varying = [name.count(".") == 1 and not name.endswith(".bias") for name in view.action_names()]
    actions[:2, varying] = 0.0
    mixed, alone = decode(view, actions, groups, globals_), decode(view, actions[:2], groups[:2], globals_[:2])
    for together, apart in zip(mixed, alone, strict=True):
        np.testing.assert_array_equal(together[:2], apart)
    assert np.ptp(mixed[0][2, :, 0]) > 0, "the third lane tells groups apart"
