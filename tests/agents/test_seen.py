"""No family that a policy saw is called a test, whatever its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from tiny import tiny_library, tiny_suite, tiny_training

from pikv_agents.evaluation import evaluate
from pikv_agents.exporting import export
from pikv_agents.report.verdict import counted_families
from pikv_agents.seen import Seen, check_split, fingerprints, structures
from pikv_agents.training import train
from pikv_env.workloads import FAMILIES, Family, Phase, Popularity, Trace
from pikv_env.workloads.arrivals import Gamma, OnOff
from pikv_env.workloads.fingerprint import fingerprint
from pikv_env.workloads.replay import trace_path
from pikv_env.workloads.structure import structure
from pikv_runtime.policy import PolicyNetwork, load_bundle, save_bundle


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(FAMILIES._entries)
    yield
    FAMILIES._entries.clear()
    FAMILIES._entries.update(before)


def add(family: Family, **change: object) -> str:
    made = dataclasses.replace(family, **change)  # type: ignore[arg-type]
    FAMILIES.add(made.id, made)
    return made.id


def bundle(path: Path, **provenance: object) -> str:
    save_bundle(path, PolicyNetwork.random((8,)), name="it", version="0.1", interval_s=2.0, objective_version="1",
                provenance=provenance, evaluation={}, card="")  # fmt: skip
    return str(path)


def test_a_renamed_copy_of_a_training_family_is_no_test(registry: None, tmp_path: Path) -> None:
    told = fingerprints(["facts-poisson"])
    policy = {"learned": bundle(tmp_path / "it-0.1", families=["facts-poisson"], fingerprints=told)}
    add(FAMILIES["facts-poisson"], id="fresh", split="test", description="new!", batch_share=0.5)
    with pytest.raises(
        ValueError, match=r"fresh: has the contents, arrivals and sharing of 'facts-poisson'; a policy saw"
    ):
        evaluate(policy, tiny_suite(), ("fresh",), (0,), rivals={}, grid=())
    add(FAMILIES["facts-poisson"], id="other", split="test", sharing="none")
    check_split(("other",), Seen.by(policy.values()), "test")


def test_a_near_copy_is_called_one_and_does_not_count_as_unseen(registry: None, tmp_path: Path) -> None:
    told = {"fingerprints": fingerprints(["facts-poisson"]), "structures": structures(["facts-poisson"])}
    policy = {"learned": bundle(tmp_path / "it-0.1", families=["facts-poisson"], **told)}
    add(FAMILIES["facts-poisson"], id="close", split="test", popularity=Popularity(zipf=1.5), batch_share=0.9)
    found = evaluate(policy, tiny_suite(), ("close", "needle-onoff"), (0,), rivals={}, grid=(), runner="numpy")
    assert found["families"]["close"]["split"] == "near copy of facts-poisson"
    assert found["families"]["close"]["near_copy_of"] == "facts-poisson"
    assert [found["families"]["needle-onoff"][key] for key in ("split", "near_copy_of")] == ["test", None]
    assert counted_families(found) == ["needle-onoff"]
    with pytest.raises(ValueError, match=r"close: a near copy of 'facts-poisson'.*allowed here: agent-loops"):
        evaluate(policy, tiny_suite(), ("close",), (0,), rivals={}, grid=(), split="test")
    del FAMILIES._entries["facts-poisson"]  # another program, which does not know the training family
    assert Seen.by(policy.values()).split("close") == "near copy of facts-poisson"


def test_only_numbers_may_differ_in_a_near_copy(registry: None, tmp_path: Path) -> None:
    base = FAMILIES["mixed-bursty"]
    (phase,) = base.phases
    more = Phase({**phase.kinds, "needle": 0.1})
    near = [
        dataclasses.replace(base, popularity=Popularity(zipf=2.0, instances=9, lifetime_s=50.0)),
        dataclasses.replace(base, arrivals=dataclasses.replace(base.arrivals, cv=1.1)),  # type: ignore[type-var]
        dataclasses.replace(base, phases=(Phase({k: 1.0 + 9 * (k == "code") for k in phase.kinds}),)),
        dataclasses.replace(base, phases=(phase, dataclasses.replace(phase, rate=3.0))),
        dataclasses.replace(base, phases=(more,)),  # a pinch of another kind
    ]
    assert {structure(f) for f in near} == {structure(base)} and fingerprint(base) not in map(fingerprint, near)
    far = [
        dataclasses.replace(base, phases=(Phase({**phase.kinds, "needle": 1.0}),)),
        dataclasses.replace(base, phases=(Phase({"code": 1.0}),)),
        dataclasses.replace(base, arrivals=OnOff()),
        dataclasses.replace(base, sharing="tenant"),
    ]
    assert structure(base) not in map(structure, far)
    sessions = FAMILIES["chat-diurnal"]
    swung = dataclasses.replace(sessions.arrivals, starts=Gamma())  # type: ignore[type-var]
    assert structure(dataclasses.replace(sessions, arrivals=swung)) != structure(sessions)
    replay = FAMILIES["replay-conversation"]
    assert structure(replay) != structure(FAMILIES["replay-agent-loop"])
    assert structure(dataclasses.replace(replay, phases=(Phase({"code": 1.0}),))) == structure(replay)


def test_no_family_is_a_near_copy_of_one_of_another_split() -> None:
    for a, b in combinations(FAMILIES, 2):
        assert structure(FAMILIES[a]) != structure(FAMILIES[b]), (a, b)


def test_a_bundle_keeps_what_it_saw_when_families_change(registry: None, tmp_path: Path) -> None:
    mine = add(FAMILIES["facts-poisson"], id="mine", popularity=Popularity(zipf=1.7))
    path = bundle(tmp_path / "it-0.1", families=[mine], fingerprints=fingerprints([mine]))
    copy = add(FAMILIES["mine"], id="held-out", split="test")
    del FAMILIES._entries["mine"]  # another program, in which the training family is not registered
    assert Seen.by([path]).match(copy) == "mine"
    old = bundle(tmp_path / "old-0.1", families=["facts-poisson", "long-gone"])  # before fingerprints
    assert Seen.by([old]).match("facts-poisson") and not Seen.by([old]).match(copy)
    assert Seen.by([], ["needle-onoff"]).split("needle-onoff") == "seen"


def test_seen_families_are_called_seen_and_never_a_test(tmp_path: Path) -> None:
    policy = {"learned": bundle(tmp_path / "it-0.1", families=["code-bursty"], validation=["facts-poisson"])}
    found = evaluate(policy, tiny_suite(), ("code-bursty", "needle-onoff"), (0,), rivals={}, grid=(), runner="numpy")
    assert {name: row["split"] for name, row in found["families"].items()} == {
        "code-bursty": "seen",
        "needle-onoff": "test",
    }
    for family in ("code-bursty", "facts-poisson"):  # trained on; chosen by
        with pytest.raises(ValueError, match=rf"{family}: a policy saw it.*allowed here: agent-loops"):
            evaluate(policy, tiny_suite(), (family,), (0,), rivals={}, grid=(), split="test")
    with pytest.raises(ValueError, match="code-bursty: is of the train split, not of 'validation'"):
        check_split(("code-bursty",), Seen({}), "validation")


def test_training_leaves_fingerprints_in_the_bundle(tmp_path: Path) -> None:
    result = train(tiny_training(), tiny_library(), tmp_path / "run", tracking="disabled", progress=False)
    told = load_bundle(export(result.run_dir, tmp_path / "mine-0.1")).manifest.provenance
    assert set(told["fingerprints"]) == {*told["families"], *told["validation"]} >= {"facts-poisson", "code-bursty"}
    assert told["structures"].keys() == told["fingerprints"].keys()
    assert told["structures"]["code-bursty"] == structure(FAMILIES["code-bursty"])
    assert told["fingerprints"]["code-bursty"] == fingerprint(FAMILIES["code-bursty"])


def test_no_two_families_are_the_same_and_tests_have_contents_of_their_own() -> None:
    assert len({fingerprint(FAMILIES[name]) for name in FAMILIES}) == len(FAMILIES.names())
    trained = {kind for name in FAMILIES if FAMILIES[name].split == "train" for kind in FAMILIES[name].kinds}
    assert all(set(FAMILIES[name].kinds) - trained for name in FAMILIES if FAMILIES[name].split == "test")


def test_a_fingerprint_counts_what_acts(tmp_path: Path) -> None:
    base = FAMILIES["mixed-bursty"]
    same = [
        dataclasses.replace(base, phases=(Phase({k: 2 * w for k, w in base.phases[0].kinds.items()}, rate=3.0),)),
        dataclasses.replace(base, tenants=dataclasses.replace(base.tenants, count=3)),  # the rule does not read it
    ]
    (phase,) = base.phases
    halves = (dataclasses.replace(phase, share=0.3), dataclasses.replace(phase, share=0.7))
    same.append(dataclasses.replace(base, phases=halves))  # two phases that are one
    assert {fingerprint(f) for f in same} == {fingerprint(base)}
    acts = [
        dataclasses.replace(base, phases=(Phase({"facts": 1.0}),)),
        dataclasses.replace(base, arrivals=dataclasses.replace(base.arrivals, cv=2.6)),  # type: ignore[type-var]
        dataclasses.replace(base, sharing="none"),
        base,
    ]
    assert all(fingerprint(a) != fingerprint(b) for a, b in combinations(acts, 2))
    copied = tmp_path / "elsewhere.jsonl.gz"
    copied.write_bytes(trace_path("builtin:conversation").read_bytes())
    replay = FAMILIES["replay-conversation"]
    for trace in (Trace(copied), Trace(copied, token_scale=16.0, jitter_ms=0.0)):
        assert fingerprint(dataclasses.replace(replay, arrivals=trace)) == fingerprint(replay)
    other = dataclasses.replace(replay, arrivals=Trace("builtin:agent-loop", block_tokens=2048))
    assert fingerprint(other) != fingerprint(replay)
