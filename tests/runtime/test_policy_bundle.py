"""Bundles: round trip; every kind of tampering refused with its own message, the heuristic kept."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from bundle_kit import FIELDS, edit_manifest, rehash, save
from safetensors.numpy import load_file, save_file

import pikv_runtime
from pikv_runtime.contract import GLOBAL_FEATURES, GROUP_FEATURES, Control, Telemetry, clip_control
from pikv_runtime.controllers import Lazy
from pikv_runtime.policy import (
    BundleError,
    BundlePolicy,
    Guard,
    NumpyRunner,
    PolicyNetwork,
    load_bundle,
    load_policy,
    make_golden,
    random_telemetry,
)
from pikv_runtime.policy import bundle as bundle_module
from pikv_runtime.registry import UnknownNameError

GLOBALS, OBSERVATION = len(GLOBAL_FEATURES), len(GLOBAL_FEATURES) + 2 * len(GROUP_FEATURES)
FIRST, FOURTH = GROUP_FEATURES[0].name, GROUP_FEATURES[3].name


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "tiny-0.1"
    save(folder)
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "tiny-0.1")


def edit_tensors(folder, change, file="policy.safetensors"):
    tensors = {k: v.copy() for k, v in load_file(folder / file).items()}
    change(tensors)
    save_file(tensors, folder / file)
    rehash(folder)


def missing_file(f):
    (f / "policy.safetensors").unlink()


def missing_manifest(f):
    (f / "manifest.json").unlink()


def truncated(f):
    data = (f / "policy.safetensors").read_bytes()
    (f / "policy.safetensors").write_bytes(data[: len(data) // 2])


def truncated_and_rehashed(f):
    truncated(f)
    rehash(f)


def flipped_byte(f):
    data = bytearray((f / "policy.safetensors").read_bytes())
    data[-9] ^= 1
    (f / "policy.safetensors").write_bytes(data)


def flipped_card(f):
    (f / "README.md").write_text("# Best policy ever\n")


def reordered_features(f):
    def change(m):
        names = m["group_features"]
        names[0], names[3] = names[3], names[0]

    edit_manifest(f, change)


def line_break_in_a_unit(f):
    edit_manifest(f, lambda m: m["group_features"][0].__setitem__(1, "one\ntwo"))


def fewer_features(f):
    edit_manifest(f, lambda m: m["global_features"].pop())


def wrong_width(f):
    edit_tensors(f, lambda t: t.update({"layers.0.weight": np.zeros((9, OBSERVATION), np.float32)}))


def wrong_dtype(f):
    edit_tensors(f, lambda t: t.update({"layers.0.bias": t["layers.0.bias"].astype(np.float64)}))


def missing_tensor(f):
    edit_tensors(f, lambda t: t.pop("obs_std"))


def extra_tensor(f):
    edit_tensors(f, lambda t: t.update(spy=np.zeros(1, np.float32)))


def nan_weights(f):
    edit_tensors(f, lambda t: t["layers.1.weight"].__setitem__((0, 0), np.nan))


def zero_std(f):
    edit_tensors(f, lambda t: t["obs_std"].__setitem__(0, 0))


def foreign_contract(f):
    edit_manifest(f, lambda m: m.update(contract_hash="0123456789abcdef"))


def newer_schema(f):
    edit_manifest(f, lambda m: m.update(schema=2, something_new=True))


def missing_field(f):
    edit_manifest(f, lambda m: m.pop("interval_s"))


def extra_field(f):
    edit_manifest(f, lambda m: m.update(entry_point="os:system"))


def ill_typed_field(f):
    edit_manifest(f, lambda m: m.update(layers=["8", 8]))


def bool_for_number(f):
    edit_manifest(f, lambda m: m.update(interval_s=True))


def repeated_field(f):
    path = f / "manifest.json"
    path.write_text(path.read_text().replace("{", '{"name": "other", ', 1))


def path_traversal(f):
    edit_manifest(f, lambda m: m["files"].update({"../../outside.json": "0" * 64}))


def unknown_file(f):
    edit_manifest(f, lambda m: m["files"].update({"code.py": "0" * 64}))


def unlisted_file(f):
    (f / "weights.pkl").write_bytes(b"cos\nsystem\n")


def link(f):
    (f / "README.md").unlink()
    (f / "README.md").symlink_to("/etc/hostname")


def linked_manifest(f):
    (f / "manifest.json").rename(f.parent / "elsewhere.json")
    (f / "manifest.json").symlink_to(f.parent / "elsewhere.json")


def dangling_link(f):
    (f / "eval.json").unlink()
    (f / "eval.json").symlink_to(f / "nowhere")


def folder_for_file(f):
    (f / "README.md").unlink()
    (f / "README.md").mkdir()


def pipe_for_file(f):
    (f / "README.md").unlink()
    os.mkfifo(f / "README.md")  # opening one for reading would wait for a writer


def nothing_to_read(f):
    os.truncate(f / "eval.json", 0)
    rehash(f)


def huge_file(f):
    os.truncate(f / "policy.safetensors", bundle_module.MAX_BYTES + 1)  # sparse: costs no disk


def huge_manifest(f):
    os.truncate(f / "manifest.json", 2**20 + 1)


def absolute_path(f):
    edit_manifest(f, lambda m: m["files"].update({"/etc/hostname": "0" * 64}))


def path_of_windows(f):
    edit_manifest(f, lambda m: m["files"].update({"..\\outside": "0" * 64}))


def foreign_view(f):
    edit_manifest(f, lambda m: m.update(view="pickle"))


def too_wide(f):
    edit_manifest(f, lambda m: m.update(layers=[10**6]))


def infinite_weights(f):
    edit_tensors(f, lambda t: t["layers.0.bias"].__setitem__(0, np.inf))


def nested_json(f):
    (f / "eval.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    rehash(f)


def nan_in_json(f):
    (f / "eval.json").write_text('{"J": NaN}')
    rehash(f)


def golden_of_too_many_groups(f):
    edit_tensors(f, lambda t: t.update({f"99999.{k}": t[f"4.{k}"] for k in ("groups",)}), "golden.safetensors")


def golden_without_a_part(f):
    edit_tensors(f, lambda t: t.pop("4.control_groups"), "golden.safetensors")


def golden_mismatch(f):
    edit_tensors(f, lambda t: t["layers.2.bias"].__iadd__(0.25))


def golden_empty(f):
    edit_tensors(f, lambda t: t.clear(), "golden.safetensors")


def golden_shape(f):
    edit_tensors(f, lambda t: t.update({"4.globals": t["4.globals"][:, 1:].copy()}), "golden.safetensors")


def not_json(f):
    (f / "manifest.json").write_text("{")


def not_text(f):
    (f / "manifest.json").write_bytes(b"\xff\xfe")


TAMPERING = {
    missing_file: "file 'policy.safetensors' is missing",
    missing_manifest: "file 'manifest.json' is missing",
    truncated: "file 'policy.safetensors' does not match its SHA-256",
    truncated_and_rehashed: "policy.safetensors is not a safetensors file",
    flipped_byte: "file 'policy.safetensors' does not match its SHA-256",
    flipped_card: "file 'README.md' does not match its SHA-256",
    reordered_features: f"group feature 0 is '{FOURTH}' .*, this runtime has '{FIRST}'",
    line_break_in_a_unit: rf"group feature 0 is '{FIRST}' in 'one\\ntwo', this runtime has '{FIRST}' in",
    fewer_features: f"{GLOBALS - 1} global features, this runtime has {GLOBALS}",
    wrong_width: rf"tensor 'layers.0.weight' has shape \(9, {OBSERVATION}\): must be \(8, {OBSERVATION}\)",
    wrong_dtype: "tensor 'layers.0.bias' is float64: must be float32",
    missing_tensor: "tensor 'obs_std' is missing",
    extra_tensor: "tensor 'spy' is unknown",
    nan_weights: "tensor 'layers.1.weight' holds NaN or infinity",
    zero_std: "'obs_std' has a smallest entry of 0.0: must be positive",
    foreign_contract: "made for contract 0123456789abcdef",
    newer_schema: "schema 2 is newer than this runtime's 1: upgrade",
    missing_field: "manifest lacks field 'interval_s'",
    extra_field: "manifest has unknown field 'entry_point'",
    ill_typed_field: r"manifest field 'layers' is \['8', 8\]: must be up to",
    bool_for_number: "manifest field 'interval_s' is True: must be positive seconds",
    repeated_field: "manifest.json has field 'name' twice",
    path_traversal: "file name '../../outside.json' leaves the bundle",
    unknown_file: "manifest lists unknown file 'code.py'",
    unlisted_file: "file 'weights.pkl' is not in the manifest",
    link: "file 'README.md' cannot be read",
    linked_manifest: "file 'manifest.json' cannot be read",
    dangling_link: "file 'eval.json' cannot be read",
    folder_for_file: "file 'README.md' is not a plain file",
    pipe_for_file: "file 'README.md' is not a plain file",
    nothing_to_read: "eval.json is not JSON",
    huge_file: r"file 'policy.safetensors' has \d+ bytes: allowed \d+ at this point",
    huge_manifest: "file 'manifest.json' has 1048577 bytes: allowed 1048576",
    absolute_path: "file name '/etc/hostname' leaves the bundle",
    path_of_windows: "file name .*outside' leaves the bundle",
    foreign_view: "manifest field 'view' is 'pickle': must be one of box, coef, discrete",
    too_wide: r"manifest field 'layers' is \[1000000\]: must be up to",
    infinite_weights: "tensor 'layers.0.bias' holds NaN or infinity",
    nested_json: "eval.json is not JSON: nested too deeply",
    nan_in_json: "eval.json holds NaN",
    golden_of_too_many_groups: r"golden.safetensors names tensors of \[.*'99999'\] groups: must be 1..4096",
    golden_without_a_part: "golden.safetensors must hold groups, globals",
    golden_mismatch: r"golden pair 0 \(4 groups\) is not reproduced",
    golden_empty: "golden.safetensors names tensors of",
    golden_shape: rf"golden.safetensors: tensor '4.globals' has shape \(8, {GLOBALS - 1}\)",
    not_json: "manifest.json is not JSON",
    not_text: "manifest.json is not UTF-8",
}


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda f: f.__name__)
def test_tampering_is_refused_and_the_heuristic_kept(folder, tamper, caplog):
    tamper(folder)
    with pytest.raises(BundleError, match=TAMPERING[tamper]) as caught:
        load_policy(folder, runner="numpy")
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING, "pikv"):
        policy = load_policy(folder, runner="numpy", strict=False, fallback="lazy/h2o")
    assert policy == Lazy(ranker="h2o")
    assert [r.message for r in caplog.records] == [f"bundle {folder} refused, lazy/h2o decides: {caught.value}"]


def test_too_large_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(bundle_module, "MAX_BYTES", 1000)
    with pytest.raises(BundleError, match="bytes: allowed"):
        load_bundle(folder)


def test_dry_run_refuses_what_is_not_legal(folder, monkeypatch):
    monkeypatch.setattr(bundle_module, "check_golden", lambda *_: None)
    monkeypatch.setattr(bundle_module, "clip_control", lambda _: 1)
    with pytest.raises(BundleError, match="dry run on zero telemetry"):
        load_bundle(folder)


@pytest.mark.parametrize("view,num_groups", [("coef", None), ("box", 5), ("discrete", None)])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden", [(), (8,), (16, 8, 4)])
def test_round_trip(tmp_path, view, num_groups, activation, hidden):
    network = PolicyNetwork.random(hidden, view, activation, num_groups)
    saved = save(tmp_path / "p", network)
    loaded = load_bundle(tmp_path / "p")
    assert saved.manifest == loaded.manifest and loaded.card == FIELDS["card"]
    assert loaded.evaluation == FIELDS["evaluation"]
    for name, tensor in network.tensors().items():
        np.testing.assert_array_equal(loaded.network.tensors()[name], tensor)
    assert len({len(t.groups) for t, _ in loaded.golden}) == (2 if num_groups is None else 1)
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("runner", ["numpy", "native"])
def test_loaded_policy_decides_like_its_network(pristine, runner, tmp_path, monkeypatch):
    monkeypatch.setenv("PIKV_CACHE", str(tmp_path))
    policy = pikv_runtime.load_policy(str(pristine), runner=runner, guard=False)
    assert isinstance(policy, BundlePolicy) and policy.name == "tiny-0.1"
    reference = NumpyRunner(load_bundle(pristine).network)
    rng = np.random.default_rng(0)
    for num_groups in (1, 7, 32):
        telemetry = random_telemetry(num_groups, rng)
        mine, wanted = policy.decide(telemetry), reference.decide(telemetry)
        np.testing.assert_allclose(mine.groups, wanted.groups, atol=1e-5)
        np.testing.assert_allclose(mine.globals, wanted.globals, atol=1e-5)


def test_guard_is_armed_by_default(pristine):
    guard = load_policy(pristine, runner="numpy")
    assert isinstance(guard, Guard) and guard.fallback == Lazy(ranker="h2o")
    assert clip_control(guard.decide(Telemetry.zeros(3))) == 0


def test_heuristics_come_through_the_same_door(pristine, monkeypatch, tmp_path):
    assert load_policy("lazy/h2o") == Lazy(ranker="h2o")
    assert load_policy("static:ratio=2/lru").decide(Telemetry.zeros(2)).groups[0, 1] == 2
    with pytest.raises(UnknownNameError, match="did you mean 'lazy'"):
        load_policy("lasy")
    with pytest.raises(UnknownNameError, match="did you mean 'native'"):
        load_policy("lazy", runner="nativ")
    with pytest.raises(BundleError, match=r"no bundle folder 'trained_policies/none-1.0'"):
        load_policy("trained_policies/none-1.0")
    shutil.copytree(pristine, tmp_path / "lazy")
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_policy("lazy"), Lazy)
    assert isinstance(load_policy("./lazy", runner="numpy"), Guard)


def test_never_half_written_and_never_overwritten_unasked(tmp_path, monkeypatch):
    path = tmp_path / "p"
    save(path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(path)
    before = (path / "manifest.json").read_text()
    wrong = [(t, Control(c.groups + 0.5, c.globals)) for t, c in make_golden(PolicyNetwork.random((8, 8)))]
    with pytest.raises(BundleError, match="not reproduced"):
        save(path, golden=wrong, overwrite=True)
    assert (path / "manifest.json").read_text() == before
    assert save(path, version="0.2", overwrite=True).manifest.version == "0.2"
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize(
    "changes", [{"name": "Bad Name"}, {"version": "1"}, {"interval_s": -1.0}, {"objective_version": ""}]
)
def test_saving_checks_the_fields(tmp_path, changes):
    with pytest.raises(BundleError, match=f"manifest field '{next(iter(changes))}'"):
        save(tmp_path / "p", **changes)
    assert not list(tmp_path.iterdir())


def test_networks_check_their_tensors():
    network = PolicyNetwork.random((8,))
    tensors = network.tensors()
    for name, tensor, message in [
        ("layers.0.weight", np.zeros((8, OBSERVATION - 4), np.float32), "must be"),
        ("obs_mean", np.full(OBSERVATION, np.nan, np.float32), "NaN"),
        ("obs_std", np.zeros(OBSERVATION, np.float32), "positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            PolicyNetwork.from_tensors("coef", "tanh", tensors | {name: tensor}, None)
    with pytest.raises(UnknownNameError, match="did you mean 'relu'"):
        PolicyNetwork.from_tensors("coef", "relo", tensors, None)


ABSENT = ("gymnasium", "stable_baselines3", "wandb", "transformers", "numba", "torch", "tyro", "rich", "pikv_agents")
BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ImportError(f"{{name}} is not installed here")
sys.meta_path.insert(0, Block())
from pikv_runtime.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_bundles_are_listed_shown_and_verified_without_the_training_stack(folder):
    def policies(*arguments):
        shelf = folder.parent / "trained_policies"
        if not shelf.exists():
            shelf.mkdir()
            shutil.copytree(folder, shelf / "tiny-0.1")
            shutil.copytree(folder, shelf / "broken-0.1")
            missing_file(shelf / "broken-0.1")
        return subprocess.run(
            [sys.executable, "-c", BLOCK, "policies", *arguments], capture_output=True, text=True, cwd=folder.parent
        )

    listed = policies("list").stdout
    assert "tiny-0.1" in listed and "broken-0.1" in listed and "refused: file 'policy.safetensors' is missing" in listed
    assert policies("show", "tiny").stdout == "# tiny\n\n"
    assert "verified, numpy" in policies("verify", "tiny-0.1").stdout
    refused = policies("verify", "broken")
    assert refused.returncode == 2 and refused.stderr.startswith("error: file 'policy.safetensors' is missing")
    unknown = policies("verify", "tinny")
    assert unknown.returncode == 2 and "no bundle 'tinny': allowed" in unknown.stderr
