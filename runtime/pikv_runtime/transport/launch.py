"""Start the ranks of one group as processes on this machine, and collect what they return."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch._C._distributed_c10d import FileStore

Arrays = Mapping[str, NDArray]


class RankFailedError(RuntimeError):
    """A rank raised, died or did not finish in time."""


def run_ranks(
    fn: Callable[..., Arrays], world: int, *args: Any, timeout_s: float = 120.0, start_method: str = "fork"
) -> list[dict[str, NDArray]]:
    """Run `fn(rank, world, *args)` in `world` processes joined by gloo.

    `fn` finds an initialised process group and returns arrays by name. They come back through `.npz` files,
    so nothing is unpickled.

    Args:
        fn: What each rank runs.
        world: Number of ranks.
        *args: Passed on; inherited by the fork.
        timeout_s: Limit for the whole run and for every collective.
        start_method: `fork`, or `spawn` once CUDA is in use (then `fn` and `args` must be importable).

    Raises:
        RankFailedError: Names the rank that failed first, with its traceback.
    """
    with tempfile.TemporaryDirectory(prefix="pikv-ranks-") as folder:
        context = get_context(start_method)
        ranks = [
            context.Process(target=_child, args=(fn, rank, world, folder, timeout_s, args), daemon=True)  # type: ignore[attr-defined]
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        try:
            _join(ranks, Path(folder), timeout_s)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                process.join()
        return [_load(Path(folder) / f"{rank}.npz") for rank in range(world)]


def _child(
    fn: Callable[..., Arrays], rank: int, world: int, folder: str, timeout_s: float, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)  # first of all: a child forked after OpenMP ran hangs otherwise
    try:
        store = FileStore(os.path.join(folder, "rendezvous"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s))
        # No name is written until the content is whole; np.savez adds ".npz" to names without it.
        np.savez(os.path.join(folder, f"{rank}.part.npz"), allow_pickle=False, **fn(rank, world, *args))
        os.replace(os.path.join(folder, f"{rank}.part.npz"), os.path.join(folder, f"{rank}.npz"))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.error").write_text(f"{time.time_ns()}\n{traceback.format_exc()}")
        os._exit(1)
    os._exit(0)  # skips the parent's atexit handlers, which the fork inherited


def _join(ranks: list[BaseProcess], folder: Path, timeout_s: float) -> None:
    """Wait for all ranks; raise as soon as one has failed."""
    deadline = time.monotonic() + timeout_s
    while any(process.is_alive() for process in ranks):
        if any(process.exitcode for process in ranks):
            time.sleep(0.2)  # let the others write why they failed: the first cause is reported
            break
        if time.monotonic() > deadline:
            late = [rank for rank, process in enumerate(ranks) if process.is_alive()]
            raise RankFailedError(f"rank {late[0]} of {len(ranks)} did not finish within {timeout_s:g} s")
        time.sleep(0.002)
    failed = [rank for rank, process in enumerate(ranks) if process.exitcode]
    if failed:
        raise RankFailedError(_first_cause(failed, [ranks[r].exitcode for r in failed], len(ranks), folder))


def _first_cause(failed: list[int], codes: list[int | None], world: int, folder: Path) -> str:
    """The earliest recorded traceback; a rank killed without one is named before any."""
    silent = [(r, c) for r, c in zip(failed, codes, strict=True) if not (folder / f"{r}.error").exists()]
    if silent:
        rank, code = silent[0]
        return f"rank {rank} of {world} died with exit code {code}"
    reports = [((folder / f"{rank}.error").read_text().split("\n", 1), rank) for rank in failed]
    (_, trace), rank = min(reports, key=lambda report: int(report[0][0]))
    return f"rank {rank} of {world} failed:\n{trace}"


def _load(path: Path) -> dict[str, NDArray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
