"""Geometries and hardware profiles: bytes against published figures and real payloads, prices that make sense."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pikv_kernels import encode
from pikv_runtime.ledger.state import CODECS, Price
from pikv_runtime.profiles import (
    Geometry,
    find_link,
    geometry_names,
    load_geometry,
    load_profile,
    profile_names,
)
from pikv_runtime.profiles.roofline import touched_experts
from pikv_runtime.registry import UnknownNameError

HARDWARE = [name for name in profile_names() if load_profile(name).hardware is not None]
# Bytes of one token's KV over all layers: 2 · layers · KV heads · head dim · 2, or 1,152 a layer with latents.
PUBLISHED_KV = {
    "olmoe-1b-7b": 128 * 1024,
    "qwen3-30b-a3b": 96 * 1024,
    "mixtral-8x7b": 128 * 1024,
    "gpt-oss-120b": 72 * 1024,
    "deepseek-v3": 70_272,
}


def test_the_catalogue_is_whole():
    assert set(geometry_names()) == {"embedded", *PUBLISHED_KV}
    nodes = {"a100-nvlink8", "h100-nvlink8", "h200-nvlink8", "b200-nvlink8", "l40s-pcie4", "h100-ib-64", "h100-ib-1024"}
    assert set(HARDWARE) == nodes
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name and profile.source and profile.date.startswith("20") and 0 < profile.fit_error < 0.3


@pytest.mark.parametrize("name", PUBLISHED_KV)
def test_kv_bytes_of_a_token_are_the_published_ones(name):
    geometry = load_geometry(name)
    assert geometry.kv_token_bytes() == PUBLISHED_KV[name]
    shape = geometry.shape(page_tokens=16)
    assert shape.layers * shape.codec_bytes[0] == 16 * PUBLISHED_KV[name] * geometry.paged_layers // geometry.layers


@pytest.mark.parametrize("name", [*PUBLISHED_KV, "embedded"])
@pytest.mark.parametrize("codec", CODECS)
def test_page_bytes_are_those_of_a_real_payload(name, codec):
    g = load_geometry(name)
    dtype = {4: torch.float32, 2: torch.bfloat16}[g.native_bytes]
    heads, width = (1, g.latent) if g.latent else (g.kv_heads, g.head_dim)
    x = torch.randn(1, heads, 16, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    stored = encode(codec, x, x).tensors()
    kept = {key: tensor for key, tensor in stored.items() if not (g.latent and key.startswith("v"))}
    assert g.page_bytes(codec, 16) == sum(tensor.nbytes for tensor in kept.values())


@pytest.mark.parametrize("name", [*PUBLISHED_KV, "embedded"])
def test_parameters_add_up_to_the_published_ones(name):
    g = load_geometry(name)
    embedding = g.vocabulary * g.hidden_size
    routed = g.moe_layers * g.expert_parameters
    assert g.dense_parameters + g.experts * routed + embedding == pytest.approx(g.total_parameters, rel=0.01)
    active = g.dense_parameters + g.experts_per_token * routed  # published with or without the input embedding
    assert 0.98 * active <= g.active_parameters <= 1.02 * (active + embedding)


def test_query_bytes_follow_the_wire():
    assert load_geometry("embedded").query_bytes() == 1040  # fp32, what the runtime sends
    wire = {name: load_geometry(name).query_bytes(2) for name in PUBLISHED_KV}
    assert wire["qwen3-30b-a3b"] == 16_512 and wire["deepseek-v3"] == 279_040 and wire["gpt-oss-120b"] == 16_640


def _row(profile="h100-nvlink8", geometry="qwen3-30b-a3b", ranks=8, **more):
    return load_profile(profile).prices(load_geometry(geometry), ranks=ranks, **more)


@pytest.mark.parametrize("profile", HARDWARE)
@pytest.mark.parametrize("geometry", geometry_names())
def test_prices_are_finite_and_positive_where_the_model_fits(profile, geometry):
    ranks = load_profile(profile).hardware.most_ranks
    try:
        row = _row(profile, geometry, ranks)
    except ValueError as error:
        assert "does not fit" in str(error) and geometry in ("deepseek-v3", "mixtral-8x7b", "gpt-oss-120b")
        return
    assert np.isfinite(row).all() and (row > 0).all()
    reads = row[Price.READ_NATIVE : Price.SELECT_PAGE]
    assert (np.diff(reads) <= 0).all() and row[Price.SELECT_PAGE] < reads[-1]


def test_faster_machines_charge_less():
    reads = [
        _row(f"{gpu}", "olmoe-1b-7b", 4)[Price.READ_BF16]
        for gpu in ("l40s-pcie4", "a100-nvlink8", "h100-nvlink8", "h200-nvlink8", "b200-nvlink8")
    ]
    assert all(slow > fast for slow, fast in itertools.pairwise(reads))
    assert _row("h100-nvlink8")[Price.READ_BF16] / _row("h200-nvlink8")[Price.READ_BF16] == pytest.approx(4.8 / 3.35)
    assert _row("l40s-pcie4", "olmoe-1b-7b", 4)[Price.LINK_BYTE] > 10 * _row("a100-nvlink8")[Price.LINK_BYTE]
    assert _row("h100-ib-64", ranks=64)[Price.COLLECTIVE] > _row("h100-nvlink8")[Price.COLLECTIVE]


def test_a_page_costs_its_bytes_or_its_arithmetic():
    h = load_profile("h100-nvlink8").hardware
    assert _row()[Price.READ_NATIVE] == pytest.approx(32_768 / (h.read_bytes_s * h.read_efficiency))
    latent = _row("h200-nvlink8", "deepseek-v3")  # 128 heads on one latent: compressing it does not read faster
    assert latent[Price.READ_NATIVE] == latent[Price.READ_INT4]


def test_one_rank_has_no_links_and_more_ranks_stream_less():
    one, eight = _row(ranks=1), _row(ranks=8)
    assert one[Price.COLLECTIVE] == one[Price.LINK_BYTE] == 0
    assert eight[Price.PREFILL_TOKEN] < one[Price.PREFILL_TOKEN]  # small chunks wake all experts: fewer on each rank
    bigger = _row(ranks=1, chunk_tokens=4096)
    assert bigger[Price.PREFILL_TOKEN] < one[Price.PREFILL_TOKEN]


def test_a_batch_wakes_experts_as_expected():
    g = load_geometry("mixtral-8x7b")
    assert touched_experts(g, 1) == pytest.approx(2) and touched_experts(g, 2) == pytest.approx(3.5)
    assert touched_experts(g, 64) == pytest.approx(8, abs=1e-6)


def test_what_cannot_be_priced_is_refused():
    with pytest.raises(ValueError, match=r"93 GB of weights and does not fit into ranks=1 .* at least 2 are needed"):
        _row(geometry="mixtral-8x7b", ranks=1)
    with pytest.raises(ValueError, match="covers at most 8 ranks, not 16"):
        _row(ranks=16)
    with pytest.raises(ValueError, match="measured with geometry 'embedded' and has no prices for 'qwen3-30b-a3b'"):
        _row("cpu-gloo")
    with pytest.raises(ValueError, match="prices a geometry"):
        load_profile("h100-nvlink8").prices()
    with pytest.raises(ValueError, match="lacks hidden_size"):
        load_profile("h100-nvlink8").prices(Geometry("mine", 4, 8, 4, 2, 32, 2))
    with pytest.raises(UnknownNameError, match="did you mean 'h100-nvlink8'"):
        load_profile("h100-nvlnk8")
    with pytest.raises(UnknownNameError, match="did you mean 'qwen3-30b-a3b'"):
        load_geometry("qwen3-30b")


def test_the_measured_row_is_unchanged_by_arguments():
    profile = load_profile("cpu-gloo")
    row = profile.prices(load_geometry("embedded"), ranks=2, rows=64)
    np.testing.assert_array_equal(row, [profile.prices_s[p.name.lower()] for p in Price])


def test_what_nobody_measured_is_marked():
    for name in HARDWARE:
        profile = load_profile(name)
        beyond = [link for link in profile.links if link.ranks > 64]
        assert bool(profile.extrapolated) == bool(beyond) == (name == "h100-ib-1024")
        assert all(link.extrapolated and link.fit_error is None for link in beyond)
        assert all(link.fit_error is not None and not link.extrapolated for link in set(profile.links) - set(beyond))


def test_ranks_between_take_the_next_larger_link():
    links = load_profile("h100-nvlink8").links
    assert find_link(links, ("all_to_all",), 3, 100.0).ranks == 4
    small, large = (find_link(links, ("all_to_all",), 8, size) for size in (2.0**20, 2.0**20 + 1))
    assert small.up_to_bytes == 2**20 and large.up_to_bytes is None and large.byte_s < small.byte_s
    with pytest.raises(ValueError, match="at most 8"):
        find_link(links, ("all_to_all",), 9)
