"""What tests of bundles share: a small one to save, and a forger's tools."""

from __future__ import annotations

import hashlib
import json

from pikv_runtime.policy import PolicyNetwork, save_bundle

FIELDS = {
    "name": "tiny",
    "version": "0.1",
    "interval_s": 2.0,
    "objective_version": "1",
    "provenance": {"commit": "0" * 40, "command": "test", "seeds": [0], "families": ["facts"]},
    "evaluation": {"J": 1.0},
    "card": "# tiny\n",
}


def save(path, network=None, **changes):
    return save_bundle(path, network or PolicyNetwork.random((8, 8)), **(FIELDS | changes))


def edit_manifest(folder, change):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def rehash(folder):
    """What a forger would do: make the hashes fit the files."""
    edit_manifest(
        folder,
        lambda m: m["files"].update({f: hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in m["files"]}),
    )
