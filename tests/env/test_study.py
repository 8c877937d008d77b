"""The study's instruments: they must be able to see an effect, and to see that there is none."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from pikv_env.study import lineage, lookup, placement
from pikv_env.study.contents import FAR_TOKENS, KINDS, build_probes
from pikv_env.study.effects import proxy, study_effects
from pikv_env.study.settings import BASE, KeepShare, Setting, settings
from pikv_env.traces import synthetic_library
from pikv_runtime.contract import EVICT_MAX, GroupControl, GroupFeature, Telemetry
from pikv_runtime.controllers import make_policy
from pikv_runtime.models import load_model, step
from pikv_runtime.registry import UnknownNameError
from pikv_runtime.shard_maps import make_shard_map

PROBES = {"facts": 1, "dictionary": 1}


@functools.cache
def library():
    return synthetic_library(0, ("facts", "prose"), contents_per_family=8)


# --- what is served


def test_a_far_answer_repeats_what_stands_far_back() -> None:
    probes = build_probes({"facts": 2, "dictionary": 2, "needle": 2}, 400, 96, seed=3)
    assert sum(len(p.answers) for p in probes) >= 12
    for probe in probes:
        r = probe.request
        assert r.prompt_ids is not None and r.exact_ids is not None and len(r.exact_ids) == r.output_tokens
        text = np.concatenate([r.prompt_ids, r.exact_ids]).astype(np.uint8).tobytes()
        for start, end in probe.answers:
            at = r.prompt_tokens + start
            assert 1 <= start < end <= r.output_tokens
            assert text[at : r.prompt_tokens + end] in text[: at - FAR_TOKENS + (end - start)]


def test_probes_are_reproducible_and_kinds_are_checked() -> None:
    one, other = (build_probes({"facts": 1}, 200, 40, seed) for seed in (0, 1))
    again = build_probes({"facts": 1}, 200, 40, 0)
    assert np.array_equal(one[0].request.prompt_ids, again[0].request.prompt_ids)
    assert not np.array_equal(one[0].request.prompt_ids, other[0].request.prompt_ids)
    with pytest.raises(UnknownNameError, match="needle"):
        build_probes({"needles": 1}, 200, 40, 0)
    assert "needle" in KINDS


# --- who steers


@pytest.mark.parametrize(("ghosts", "asked"), [(0.0, 0.5), (0.25, 1 / 3), (0.5, 0.0), (0.9, 0.0)])
def test_keep_share_evicts_down_to_its_share_and_no_further(ghosts: float, asked: float) -> None:
    telemetry = Telemetry.zeros(3)
    telemetry.groups[:, GroupFeature.GHOST_SHARE] = ghosts
    control = KeepShare(0.5, "h2o", 0.25).decide(telemetry)
    np.testing.assert_allclose(control.groups[:, GroupControl.EVICT_FRACTION], min(asked, EVICT_MAX), rtol=1e-6)


def test_keep_share_can_wait_until_its_ranker_has_seen_something() -> None:
    policy = KeepShare(0.5, "h2o", 0.25, patience=2)
    asked = [policy.decide(Telemetry.zeros(1)).groups[0, GroupControl.EVICT_FRACTION] for _ in range(3)]
    assert asked == [0.0, 0.0, 0.5]


def test_the_settings_have_names_of_their_own_and_exact_is_first() -> None:
    rows = settings()
    assert rows[0].name == "exact" and rows[0].config.read == "exact" and rows[0].config.codec == "native"
    assert len({row.name for row in rows}) == len(rows)


# --- what is measured


@functools.cache
def effects():
    torch.set_num_threads(1)
    probes = build_probes(PROBES, 288, 40, seed=0)
    exact = replace(BASE, read="exact", router="all", codec="native")
    rows = [
        Setting("exact", "none", 1.0, exact, make_policy("static")),
        Setting("gate", "fan_out", 0.1, replace(BASE, router="gate"), make_policy("static:fan_out=0.1")),
        Setting("keep", "evict", 0.3, replace(BASE, interval_s=0.1), KeepShare(0.3, "streaming_llm", 0.5)),
    ]
    return {row["setting"]: row for row in study_effects(load_model("embedded")[0], probes, rows)}


def test_the_exact_run_differs_from_itself_in_nothing() -> None:
    exact = effects()["exact"]
    assert exact["kl"] == 0.0 and exact["agreement"] == 1.0 and exact["fidelity"] == pytest.approx(1.0, abs=1e-5)
    assert exact["hit"] == 1.0 and exact["evicted_pages"] == 0 and exact["wishes_missed"] == 0.0
    assert exact["recall"] > 0.8, "the model recalls what it reads: else the study could not see recall fall"


def test_sparse_reading_diverges_without_a_miss() -> None:
    gate = effects()["gate"]
    assert gate["fidelity"] < 0.95 and gate["kl"] > 0.01 and gate["recall"] < effects()["exact"]["recall"]
    assert gate["hit"] == 1.0 and gate["routed_to_low"]["0.9"] == 0.0


def test_eviction_shows_as_misses_low_hit_experts_and_conflicts() -> None:
    keep = effects()["keep"]
    assert keep["evicted_pages"] > 0 and keep["hit"] < 1.0 and keep["wishes_missed"] > 0.0
    assert 0.0 < keep["routed_to_low"]["0.9"] <= 1.0
    again = list(keep["asked_again"].values())
    assert again == sorted(again) and again[-1] > 0.0, "a longer window never holds fewer conflicts"


def test_a_proxy_that_orders_nothing_is_seen() -> None:
    def rows(fidelities: list[float]) -> list[dict]:
        outcomes = ("kl", "agreement", "accuracy", "recall")
        return [{"setting": str(i), "fidelity": f} | dict.fromkeys(outcomes, i / 10) for i, f in enumerate(fidelities)]

    assert proxy(rows([0.1, 0.2, 0.3, 0.4]))["recall"]["spearman"] == pytest.approx(1.0)
    assert proxy(rows([0.4, 0.3, 0.2, 0.1]))["recall"]["kendall"] == pytest.approx(-1.0)
    assert proxy(rows([0.5, 0.505, 0.9, 0.7]))["recall"]["furthest_at_equal_F"]["apart"] == pytest.approx(0.1)


# --- what tags know, and what sharding costs


def with_gate(gate_of) -> object:
    lib = library()
    gate = np.zeros_like(lib.gate)
    for c in range(len(lib)):
        tags = np.maximum(lib.tags[c], 0)
        for o in range(gate.shape[1]):
            for layer in range(lib.layers):
                mass = np.bincount(tags[layer], lib.mass[c, o, layer], lib.experts)
                pages = np.maximum(np.bincount(tags[layer], minlength=lib.experts), 1)
                gate[c, o, layer] = gate_of(mass / pages)
    return replace(lib, gate=gate / gate.sum(-1, keepdims=True))


def test_a_gate_that_knew_the_mass_would_be_seen_to_know_it() -> None:
    knowing = placement.gate_knowledge(with_gate(lambda mass: mass + 1e-3))
    ignorant = placement.gate_knowledge(with_gate(lambda mass: mass.max() - mass + 1e-3))
    for wise, dull in zip(knowing, ignorant, strict=True):
        assert wise["gate"] > dull["gate"] and wise["gate"] <= wise["best"] + 1e-9
        assert wise["random"] <= wise["best"]
    assert all(row["gate"] > row["random"] for row in knowing)
    assert any(row["gate_over_random_ci95"][0] > 1.0 for row in knowing)


def test_homes_are_the_ledgers() -> None:
    look = placement.Look(0, 0, np.ones(8) / 8, 1.0, np.arange(8), np.ones(8) / 8, np.zeros(8))
    for ranks in placement.RANKS:
        table = make_shard_map("expert_home").homes(ranks, 8, 1)[0, :8, 0]
        assert placement.homes(look, "expert", ranks, 8).tolist() == table.tolist()
        assert np.bincount(placement.homes(look, "stripe", ranks, 8)).max() == 8 // ranks


def test_stripes_are_even_and_whoever_asks_all_ranks_gets_all() -> None:
    rows = {(r["ranks"], r["placement"]): r for r in placement.placement(library(), 100.0)}
    for ranks in placement.RANKS:
        stripe, expert = rows[ranks, "stripe"]["exact"], rows[ranks, "expert"]["exact"]
        assert stripe["balance_batch"] < 1.3 and stripe["balance_batch"] <= expert["balance_batch"]
        assert stripe["remote_ranks"] <= ranks - 1
        assert stripe["wire_bytes_per_token"] == pytest.approx(stripe["remote_ranks"] * 100.0 * library().layers)
    for row in placement.routed_ranks(library()):
        assert row["gate_mass"] <= row["best_mass"] + 1e-9
        if row["asked"] == row["ranks"]:
            assert row["gate_mass"] == pytest.approx(1.0) and row["gate_pages"] == pytest.approx(1.0)


# --- look-ups


def test_the_stopwatch_takes_itself_off_again() -> None:
    before = step.read_sets
    with pytest.raises(KeyError), lookup.watched(lookup.Stopwatch()):
        assert step.read_sets is not before
        raise KeyError
    assert step.read_sets is before


def test_a_lower_fan_out_reads_fewer_pages_in_the_same_serve() -> None:
    found = lookup.lookup(load_model("embedded")[0], 1, requests=2, prompt_tokens=192, output_tokens=48)
    pages = [row["pages_read"] for row in found["rows"]]
    assert pages == sorted(pages, reverse=True) and pages[0] > 1.5 * pages[-1]
    for row in found["rows"]:
        assert 0 < row["read_ms"] < row["step_ms"] and row["messages_ms"] == 0.0
        assert (row["score_ms"] > 0) == (row["fan_out"] < 1)  # whoever reads everything chooses nothing


def test_a_lineage_inherits_less_than_the_codec_it_was_written_over() -> None:
    probes = build_probes({"prose": 1, "facts": 1}, 192, 128, seed=0)
    rows = {row["setting"]: row for row in lineage.study_lineage(load_model("embedded")[0], probes)}
    int8, int4, gone = (rows[name] for name in ("context in int8", "context in int4", "all of the far context gone"))
    assert 0 < int8["v_error"] < int4["v_error"] < gone["v_error"]
    assert int4["v_error"] < rows["exact, stored in int4"]["v_error"]
    assert 0 < int8["kl"] < rows["exact, stored in int4"]["kl"]


def test_a_context_read_without_loss_leaves_an_exact_lineage() -> None:
    model = load_model("embedded")[0]
    turn = lineage._exact(model, build_probes({"prose": 1}, 192, 128, seed=0)[0])
    for (k, v), (k_exact, v_exact) in zip(
        lineage._rewritten(model, lambda kv, prompt: (kv, None), turn), turn.kv, strict=True
    ):
        torch.testing.assert_close(k, k_exact, atol=1e-4, rtol=0)
        torch.testing.assert_close(v, v_exact, atol=1e-4, rtol=0)
    seen_all = torch.zeros(turn.prompt, dtype=torch.bool)
    kv = lineage._rewritten(model, lambda kv, prompt: (kv, seen_all), turn)
    torch.testing.assert_close(kv[-1][1], turn.kv[-1][1], atol=1e-4, rtol=0)
