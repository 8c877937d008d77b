"""Joining the ranks of one run: rendezvous, links on the loopback interface unless told, liveness."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pikv_runtime.liveness import Liveness, RankLostError, WatchedTransport
from pikv_runtime.transport import LocalTransport, TorchDistTransport, Transport

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

COLLECTIVE_SHARE = 0.7
"""Of the time after which a rank is lost, what a collective may take; the rest is for finding out whose fault it is."""
LINK_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass(frozen=True)
class Joined:
    """This process's place among the ranks."""

    transport: Transport
    device: str
    liveness: Liveness | None = None
    """None where one process plays all ranks."""


@contextlib.contextmanager
def joined_ranks(
    ranks: int, device: str = "cpu", *, timeout_s: float = 120.0, interface: str | None = None
) -> Iterator[Joined]:
    """Join the ranks that torchrun started (or whoever sets its variables); else this process plays `ranks` of them.

    On the way out the others are told whether this rank left in peace or failed.

    Args:
        ranks: virtual ranks, where there are no real ones.
        device: cpu, cuda, or a device; under torchrun `cuda` is one device for each process of the machine.
        timeout_s: within which the ranks that are left end when one does not answer.
        interface: network interface that links between ranks listen on, such as `eth0`; None: loopback.

    Raises:
        ValueError: ranks on several machines, and no interface; or `ranks` contradicts the number of processes.
        RankLostError: a rank was lost while joining, or later, by any collective.
    """
    if not timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s}: must be positive")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Joined(LocalTransport(ranks), device)
        return
    if ranks not in (1, world):
        raise ValueError(f"ranks={ranks} in {world} processes of torchrun: leave it out, every process is one rank")
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore

    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    bind_links(os.environ, interface)
    rank = int(os.environ["RANK"])
    collective_s = COLLECTIVE_SHARE * timeout_s
    timeout = timedelta(seconds=collective_s)
    hosts_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store, own = rendezvous(timeout, host=hosts_store), rendezvous(timeout)
    except RuntimeError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankLostError(f"rank {rank} of {world}: nobody hosts a rendezvous at {address}") from error
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives the ranks
    beats = PrefixStore(f"pikv-{restarts}", own)
    liveness = Liveness(beats, rank, world, collective_s, hosts_store)
    try:
        with _named(liveness):
            backend = "nccl" if device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
            transport = TorchDistTransport(device, collective_s)
        yield Joined(WatchedTransport(transport, liveness), device, liveness)
    except RankLostError:
        raise
    except BaseException as error:
        liveness.fail(f"{type(error).__name__}: {error}")
        raise
    liveness.close()
    dist.destroy_process_group()


def bind_links(environment: Mapping[str, str], interface: str | None) -> None:
    """Say on which interface the links between ranks listen: the one that is given or configured, else loopback.

    Raises:
        ValueError: neither, and the ranks are on several machines, so that loopback cannot link them.
    """
    if interface is None and any(environment.get(name) for name in LINK_VARIABLES):
        return
    here = environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"])
    if interface is None and here != environment["WORLD_SIZE"]:
        raise ValueError(
            f"{environment['WORLD_SIZE']} ranks, of which {here} on this machine: links listen on the loopback "
            "interface unless told; name another one by --interface, such as eth0"
        )
    if interface is not None and interface not in (names := [name for _, name in socket.if_nameindex()]):
        raise ValueError(f"interface={interface!r}: this machine has {', '.join(names)}")
    for name in LINK_VARIABLES:
        os.environ[name] = interface or "lo"


def rendezvous(timeout: timedelta, host: bool = False) -> Store:
    """A connection to the store at MASTER_ADDR:MASTER_PORT, which torchrun's agent hosts, or else rank 0.

    `host`: also host it in this process, listening at that address only (PyTorch's own would listen everywhere).
    """
    from torch._C._distributed_c10d import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if not host:
        return TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False)
    listener = socket.create_server((address, port))
    return TCPStore(
        address, port, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=listener.detach()
    )


@contextlib.contextmanager
def _named(liveness: Liveness) -> Iterator[None]:
    """Whatever fails in here failed because a rank did not come."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(liveness.culprit(error)) from error
