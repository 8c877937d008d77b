"""From a training run to a bundle: the kept checkpoint, golden pairs, provenance and a card."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from pikv_agents.card import make_card
from pikv_agents.checkpoints import Checkpoint, find_checkpoint, load_checkpoint
from pikv_agents.tracking import read_run
from pikv_agents.training import RESULT_FILE, TELEMETRY_FILE
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.control_views import observe
from pikv_runtime.objective import OBJECTIVE_VERSION
from pikv_runtime.policy import GoldenPair, PolicyNetwork, random_telemetry, save_bundle
from pikv_runtime.policy.network import OBSERVATION_CLIP

GOLDEN_PAIRS = 16


def export(
    run_dir: Path | str,
    out: Path | str,
    *,
    name: str = "",
    version: str = "0.1",
    evaluation: Mapping[str, Any] | None = None,
    command: str = "",
    overwrite: bool = False,
) -> Path:
    """Write the kept checkpoint of a run as a bundle.

    Args:
        run_dir: Folder of `train`.
        out: Folder of the bundle to make; where `name` is empty it is `<name>-<major>.<minor>`.
        name: Of the policy; by default from `out`.
        version: major.minor.
        evaluation: Result of `evaluate`, for eval.json and the card.
        command: What was typed, for the provenance.
        overwrite: Replace a bundle that is there.

    Returns:
        The bundle's folder.

    Raises:
        FileNotFoundError: The run holds no checkpoint.
        FileExistsError: `out` exists.
        ValueError: The learner's policy cannot be said as a bundle.
    """
    out, run_dir = Path(out), Path(run_dir)
    checkpoint = load_checkpoint(find_checkpoint(run_dir))
    network = checkpoint.network()
    provenance = make_provenance(run_dir, checkpoint, command)
    result = _read_result(run_dir)
    bundle = save_bundle(
        out,
        network,
        name=name or _name(out, version),
        version=version,
        interval_s=float(provenance["interval_s"]),
        objective_version=str(OBJECTIVE_VERSION),
        provenance=provenance,
        evaluation={"training": result, "evaluation": dict(evaluation or {})},
        card=make_card(name or _name(out, version), version, network, provenance, result, evaluation),
        golden=golden_pairs(network, recorded_telemetry(run_dir), checkpoint.meta["num_groups"]),
        overwrite=overwrite,
    )
    return bundle.path


def _name(out: Path, version: str) -> str:
    """The folder's name without the version at its end."""
    return out.name.removesuffix(f"-{version}").lower() or "policy"


def _read_result(run_dir: Path) -> dict[str, Any]:
    path = run_dir / RESULT_FILE
    if not path.exists():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    kept = ("start", "steps", "seconds", "best_step", "start_J", "best_J", "ratio", "improved", "sentence")
    return {key: result[key] for key in kept if key in result}


def recorded_telemetry(run_dir: Path) -> list[Telemetry]:
    """What the run saw before training; empty where it kept nothing."""
    path = run_dir / TELEMETRY_FILE
    if not path.exists():
        return []
    told = load_file(path)
    return [Telemetry(groups, globals_) for groups, globals_ in zip(told["groups"], told["globals"], strict=True)]


def make_provenance(run_dir: Path, checkpoint: Checkpoint, command: str) -> dict[str, Any]:
    """Commit, commands, seeds, families seen, trace and profile ids."""
    config = read_run(run_dir).get("config", {})
    env = config.get("env", {})
    return {
        "commit": commit(),
        "command": config.get("command") or command,
        "learner": checkpoint.meta["learner"],
        "step": checkpoint.meta["step"],
        "start": checkpoint.meta["start"],
        "seeds": [checkpoint.meta["seed"]],
        "families": list(env.get("families", [])),
        "validation": list(config.get("validation", [])),
        "fingerprints": dict(config.get("fingerprints", {})),
        "structures": dict(config.get("structures", {})),
        "traces": config.get("traces", {}),
        "profile": env.get("profile", ""),
        "geometry": env.get("geometry", ""),
        "pressure": env.get("pressure", []),
        "interval_s": config.get("interval_s", env.get("runtime", {}).get("interval_s", 2.0)),
    }


def machine() -> str:
    """Cores and processor."""
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"


def commit() -> str:
    """The checkout's commit, or "unknown" outside of one."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def torch_outputs(network: PolicyNetwork, observations: np.ndarray) -> np.ndarray:
    """The network's outputs (n, A) by torch in float64: independent of the runners."""
    x = torch.from_numpy(observations.astype(np.float64))
    mean, std = (torch.from_numpy(a.astype(np.float64)) for a in (network.mean, network.std))
    x = ((x - mean) / std).clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)
    for i, (weight, bias) in enumerate(network.layers):
        w, b = (torch.from_numpy(a.astype(np.float64)) for a in (weight, bias))
        x = torch.nn.functional.linear(x, w, b)
        if i < len(network.layers) - 1:
            x = torch.tanh(x) if network.activation == "tanh" else torch.relu(x)
    return x.numpy()


def golden_pairs(
    network: PolicyNetwork, telemetry: Sequence[Telemetry], num_groups: int, seed: int = 0
) -> list[GoldenPair]:
    """Pairs for recorded telemetry (evenly chosen, at most `GOLDEN_PAIRS`) and as many random ones."""
    rng = np.random.default_rng(seed)
    chosen = [telemetry[int(i)] for i in np.linspace(0, len(telemetry) - 1, GOLDEN_PAIRS)] if telemetry else []
    counts = (num_groups,) if network.num_groups is not None else (4, num_groups)
    chosen += [random_telemetry(n, rng) for n in counts for _ in range(GOLDEN_PAIRS // len(counts))]
    return [(told, _expected(network, told)) for told in chosen]


def _expected(network: PolicyNetwork, told: Telemetry) -> Control:
    view, control = network.control_view, Control.zeros(len(told.groups))
    groups, globals_ = told.groups[None], told.globals[None]
    actions = view.act(torch_outputs(network, observe(groups, globals_, view=network.view)))
    view.decode(actions, groups, globals_, control.groups[None], control.globals[None])
    return control
