"""The paged store: bytes are those of the tensors, pages survive codecs and moves, misuse is caught."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pikv_kernels import codec_error, decode, encode, page_bytes
from pikv_runtime.cache import CentroidTable, PageDirectory, PagedStore, Shadows
from pikv_runtime.ledger.state import CODECS, Event
from pikv_runtime.transport import LocalTransport

LAYERS, HEADS, DIM, TOKENS, BLOCKS = 3, 2, 32, 16, 12


def make_store() -> PagedStore:
    return PagedStore(LAYERS, HEADS, DIM, TOKENS, torch.float32, BLOCKS)


def page(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, TOKENS, HEADS, DIM, generator=generator)
    return k, v


def fill(store: PagedStore, layer: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Write a whole page; returns it as (1, H, tokens, D)."""
    k, v = page(layer * BLOCKS + block)
    blocks, offsets = np.full(TOKENS, block, np.int32), np.arange(TOKENS, dtype=np.int32)
    store.write(layer, blocks, offsets, k, v)
    return k.transpose(0, 1)[None], v.transpose(0, 1)[None]


def test_tokens_land_where_they_are_written():
    store = make_store()
    k, v = page(0)
    blocks = np.array([3, 7, 3, 5], np.int32)
    offsets = np.array([0, 15, 1, 4], np.int32)
    store.write(1, blocks, offsets, k[:4], v[:4])
    got_k, got_v = store.gather(1, [7, 3, 5])
    assert torch.equal(got_k[0, :, 15], k[1]) and torch.equal(got_v[1, :, 1], v[2])
    assert torch.equal(got_k[1, :, 0], k[0]) and torch.equal(got_v[2, :, 4], v[3])
    assert store.codec(1, 3) == 0 and store.codec(0, 3) == -1


def test_growth_keeps_pages():
    store = make_store()
    expected = {(layer, block): fill(store, layer, block) for layer in range(LAYERS) for block in range(BLOCKS)}
    for (layer, block), (k, v) in expected.items():
        got_k, got_v = store.gather(layer, block)
        assert torch.equal(got_k, k) and torch.equal(got_v, v)


@pytest.mark.parametrize("codec", range(len(CODECS)))
def test_nbytes_is_count_times_page_bytes(codec):
    store = make_store()
    for block in range(5):
        fill(store, 0, block)
    store.encode(0, [1, 3, 4], codec)
    size = [page_bytes(name, HEADS, TOKENS, DIM, torch.float32) for name in CODECS]
    expected = dict.fromkeys(CODECS, 0)
    expected["native"] += 2 * size[0]
    expected[CODECS[codec]] += 3 * size[codec]
    assert store.nbytes() == expected
    store.free(0, [0, 1, 2, 3, 4])
    assert sum(store.nbytes().values()) == 0 and store.pool() is None


def test_encoded_pages_read_as_their_codec_decodes():
    store = make_store()
    native = [fill(store, 2, block) for block in range(4)]
    for block, codec in enumerate(range(len(CODECS))):
        store.encode(2, block, codec)
    k, v = store.gather(2, range(4))
    for block, name in enumerate(CODECS):
        expected_k, expected_v = decode(encode(name, *native[block]), torch.float32)
        assert torch.equal(k[block : block + 1], expected_k) and torch.equal(v[block : block + 1], expected_v)
    with pytest.raises(ValueError, match="down the ladder"):
        store.encode(2, 3, 1)


def test_pages_move_as_bytes():
    source, target = make_store(), make_store()
    for block in range(3):
        fill(source, 1, block)
    source.encode(1, [0, 1, 2], 3)
    before = source.gather(1, [2, 0])
    flat = source.take(1, [2, 0])
    assert flat.shape == (2, source.page_bytes(3)) and flat.dtype == torch.uint8
    target.put(1, [2, 0], 3, flat)
    after = target.gather(1, [2, 0])
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert source.nbytes()["int4"] == source.page_bytes(3)
    with pytest.raises(ValueError, match="not on this rank"):
        source.gather(1, 2)


def test_measures_are_those_of_the_native_page():
    store = make_store()
    k, v = fill(store, 0, 6)
    means, errors = store.measure(0, 6)
    assert torch.allclose(means, k.mean(2))
    assert torch.allclose(errors[0], torch.cat([codec_error(k, v, name) for name in CODECS]))


def test_reuse_without_free_and_writes_to_sealed_pages_are_caught():
    store = make_store()
    fill(store, 0, 1)
    with pytest.raises(ValueError, match="already stored"):
        store.open(0, 1)
    store.encode(0, 1, 1)
    with pytest.raises(ValueError, match="sealed"):
        fill(store, 0, 1)


def make_directory(ranks: int) -> tuple[PageDirectory, LocalTransport]:
    transport = LocalTransport(ranks)
    stores = {rank: make_store() for rank in range(ranks)}
    return PageDirectory(stores, transport, BLOCKS, LAYERS), transport


