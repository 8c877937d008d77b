"""`python -m pikv_env.precompile`: compile the ledger ahead of its first use; numba keeps the result on disk.

The first episode on a machine pays about two minutes of one core for it. A process of its own can pay it while
another one does something else.
"""

from __future__ import annotations

import subprocess
import sys
import time


def precompile() -> float:
    """Play one interval of a tiny workload, so that everything on the way is compiled. Returns the seconds taken."""
    from pikv_env.config import EnvConfig
    from pikv_env.trace_env import TraceEnv
    from pikv_env.traces.synthetic import synthetic_library

    begin = time.perf_counter()
    library = synthetic_library(0, ("facts",), contents_per_family=2, prompt_range=(64, 96), output_range=(16, 32))
    config = EnvConfig(families=("facts-poisson",), horizon_s=20.0, workloads=1, load=(0.3, 0.3))
    env = TraceEnv(library, config=config)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    return time.perf_counter() - begin


def start_precompile() -> subprocess.Popen[bytes]:
    """Do it in a process of its own; wait for it with `.wait()`."""
    return subprocess.Popen([sys.executable, "-m", "pikv_env.precompile"], stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    print(f"ledger compiled in {precompile():.1f} s")
