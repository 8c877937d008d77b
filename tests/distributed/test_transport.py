"""Transports: virtual ranks and processes exchange, count and fail alike."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch

from pikv_runtime.transport import (
    PURPOSES,
    LocalTransport,
    RankFailedError,
    TorchDistTransport,
    pack,
    packed_bytes,
    run_ranks,
    unpack,
)


def message(src: int, dst: int, world: int) -> torch.Tensor:
    """Uneven, and empty from the last rank to the first."""
    count = 0 if (src, dst) == (world - 1, 0) else 5 * src + 3 * dst + 1
    return torch.full((count,), 10 * src + dst, dtype=torch.uint8)


def exchange(transport):
    """All local ranks' messages, gathered tensors and counters."""
    world, local = transport.world, transport.local_ranks
    outgoing = [[message(i, dst, world) for dst in range(world)] for i in local]
    sizes = [[len(message(src, i, world)) for src in range(world)] for i in local]
    received = transport.all_to_all(outgoing, sizes, "page_move")
    gathered = transport.all_gather(
        [torch.full((i + 1,), i, dtype=torch.uint8) for i in local], [r + 1 for r in range(world)]
    )
    transport.recount("page_move", "decode_query", 2)
    return received, gathered


def _exchange_process(rank: int, world: int):
    transport = TorchDistTransport(timeout_s=30)
    (received,), gathered = exchange(transport)
    shared = transport.broadcast(torch.arange(4.0) * (1 + rank), src=1)
    return {
        **{f"from{src}": m.numpy() for src, m in enumerate(received)},
        "gathered": torch.cat(gathered).numpy(),
        "broadcast": shared.numpy(),
        "sent": np.array([transport.sent_bytes[p] for p in PURPOSES]),
    }


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_processes_and_virtual_ranks_agree(world):
    virtual = LocalTransport(world)
    received, gathered = exchange(virtual)
    virtual.broadcast(torch.arange(4.0))
    results = run_ranks(_exchange_process, world)
    for rank, result in enumerate(results):
        for src in range(world):
            assert np.array_equal(result[f"from{src}"], message(src, rank, world).numpy())
            assert torch.equal(received[rank][src], message(src, rank, world))
        assert np.array_equal(result["gathered"], torch.cat(gathered).numpy())
        assert np.array_equal(result["broadcast"], np.arange(4.0) * 2)
    sent = [virtual.sent_bytes[p] for p in PURPOSES]
    sent[PURPOSES.index("decode_query")] += 2 * (world - 1)  # every process recounted its 2 bytes
    sent[PURPOSES.index("page_move")] -= 2 * (world - 1)
    assert np.array_equal(sum(r["sent"] for r in results), sent)


def test_virtual_ranks_check_sizes():
    transport = LocalTransport(2)
    outgoing = [[message(i, dst, 2) for dst in range(2)] for i in range(2)]
    with pytest.raises(ValueError, match="rank 0 sends 4 bytes to rank 1"):
        transport.all_to_all(outgoing, [[1, 0], [9, 9]], "control")
    with pytest.raises(ValueError, match="ranks=0"):
        LocalTransport(0)


def test_pack_restores_any_mix_of_dtypes():
    tensors = [
        torch.arange(3, dtype=torch.uint8),
        torch.randn(2, 5),
        torch.empty(0, 4, dtype=torch.int32),
        torch.randn(3, 2).bfloat16(),
    ]
    parts = [(t.shape, t.dtype) for t in tensors]
    flat = pack(tensors)
    assert len(flat) == packed_bytes(parts)
    for before, after in zip(tensors, unpack(flat, parts), strict=True):
        assert torch.equal(before, after)
    with pytest.raises(ValueError, match="out of step"):
        unpack(flat[:-1], parts)


def _raise(rank: int, world: int):
    if rank == 1:
        raise KeyError("lost page")
    torch.distributed.barrier()
    return {}


def _die(rank: int, world: int):
    if rank == 1:
        os._exit(7)
    torch.distributed.barrier()
    return {}


def _hang(rank: int, world: int):
    time.sleep(60 * rank)
    return {}


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("function", "expected"),
    [(_raise, "rank 1 of 2 failed:(?s:.*)lost page"), (_die, "rank 1 of 2 died with exit code 7")],
)
def test_the_rank_that_died_is_named(function, expected):
    with pytest.raises(RankFailedError, match=expected):
        run_ranks(function, 2, timeout_s=30)


@pytest.mark.distributed
def test_a_rank_that_hangs_is_named():
    with pytest.raises(RankFailedError, match="did not finish within 1 s"):
        run_ranks(_hang, 2, timeout_s=1)


def _threads(rank: int, world: int):
    return {
        "threads": np.array(torch.get_num_threads()),
        "sum": torch.ones(200, 200).mm(torch.ones(200, 200)).numpy(),
    }


@pytest.mark.distributed
def test_children_of_a_parent_that_used_openmp_do_not_hang():
    torch.ones(500, 500).mm(torch.ones(500, 500))
    assert [int(r["threads"]) for r in run_ranks(_threads, 4, timeout_s=60)] == [1] * 4
