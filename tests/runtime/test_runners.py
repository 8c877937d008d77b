"""Runners agree, whatever the telemetry; compiler and cache can be trusted or are not used."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tracemalloc

import numpy as np
import pytest

from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.control_views import observe
from pikv_runtime.policy import (
    NativeRunner,
    NumpyRunner,
    PolicyNetwork,
    loading,
    native_runner,
    random_telemetry,
    toolchain,
)
from pikv_runtime.policy.codegen import source
from pikv_runtime.policy.network import OBSERVATION_CLIP
from pikv_runtime.policy.toolchain import NativeBuildError
from pikv_runtime.private_cache import CacheError, cache_folder
from pikv_runtime.views.base import GLOBAL_BOUNDS, GROUP_BOUNDS

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, toolchain.COMPILERS)), reason="needs a C compiler on PATH"
)


@pytest.fixture(autouse=True, scope="module")
def private_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("PIKV_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def worst_difference(first, second, samples, num_groups, seed=0):
    """Over telemetry in range, out of range, infinite and NaN."""
    rng, worst = np.random.default_rng(seed), 0.0
    one, two = Control.zeros(num_groups), Control.zeros(num_groups)
    for i in range(samples):
        telemetry = random_telemetry(num_groups, rng)
        if i % 4 == 1:
            telemetry.groups *= 3
        if i % 16 == 2:
            telemetry.groups[rng.random(telemetry.groups.shape) < 0.1] = np.nan
            telemetry.globals[rng.integers(len(telemetry.globals))] = np.inf
        first.decide(telemetry, one)
        second.decide(telemetry, two)
        worst = max(worst, np.abs(one.groups - two.groups).max(), np.abs(one.globals - two.globals).max())
    return worst


@needs_compiler
@pytest.mark.parametrize("num_groups", [1, 8, 32])
@pytest.mark.parametrize("samples", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_native_equals_numpy(num_groups, samples):
    network = PolicyNetwork.random((64, 64), seed=num_groups)
    assert worst_difference(NumpyRunner(network), NativeRunner(network), samples, num_groups) <= 1e-5


@needs_compiler
@pytest.mark.parametrize("hidden", [(), (5,), (33, 64, 40)])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("view", ["coef", "box", "discrete"])
def test_native_serves_every_architecture(view, activation, hidden):
    network = PolicyNetwork.random(hidden, view, activation, num_groups=6, seed=1)
    assert worst_difference(NumpyRunner(network), NativeRunner(network), 100, 6) <= 1e-5


@needs_compiler
def test_more_groups_than_a_chunk_and_changing_counts():
    network = PolicyNetwork.random((16,))
    numpy, native = NumpyRunner(network), NativeRunner(network)
    for num_groups in (200, 1, 64, 65, 200):
        assert worst_difference(numpy, native, 20, num_groups) <= 1e-5


@pytest.mark.parametrize("runner", [NumpyRunner, pytest.param(NativeRunner, marks=needs_compiler)])
def test_decide_writes_out_and_leaves_telemetry_alone(runner):
    policy, telemetry = runner(PolicyNetwork.random((8,))), random_telemetry(4, np.random.default_rng(0))
    telemetry.groups[0, 0] = np.nan
    before, out = telemetry.groups.copy(), Control.zeros(4)
    assert policy.decide(telemetry, out) is out
    np.testing.assert_array_equal(telemetry.groups, before)
    fresh = policy.decide(telemetry)
    np.testing.assert_array_equal(fresh.groups, out.groups)
    # Odd strides and dtypes are copied, not trusted.
    odd = Telemetry(np.asfortranarray(telemetry.groups.astype(np.float64)), telemetry.globals)
    np.testing.assert_array_equal(policy.decide(odd).groups, out.groups)
    with pytest.raises(ValueError, match=r"shape \(4, 7\)"):
        policy.decide(Telemetry(telemetry.groups[:, :7], telemetry.globals))


@pytest.mark.parametrize("runner", [NumpyRunner, pytest.param(NativeRunner, marks=needs_compiler)])
def test_nan_is_not_hidden(runner):
    network = PolicyNetwork.random((8,))
    network.layers[-1][1][:] = np.nan  # no bundle could hold this
    control = runner(network).decide(random_telemetry(2, np.random.default_rng(0)))
    assert np.isnan(control.globals).all() and np.isnan(control.groups[:, 1:]).all()


def test_fixed_number_of_groups_is_kept():
    policy = NumpyRunner(PolicyNetwork.random((8,), "box", num_groups=3))
    with pytest.raises(ValueError, match="serves 3 groups, the telemetry has 4"):
        policy.decide(Telemetry.zeros(4))


def test_source_is_reproducible_and_exact():
    network = PolicyNetwork.random((8,))
    assert source(network) == source(PolicyNetwork.random((8,)))
    assert float(network.layers[0][0][0, 0]).hex() in source(network)
    assert "-ffast-math" not in toolchain.FLAGS


@needs_compiler
def test_library_is_built_once_and_rebuilt_when_damaged(monkeypatch):
    network = PolicyNetwork.random((7,), seed=9)
    NativeRunner(network)
    built = set(cache_folder().glob("policy-*.so"))
    monkeypatch.setattr(toolchain, "_build", lambda *_: pytest.fail("built twice"))
    NativeRunner(network)
    monkeypatch.undo()
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in built)
    assert not [p for p in cache_folder().iterdir() if p.name.startswith(".build-")]


@needs_compiler
def test_damaged_library_is_built_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("PIKV_CACHE", str(tmp_path))
    text = source(PolicyNetwork.random((6,), seed=3))
    compiler = toolchain.find_compiler()
    flags = (*toolchain.FLAGS, *toolchain.tuning(compiler))
    path = cache_folder() / f"policy-{toolchain._key(text, compiler, flags)}.so"
    path.write_bytes(b"\x7fELF not really")
    path.chmod(0o700)
    assert toolchain.load_library(text).pikv_decide


def test_cache_that_others_may_write_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PIKV_CACHE", str(tmp_path))
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    cache_folder().chmod(0o770)
    with pytest.raises(CacheError, match="mode 770: others may write"):
        cache_folder()
    cache_folder_path = tmp_path / "pikv"
    cache_folder_path.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache_folder_path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="not a plain folder"):
        cache_folder()


def test_cache_of_somebody_else_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PIKV_CACHE", str(tmp_path))
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(CacheError, match=f"belongs to user {owner}, not to {owner + 1}"):
        cache_folder()


def test_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("PIKV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pikv"


def test_without_compiler_numpy_decides_with_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    loading._warn_once.cache_clear()
    network = PolicyNetwork.random((8,))
    with caplog.at_level(logging.WARNING, "pikv"):
        runners = [loading.RUNNERS["native"](network) for _ in range(3)]
    assert all(isinstance(r, NumpyRunner) for r in runners)
    assert len(caplog.records) == 1 and "no C compiler" in caplog.text


@needs_compiler
@pytest.mark.parametrize("refused", ["-march=native", "-mcpu=native"])
def test_a_compiler_that_cannot_tune_for_this_processor_builds_all_the_same(monkeypatch, tmp_path, refused):
    script = tmp_path / "cc"
    script.write_text(
        f'#!/bin/sh\nfor a in "$@"; do [ "$a" = "{refused}" ] && echo "unknown {refused}" >&2 && exit 1; done\n'
        f'exec {shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: str(script))
    monkeypatch.setattr(toolchain, "TUNING", {platform.machine().lower(): refused})
    monkeypatch.setenv("PIKV_CACHE", str(tmp_path))
    assert toolchain.tuning(str(script)) == ()
    network = PolicyNetwork.random((33, 16), seed=4)
    assert worst_difference(NumpyRunner(network), NativeRunner(network), 200, 6) <= 1e-5


def test_every_machine_is_asked_in_its_own_way(monkeypatch):
    monkeypatch.setattr(toolchain, "_macros", lambda compiler, flags: "")
    for machine, flags in (("x86_64", ("-march=native",)), ("arm64", ("-mcpu=native",)), ("riscv64", ())):
        monkeypatch.setattr(toolchain.platform, "machine", lambda machine=machine: machine)
        assert toolchain.tuning(f"cc for {machine}") == flags


@needs_compiler
def test_no_room_for_the_library_is_no_reason_to_stop(monkeypatch, tmp_path):
    monkeypatch.setenv("PIKV_CACHE", str(tmp_path))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(toolchain.tempfile, "TemporaryDirectory", full)
    with pytest.raises(NativeBuildError, match="No space left"):
        NativeRunner(PolicyNetwork.random((5, 3), seed=11))
    assert isinstance(loading.RUNNERS["native"](PolicyNetwork.random((5, 3), seed=11)), NumpyRunner)


def test_a_network_that_would_take_minutes_to_compile_is_left_to_numpy(monkeypatch):
    monkeypatch.setattr(native_runner, "MOST_WEIGHTS", 100)
    with pytest.raises(NativeBuildError, match="weights: at most 100 are compiled"):
        NativeRunner(PolicyNetwork.random((8,)))


@needs_compiler
@pytest.mark.parametrize("num_groups", [32, 512])
def test_a_decision_allocates_nothing_that_stays_and_next_to_nothing_that_goes(num_groups):
    policy, out = NativeRunner(PolicyNetwork.random((64, 64))), Control.zeros(num_groups)
    told = random_telemetry(num_groups, np.random.default_rng(0))
    policy.decide(told, out)
    tracemalloc.start()
    try:
        for _ in range(10):
            policy.decide(told, out)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(1000):
            policy.decide(told, out)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before <= 64, "bytes that a thousand decisions leave behind"
    assert peak - before <= 512, "bytes in use at a time: no array, no copy of the telemetry"


def reference_controls(network, groups, globals_):
    """The numpy runner's steps for a batch: groups (n, N, F) and globals (n, G) to controls (n, N, C) and (n, K)."""
    x = (observe(groups, globals_).astype(np.float64) - network.mean) / network.std.astype(np.float64)
    x = np.clip(x, -OBSERVATION_CLIP, OBSERVATION_CLIP)
    for i, (weight, bias) in enumerate(network.layers):
        x = x @ weight.T.astype(np.float64) + bias
        x = np.tanh(x) if i < len(network.layers) - 1 else x
    out = Control.zeros(groups.shape[1])
    controls = [np.repeat(part[None], len(groups), axis=0) for part in (out.groups, out.globals)]
    network.control_view.decode(network.control_view.act(x), groups, globals_, *controls)
    return controls


