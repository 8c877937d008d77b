"""Checkpoints: weights as safetensors beside a JSON description. Nothing is pickled, nothing is executed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pikv_agents.learners import EXPORTABLE
from pikv_agents.levers import Levers
from pikv_agents.tracking.metrics import write_json
from pikv_runtime.policy import PolicyNetwork

WEIGHTS, DESCRIPTION = "policy.safetensors", "checkpoint.json"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A policy as it was at one step: `tensors` is the learner's state dict, critic included."""

    tensors: Tensors
    meta: dict[str, Any]
    """learner, view, num_groups, step, evaluation, start, seed."""

    def network(self) -> PolicyNetwork:
        """The deterministic policy as the runtime evaluates it."""
        learner = self.meta["learner"]
        if learner not in EXPORTABLE:
            raise ValueError(
                f"learner {learner!r} squashes its actions, which a bundle cannot say: allowed {', '.join(EXPORTABLE)}"
            )
        levers = self.meta.get("levers")
        return network_of(
            self.tensors,
            self.meta["view"],
            self.meta["num_groups"],
            None if levers is None else Levers(tuple(levers["columns"]), tuple(levers["rest"])),
        )


def network_of(tensors: Tensors, view: str, num_groups: int | None, levers: Levers | None = None) -> PolicyNetwork:
    """Normaliser, policy MLP and action layer of an on-policy learner's state dict; `levers` become all actions."""

    def array(name: str) -> np.ndarray:
        return np.ascontiguousarray(tensors[name].detach().numpy(), dtype=np.float32)

    hidden = sorted({int(n.split(".")[2]) for n in tensors if n.startswith("mlp_extractor.policy_net.")})
    names = [f"mlp_extractor.policy_net.{i}" for i in hidden] + ["action_net"]
    layers = tuple((array(f"{name}.weight"), array(f"{name}.bias")) for name in names)
    if levers is not None:
        layers = (*layers[:-1], levers.expand_layer(*layers[-1]))
    mean, std = array("features_extractor.mean"), array("features_extractor.std")
    return PolicyNetwork(view, "tanh", mean, std, layers, num_groups if view == "box" else None)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint; the description comes last, so that a folder with one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS}.{os.getpid()}.partial"
    # Several names of one tensor (a shared features extractor) are stored apart: safetensors refuses aliases.
    save_file({name: t.detach().clone().contiguous() for name, t in checkpoint.tensors.items()}, partial)
    os.replace(partial, folder / WEIGHTS)
    write_json(folder / DESCRIPTION, checkpoint.meta)
    return folder


def load_checkpoint(folder: Path | str) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: There is none.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).exists():
        raise FileNotFoundError(f"no checkpoint in {folder}: it lacks {DESCRIPTION}")
    meta = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    return Checkpoint(load_file(folder / WEIGHTS), meta)


def find_checkpoint(run: Path | str) -> Path:
    """The best checkpoint of a run folder, or the folder itself if it is one."""
    run = Path(run)
    for folder in (run, run / "checkpoints" / "best", run / "checkpoints" / "last"):
        if (folder / DESCRIPTION).exists():
            return folder
    raise FileNotFoundError(f"{run} holds no checkpoint: train first (pikv train --out {run})")
