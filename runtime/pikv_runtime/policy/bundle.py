"""Bundles on disk: saved whole or not at all, loaded only after every check. See docs/policy-bundle.md."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from pikv_runtime.contract import Array, Control, Telemetry, clip_control
from pikv_runtime.policy.golden import GoldenPair, check_golden, make_golden, pack, unpack
from pikv_runtime.policy.manifest import (
    FILES,
    BundleError,
    Manifest,
    check_contract,
    parse_manifest,
    parse_object,
    short,
)
from pikv_runtime.policy.network import PolicyNetwork, check_tensor, expected_shapes
from pikv_runtime.policy.numpy_runner import NumpyRunner

MAX_BYTES = 64 * 2**20
"""Largest bundle, all files together."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed every check."""

    path: Path
    manifest: Manifest
    network: PolicyNetwork
    golden: tuple[GoldenPair, ...]
    evaluation: dict[str, Any]
    card: str


def save_bundle(
    path: str | os.PathLike[str],
    network: PolicyNetwork,
    *,
    name: str,
    version: str,
    interval_s: float,
    objective_version: str,
    provenance: dict[str, Any],
    evaluation: dict[str, Any],
    card: str,
    golden: Sequence[GoldenPair] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle to the folder `path` and return it as loaded back.

    Written to a folder beside it, loaded with all checks, then renamed: `path` is never half-written.

    Args:
        path: Folder to make, by custom `<name>-<version>`.
        network: Weights.
        name: Of the policy.
        version: 'major.minor'.
        interval_s: Seconds between decisions in training.
        objective_version: Of the objective it was trained on.
        provenance: Commit, command, seeds, families seen, trace and profile ids; JSON.
        evaluation: Results, for eval.json.
        card: Text of README.md.
        golden: Pairs computed by the exporter's own network; None: by the reference runner.
        overwrite: Replace a bundle that is there.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        BundleError: What was given makes no valid bundle.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: pass overwrite=True to replace it")
    contents = {
        "README.md": card.encode(),
        "eval.json": (json.dumps(evaluation, indent=2, allow_nan=False) + "\n").encode(),
        "golden.safetensors": save_tensors(pack(make_golden(network) if golden is None else golden)),
        "policy.safetensors": save_tensors({k: np.ascontiguousarray(v) for k, v in network.tensors().items()}),
    }
    manifest = Manifest(
        name=name,
        version=version,
        view=network.view,
        num_groups=network.num_groups,
        observation=len(network.mean),
        layers=tuple(network.hidden),
        activation=network.activation,
        interval_s=interval_s,
        objective_version=objective_version,
        provenance=provenance,
        files={file: hashlib.sha256(data).hexdigest() for file, data in contents.items()},
    )
    _write(path, contents | {"manifest.json": manifest.to_json().encode()})
    return load_bundle(path)


def _write(path: Path, contents: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        folder = Path(scratch, "new")
        folder.mkdir()
        for name, data in contents.items():
            Path(folder, name).write_bytes(data)
        load_bundle(folder)
        old = Path(scratch, "old")
        if path.exists():
            path.rename(old)
        try:
            folder.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Load a bundle: schema, files, hashes, contract, weights, golden pairs, dry run, in this order.

    Raises:
        BundleError: At the first check that fails.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"no bundle folder {str(path)!r}")
    manifest = parse_manifest(_text("manifest.json", _read(path, "manifest.json")))
    contents = _read_files(path, manifest)
    check_contract(manifest)
    network = _network(manifest, _tensors("policy.safetensors", contents))
    golden = unpack(_tensors("golden.safetensors", contents))
    runner = NumpyRunner(network)
    try:
        check_golden(runner, golden)
    except BundleError:
        raise
    except ValueError as error:
        raise BundleError(f"golden.safetensors: {error}") from None
    _dry_run(runner)
    evaluation = parse_object("eval.json", _text("eval.json", contents["eval.json"]))
    return Bundle(path, manifest, network, tuple(golden), evaluation, _text("README.md", contents["README.md"]))


def _read_files(path: Path, manifest: Manifest) -> dict[str, bytes]:
    """All listed files, each read once, within the size limit and with its hash."""
    for name in manifest.files:
        if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise BundleError(f"file name {short(name)} leaves the bundle")
    for name in sorted(set(FILES) ^ manifest.files.keys()):
        raise BundleError(f"manifest {'lacks' if name in FILES else 'lists unknown'} file {short(name)}")
    present = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    for name in sorted(present - manifest.files.keys() - {"manifest.json"}):
        raise BundleError(f"file {short(name)} is not in the manifest")
    for name in sorted(manifest.files.keys() - present):
        raise BundleError(f"file {name!r} is missing")
    contents: dict[str, bytes] = {}
    for name in FILES:
        contents[name] = _read(path, name, MAX_BYTES - sum(map(len, contents.values())))
    for name, data in contents.items():
        found = hashlib.sha256(data).hexdigest()
        if found != manifest.files[name]:
            raise BundleError(
                f"file {name!r} does not match its SHA-256: {found[:12]}… found, "
                f"{manifest.files[name][:12]}… in the manifest"
            )
    return contents


def _read(path: Path, name: str, limit: int = 2**20) -> bytes:
    """A plain file's bytes; links and devices are refused, and so is what is larger than `limit`."""
    try:
        handle = os.open(path / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise BundleError(f"file {name!r} is missing") from None
    except OSError as error:
        raise BundleError(f"file {name!r} cannot be read: {error.strerror}") from None
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        os.close(handle)
        raise BundleError(f"file {name!r} is not a plain file")
    with os.fdopen(handle, "rb") as file:
        if info.st_size > limit:
            raise BundleError(f"file {name!r} has {info.st_size} bytes: allowed {limit} at this point")
        return file.read(limit + 1)


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None


def _tensors(name: str, contents: dict[str, bytes]) -> dict[str, Array]:
    try:
        return load_tensors(contents[name])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{name} is not a safetensors file: {error}") from None


def _network(manifest: Manifest, tensors: dict[str, Array]) -> PolicyNetwork:
    try:
        shapes = expected_shapes(manifest.view, list(manifest.layers), manifest.num_groups)
        if shapes["obs_mean"] != (manifest.observation,):
            raise ValueError(
                f"manifest says an observation of {manifest.observation}, "
                f"view {manifest.view!r} has {shapes['obs_mean'][0]}"
            )
        for name in sorted(shapes.keys() ^ tensors.keys()):
            raise ValueError(f"tensor {short(name)} is {'missing' if name in shapes else 'unknown'}")
        for name, shape in shapes.items():
            check_tensor(name, tensors[name], shape)
        return PolicyNetwork.from_tensors(manifest.view, manifest.activation, tensors, manifest.num_groups)
    except ValueError as error:
        raise BundleError(f"policy.safetensors: {error}") from None


def _dry_run(runner: NumpyRunner) -> None:
    """Telemetry of nothing must give a legal control."""
    telemetry = Telemetry.zeros(runner.network.num_groups or 1)
    control: Control = runner.decide(telemetry)
    if clip_control(control):
        raise BundleError("dry run on zero telemetry: the control is not legal")
