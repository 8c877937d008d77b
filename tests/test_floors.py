"""The lower floors run where the training stack is absent, and no folder shadows another project's name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ABSENT = (
    "gymnasium", "stable_baselines3", "wandb", "transformers", "numba", "tyro", "rich", "scipy", "matplotlib",
    "pikv_env", "pikv_agents",
)  # fmt: skip

BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ImportError(f"{{name}} is not installed here")
sys.meta_path.insert(0, Block())
"""

IMPORTS = """
import pikv_kernels, pikv_runtime, pikv_runtime.engine, pikv_runtime.policy, pikv_runtime.ledger
import pikv_runtime.__main__, pikv_runtime.serving, pikv_runtime.models.runner, pikv_runtime.transport
for name in set(pikv_runtime.__all__) - {"attach"}:  # the one that adapts Hugging Face's own cache
    getattr(pikv_runtime, name)
"""

KERNEL = """
import torch
from pikv_kernels import decode, encode
k, v = torch.randn(2, 3, 2, 16, 32, generator=torch.Generator().manual_seed(0)).clamp(-4, 4).unbind(0)
for codec, error in (("native", 0.0), ("bf16", 0.01), ("int8", 0.03), ("int4", 0.5)):
    back, _ = decode(encode(codec, k, v), torch.float32)
    assert (back - k).abs().max() <= error, codec
"""

DECISION = """
import numpy as np, tempfile, pathlib
from pikv_runtime.policy import PolicyNetwork, load_policy, random_telemetry, save_bundle
folder = pathlib.Path(tempfile.mkdtemp()) / "tiny-0.1"
provenance = {"commit": "0" * 40, "command": "test", "seeds": [0], "families": ["facts"]}
save_bundle(folder, PolicyNetwork.random((8, 8)), name="tiny", version="0.1", interval_s=2.0, objective_version="1",
            provenance=provenance, evaluation={"J": 1.0}, card="# tiny")
told = random_telemetry(4, np.random.default_rng(0))
answers = [load_policy(folder, runner=runner, guard=False).decide(told) for runner in ("numpy", "native")]
assert np.allclose(answers[0].groups, answers[1].groups, atol=1e-5)
"""

LEDGER = """
import numpy as np
from pikv_runtime import ledger as L
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.ledger.drive import Bank, reference_run
from pikv_runtime.profiles import load_geometry, load_profile
from pikv_runtime.requests import BATCH, INTERACTIVE, Request
requests = [Request(q, 0.1 * q, 40, 4, np.zeros(2, np.int64)) for q in range(3)]
config, shape = RuntimeConfig(slots=2, blocks=16), load_geometry().shape(16)
state, scratch = (L.build(config, shape, (INTERACTIVE, BATCH), requests=3, pages=3) for _ in range(2))
state.prices[0] = load_profile().prices()
L.load_requests(state, 0, requests, audit_seed=0, audit_share=0.0)
reference = reference_run(state, 0, Bank.empty(state.layers, 3), scratch, most_busy=1.0)
assert np.isfinite(reference.charges).all() and (reference.charges > 0).all()
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("folder", ["agents", "runtime", "kernels"])
def test_folders_of_packages_are_no_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
    assert [p.name for p in (ROOT / folder).iterdir() if (p / "__init__.py").exists()] == [f"pikv_{folder}"]


@pytest.mark.parametrize(
    "code", [IMPORTS, KERNEL, DECISION, LEDGER], ids=["imports", "kernel", "bundle decision", "ledger without numba"]
)
def test_lower_floors_run_without_the_training_stack(code: str) -> None:
    run(code)


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    run("import pikv_runtime\nassert not {'torch', 'triton', 'transformers'} & set(sys.modules)")


def test_importing_the_environments_loads_neither_torch_nor_numba() -> None:
    code = "import sys, pikv_env\nassert not {'torch', 'numba', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
