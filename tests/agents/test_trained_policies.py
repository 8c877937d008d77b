"""Shipped bundles: each loads with all checks, its card says what was measured, and J can be measured again."""

from __future__ import annotations

import pytest

from pikv_agents.rollout import Episode, Suite
from pikv_env.builtin import make_config, resolve_library
from pikv_env.workloads.families import FAMILIES
from pikv_runtime.policy import load_bundle, load_policy
from pikv_runtime.policy.shelf import describe, find_bundles

BUNDLES = find_bundles()


def test_one_is_shipped():
    assert BUNDLES


@pytest.mark.parametrize("path", BUNDLES, ids=lambda p: p.name)
def test_it_is_what_its_manifest_says(path):
    section = describe(path)
    assert section["golden_pairs"] >= 16 and section["golden_error"] < 1e-5
    assert section["bundle"] == path.name


@pytest.mark.parametrize("path", BUNDLES, ids=lambda p: p.name)
def test_the_card_says_what_was_measured(path):
    bundle = load_bundle(path)
    found = bundle.evaluation["evaluation"]
    for family in found["families"].values():
        assert f"{family['policies']['learned']['J']:.3f}" in bundle.card
    assert all(f in bundle.card for f in bundle.manifest.provenance["families"])


@pytest.mark.parametrize("path", BUNDLES, ids=lambda p: p.name)
def test_its_evaluation_can_be_repeated(path):
    bundle = load_bundle(path)
    found, provenance = bundle.evaluation["evaluation"], bundle.manifest.provenance
    name, family = next((n, f) for n, f in found["families"].items() if f["split"] == "test")
    assert FAMILIES[family["family"]].split == "test" and family["family"] not in provenance["families"]
    suite = Suite(resolve_library(), make_config(**found["meta"]["env"]))
    episode = Episode(family["family"], found["seeds"][0], family["pressure"])
    outcome = suite.run(lambda: load_policy(path, guard=False), [episode])[0]
    assert pytest.approx(family["policies"]["learned"]["scores"][0], rel=0.02) == outcome.score.J, name