@needs_compiler
@pytest.mark.parametrize("samples", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_native_equals_the_reference_on_random_telemetry(samples):
    network, rng, batch = PolicyNetwork.random((64, 64), seed=3), np.random.default_rng(3), 10_000
    native, out, worst = NativeRunner(network), Control.zeros(8), 0.0
    for _ in range(samples // batch):
        groups = rng.uniform(*GROUP_BOUNDS, size=(batch, *Telemetry.zeros(8).groups.shape)).astype(np.float32)
        globals_ = rng.uniform(*GLOBAL_BOUNDS, size=(batch, len(GLOBAL_BOUNDS[0]))).astype(np.float32)
        wanted, made = reference_controls(network, groups, globals_), ([], [])
        for k in range(batch):
            native.decide(Telemetry(groups[k], globals_[k]), out)
            made[0].append(out.groups.copy())
            made[1].append(out.globals.copy())
        answers = [np.stack(part) for part in made]
        worst = max(worst, *(float(np.abs(a - w).max()) for a, w in zip(answers, wanted, strict=True)))
    assert worst <= 1e-5


@needs_compiler
def test_a_library_that_disagrees_is_refused(monkeypatch):
    monkeypatch.setattr(
        native_runner, "source", lambda n: source(n).replace("* (a[TERMS + i] + 1)", "* (a[TERMS + i] + 2)")
    )
    with pytest.raises(NativeBuildError, match=r"disagrees with numpy in control\.globals"):
        NativeRunner(PolicyNetwork.random((8,)))


@needs_compiler
def test_compiler_errors_are_one_line():
    with pytest.raises(NativeBuildError, match=r"failed with status 1: .*error") as caught:
        toolchain.load_library("int broken(")
    assert "\n" not in str(caught.value)