def test_directory_follows_events_in_order():
    directory, transport = make_directory(2)
    codec, rank = np.full((BLOCKS, LAYERS), -1, np.int8), np.zeros((BLOCKS, LAYERS), np.int8)
    codec[4:6] = 0
    directory.open(codec, rank)
    for layer in range(LAYERS):
        fill(directory.stores[0], layer, 4)
    directory.apply(
        np.array(
            [
                (Event.ENCODE, 4, 0, 0, 1),
                (Event.MOVE, 4, 0, 0, 1),
                (Event.ENCODE, 4, 0, 1, 2),
                (Event.MOVE, 4, 1, 0, 1),
                (Event.FREE, 4, 2, 0, 0),
                (Event.FREE, 5, 0, 0, 0),
                (Event.FREE, 9, 0, 0, 0),  # placed and freed between two forward passes: never had tensors
            ],
            np.int32,
        )
    )
    here, there = directory.stores[0], directory.stores[1]
    assert [there.codec(layer, 4) for layer in range(LAYERS)] == [2, 0, -1]
    assert [here.codec(layer, 4) for layer in range(LAYERS)] == [-1, -1, -1]
    assert transport.sent_bytes["page_move"] == here.page_bytes(1) + here.page_bytes(0)
    k, _ = page(0 * BLOCKS + 4)
    moved, _ = there.gather(0, 4)
    assert (moved[0].transpose(0, 1) - k).abs().max() < 0.05
    codec[4, 2] = 0
    directory.open(codec, rank)  # the block slot is placed again
    assert here.codec(2, 4) == 0


def test_centroids_outlive_their_pages():
    table = CentroidTable(LAYERS, HEADS, DIM, BLOCKS)
    means = torch.randn(2, LAYERS, HEADS, DIM).bfloat16().float()  # what the table keeps of a mean
    table.put(np.array([3, 9], np.int32), means)
    got = table.get(1, np.array([[9, -1], [3, 11]], np.int32))
    assert torch.equal(got[0, 0], means[1, 1]) and torch.equal(got[1, 0], means[0, 1])
    assert not got[0, 1].any() and not got[1, 1].any()


def test_shadow_keeps_keys_until_dropped():
    shadows = Shadows(LAYERS, HEADS, DIM, torch.float32)
    keys = torch.randn(150, HEADS, DIM)
    for start in (0, 60, 140):
        shadows.write(2, 1, start, keys[start : {0: 60, 60: 140, 140: 150}[start]])
    assert torch.equal(shadows.keys(2, 1, 150), keys) and 2 in shadows
    shadows.drop(2)
    assert shadows.nbytes == 0 and 2 not in shadows


def test_pages_come_back_from_the_host_bit_identical():
    store = make_store()
    for block in range(4):
        fill(store, 1, block)
        store.encode(1, block, block)  # one page of every codec
    before, weight = store.gather(1, range(4)), store.nbytes()
    store.swap_out(1, [3, 0, 2, 1])
    assert sum(store.nbytes().values()) == 0 and store.host.nbytes() == weight
    fill(store, 1, 9)  # the rows that they lay in are taken
    with pytest.raises(ValueError, match="not on this rank"):
        store.gather(1, 2)
    with pytest.raises(ValueError, match="not in host memory"):
        store.swap_in(1, 5)
    store.swap_in(1, [1, 2, 3])
    store.swap_in(1, 0)
    assert sum(store.host.nbytes().values()) == 0 and [store.codec(1, b) for b in range(4)] == [0, 1, 2, 3]
    after = store.gather(1, range(4))
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_the_directory_follows_a_page_to_the_host_and_back():
    directory, _ = make_directory(2)
    codec, rank = np.full((BLOCKS, LAYERS), -1, np.int8), np.zeros((BLOCKS, LAYERS), np.int8)
    codec[4:6, 0], rank[5] = 0, 1
    directory.open(codec, rank)
    here, there = directory.stores[0], directory.stores[1]
    k, _ = fill(here, 0, 4)
    native = here.page_bytes(0)
    directory.apply(np.array([(Event.SWAP_OUT, 4, 0, 0, 0), (Event.SWAP_OUT, 5, 0, 0, 1)], np.int32))
    assert here.host.nbytes()["native"] == there.host.nbytes()["native"] == native
    directory.open(codec, rank)  # in the host, not gone: nothing is to be opened
    assert here.codec(0, 4) == -1
    directory.apply(np.array([(Event.SWAP_IN, 4, 0, 0, 0), (Event.FREE, 5, 0, 0, 1)], np.int32))
    assert torch.equal(here.gather(0, 4)[0], k)
    assert sum(here.host.nbytes().values()) == sum(there.host.nbytes().values()) == 0
    directory.apply(np.array([(Event.FREE, 4, 0, 0, 0)], np.int32))
    assert sum(here.nbytes().values()) == 0
