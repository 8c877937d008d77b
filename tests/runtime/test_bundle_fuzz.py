"""Bundles under mutation: refused in one line, or as sound as one that was saved; nothing in them is ever executed."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bundle_kit import save

from pikv_runtime.contract import Telemetry, clip_control
from pikv_runtime.policy import BundleError, NumpyRunner, load_bundle

NASTY = (
    None, True, -1, 0, 1.5, 1e308, 2**70, "", "..", "../../x", "coef", "box", "relu", [], {}, [[]], ["a", "b"],
    "x" * 5000, "\u0000", "\n", [8], [8, 8, 8], {"a": 1}, "os:system", "0" * 64,
)  # fmt: skip
NUMBERS = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0, 0.0, 1.0)
FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "pickle.find_class",
    "ctypes.dlopen",
    "subprocess.Popen",
    "os.system",
    "os.exec",
)

Files = dict[str, bytes]


class Watch:
    """Audit events while `on`; a hook cannot be taken out again."""

    def __init__(self) -> None:
        self.on, self.seen, self.opened = False, Counter(), set()
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.on:
            self.seen[event] += 1
            if event == "open" and isinstance(arguments[0], str | bytes | Path):
                self.opened.add(str(arguments[0]))


WATCH = Watch()


@pytest.fixture
def watch():
    WATCH.seen.clear()
    WATCH.opened.clear()
    yield WATCH
    WATCH.on = False


def pick(rng, files: Files) -> str:
    names = sorted(name for name in files if files[name])
    return names[rng.integers(len(names))]


def flip(rng, files):
    name = pick(rng, files)
    data = bytearray(files[name])
    for _ in range(rng.integers(1, 9)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    files[name] = bytes(data)


def cut(rng, files):
    name = pick(rng, files)
    files[name] = files[name][: rng.integers(len(files[name]))]


def grow(rng, files):
    name, extra = pick(rng, files), rng.bytes(int(rng.integers(1, 64)))
    at = rng.integers(len(files[name]) + 1)
    files[name] = files[name][:at] + extra + files[name][at:]


def swap_parts(rng, files):
    name = pick(rng, files)
    a, b, c = sorted(rng.integers(len(files[name]), size=3))
    files[name] = files[name][:a] + files[name][b:c] + files[name][a:b] + files[name][c:]


def swap_files(rng, files):
    one, other = pick(rng, files), pick(rng, files)
    files[one], files[other] = files[other], files[one]


def lose(rng, files):
    del files[pick(rng, files)]


def stray(rng, files):
    files[("weights.pkl", "__init__.py", "policy.so", "manifest.json~")[rng.integers(4)]] = rng.bytes(20)


def field(rng, files):
    """A field of a JSON file, or one below it, becomes something that does not belong there."""
    name = ("manifest.json", "eval.json")[rng.integers(2)]
    told = at = json.loads(files[name])
    while True:
        key = sorted(at)[rng.integers(len(at))] if isinstance(at, dict) else int(rng.integers(len(at)))
        if not (isinstance(at[key], dict | list) and at[key] and rng.random() < 0.6):
            break
        at = at[key]
    at[key] = NASTY[rng.integers(len(NASTY))]
    files[name] = json.dumps(told).encode()


def header(rng, files):
    """A tensor's dtype, shape or place in the file becomes another."""
    name = ("policy.safetensors", "golden.safetensors")[rng.integers(2)]
    length = struct.unpack("<Q", files[name][:8])[0]
    told = json.loads(files[name][8 : 8 + length])
    tensor = told[sorted(told.keys() - {"__metadata__"})[rng.integers(len(told.keys() - {"__metadata__"}))]]
    change = rng.integers(3)
    if change == 0:
        tensor["dtype"] = ("F64", "F16", "BF16", "I32", "U8", "BOOL", "pickle")[rng.integers(7)]
    elif change == 1:
        tensor["shape"] = [[], [0], [1, 1, 1], [2**40], [-1], tensor["shape"][::-1]][rng.integers(6)]
    else:
        tensor["data_offsets"] = [int(n) for n in rng.integers(-8, 10**5, 2)]
    text = json.dumps(told).encode()
    files[name] = struct.pack("<Q", len(text)) + text + files[name][8 + length :]


def weight(rng, files):
    """A number of a tensor becomes another."""
    name = ("policy.safetensors", "golden.safetensors")[rng.integers(2)]
    length = struct.unpack("<Q", files[name][:8])[0]
    at = 8 + length + 4 * int(rng.integers((len(files[name]) - 8 - length) // 4))
    files[name] = files[name][:at] + struct.pack("<f", NUMBERS[rng.integers(len(NUMBERS))]) + files[name][at + 4 :]


MUTATIONS = (flip, cut, grow, swap_parts, swap_files, lose, stray, field, field, header, header, weight, weight)

BLIND = (flip, cut, grow, swap_parts, swap_files, lose, stray)


def forge(files: Files) -> None:
    """Hashes that fit, as far as the manifest can still be read."""
    try:
        manifest = json.loads(files["manifest.json"])
        for name in manifest["files"]:
            manifest["files"][name] = hashlib.sha256(files[name]).hexdigest()
        files["manifest.json"] = json.dumps(manifest).encode()
    except (KeyError, TypeError, ValueError):
        pass


def kind_of(message: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"|\[.*\]|\(.*?\)|[\d.e+-]+…?|[0-9a-f]{8,}…?", "*", message)


@pytest.mark.parametrize("count", [400, pytest.param(12_000, marks=pytest.mark.slow)])
def test_a_mutated_bundle_is_refused_in_one_line_or_sound(tmp_path, watch, count):
    save(tmp_path / "pristine-0.1")
    pristine = {path.name: path.read_bytes() for path in (tmp_path / "pristine-0.1").iterdir()}
    load_bundle(tmp_path / "pristine-0.1")  # what is imported lazily is by now
    folder, zero = tmp_path / "m-0.1", Telemetry.zeros(3)
    folder.mkdir()
    refused, sound = Counter(), 0
    for seed in range(count):
        rng, files = np.random.default_rng(seed), dict(pristine)
        MUTATIONS[rng.integers(len(MUTATIONS))](rng, files)
        if seed % 4 == 3:
            BLIND[rng.integers(len(BLIND))](rng, files)  # a second one, which need not understand what is left
        if seed % 2:
            forge(files)
        for name in {path.name for path in folder.iterdir()} - files.keys():
            (folder / name).unlink()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        watch.on = True
        try:
            bundle = load_bundle(folder)
        except BundleError as error:
            assert "\n" not in str(error) and len(str(error)) < 400, f"seed {seed}: {error}"
            refused[kind_of(str(error))] += 1
        else:
            sound += 1
            assert clip_control(NumpyRunner(bundle.network).decide(zero)) == 0, f"seed {seed}"
            assert all(np.isfinite(t).all() for t in bundle.network.tensors().values()), f"seed {seed}"
        finally:
            watch.on = False
    assert not watch.seen.keys() & FORBIDDEN, watch.seen
    assert {Path(path).parent for path in watch.opened} == {folder}, "nothing outside the bundle is opened"
    assert len(refused) >= 25 and sum(refused.values()) > 0.8 * count, refused
    assert sound > 0, "what changes nothing that matters is no reason to refuse"
