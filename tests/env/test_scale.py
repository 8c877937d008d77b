"""Cost of a decode step against scale: bytes by hand, orders that must hold."""

from __future__ import annotations

import pytest

from pikv_env.scale import METHODS, Load, decode_step
from pikv_runtime.profiles import load_geometry, load_profile
from pikv_runtime.registry import UnknownNameError

QWEN, PROFILE = load_geometry("qwen3-30b-a3b"), load_profile("h100-ib-1024")
MANY = 4096


def step(method, gpus, load=None, **more):
    return decode_step(method, PROFILE, QWEN, gpus, load or Load(32 * gpus, MANY), **{"tags": 8, **more})


def test_bytes_on_the_wire_are_queries_times_ranks_asked():
    assert step("local", 64).wire_bytes == 0
    assert step("sharded-exact", 8).wire_bytes == pytest.approx(48 * 32 * 7 * 16_512)
    assert step("striped", 64).wire_bytes == pytest.approx(48 * 32 * 63 * 16_512)
    owners = 64 * (1 - (1 - 1 / 64) ** 8)
    assert step("sharded-routed", 64).wire_bytes == pytest.approx(48 * 32 * owners * 63 / 64 * 16_512)
    assert step("striped-node", 1024).wire_bytes == pytest.approx(step("striped-node", 8).wire_bytes)


def test_everything_costs_the_same_on_one_gpu():
    costs = {method: step(method, 1) for method in METHODS}
    assert len({round(c.step_s, 12) for c in costs.values()}) == 1
    assert all(c.wire_bytes == 0 and c.read_share == 1 for c in costs.values())


@pytest.mark.parametrize("gpus", [8, 64, 1024])
def test_reading_where_the_request_lives_is_cheapest_for_many_requests(gpus):
    exact = {method: step(method, gpus) for method in METHODS if method != "sharded-routed"}
    assert min(exact, key=lambda method: exact[method].step_s) == "local"


def test_asking_all_ranks_grows_with_them_and_routing_does_not():
    exact = [step("sharded-exact", gpus).link_s for gpus in (8, 16, 64)]
    assert exact[0] < exact[1] < exact[2] and exact[2] > 10 * exact[0]
    routed = [step("sharded-routed", gpus) for gpus in (8, 64)]
    assert routed[1].link_s < 4 * routed[0].link_s and routed[1].read_share < 0.13 < 1.0


def test_few_long_requests_gain_from_stripes():
    long = Load(8, 262_144)
    assert step("striped-node", 64, long).step_s < 0.7 * step("local", 64, long).step_s
    assert not step("local", 1, long).fits and step("local", 8, long).fits


def test_pages_of_an_expert_have_one_home():
    spread, crowded = step("sharded-exact", 128), step("sharded-exact", 1024)
    assert crowded.attention_s == pytest.approx(8 * spread.attention_s)  # 128 experts hold eight times the pages
    assert step("sharded-exact", 64, skew=2.0).attention_s == pytest.approx(2 * step("sharded-exact", 64).attention_s)
    assert step("striped", 64, skew=2.0).attention_s == step("striped", 64).attention_s


def test_what_is_extrapolated_says_so():
    assert not step("striped", 64).extrapolated and step("striped", 128).extrapolated
    assert not step("striped-node", 1024).extrapolated


def test_an_unknown_method_is_named():
    with pytest.raises(UnknownNameError, match="did you mean 'striped'"):
        step("stripes", 8)
