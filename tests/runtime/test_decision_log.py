"""The audit trail: logs say exactly what was told and decided; replays make the same bits, and name what differs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bundle_kit import save

from pikv_runtime.contract import Control, GlobalControl, GlobalFeature, Telemetry
from pikv_runtime.controllers import make_policy
from pikv_runtime.policy import (
    DecisionLog,
    DecisionLogError,
    Guard,
    Logged,
    PolicyNetwork,
    Shadow,
    header_of,
    load_policy,
    random_telemetry,
    replay,
    what_if,
)
from pikv_runtime.policy.decision_log import is_sampled, read_decisions, read_header


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "tiny-0.1"
    save(path)
    return path


def credible(count, groups=5, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        telemetry = random_telemetry(groups, rng)
        telemetry.globals[[GlobalFeature.VETOES, GlobalFeature.LOSS_CLASS0, GlobalFeature.LOSS_CLASS1]] = 0
        yield telemetry


def record(path, spec, telemetry, share=1.0, **options):
    policy = load_policy(spec, **options)
    log = DecisionLog(path, header_of(policy, str(spec), share))
    logged = Logged(policy, log)
    made = [logged.decide(told).copy() for told in telemetry]
    log.close()
    return made


@pytest.mark.parametrize("runner", ["numpy", "native"])
def test_a_log_holds_every_bit_and_replays_to_it(bundle, tmp_path, runner):
    telemetry = list(credible(20))
    telemetry[3].globals[GlobalFeature.PRESSURE] = np.nan  # one strange number is let through
    telemetry[4].groups[0, 0], telemetry[5].groups[0, 0] = np.inf, -np.inf
    telemetry[6].groups[0, 0] = np.float32(0.1)
    made = record(tmp_path / "log.jsonl", bundle, telemetry, runner=runner)
    kept = list(read_decisions(tmp_path / "log.jsonl"))
    assert [d.index for d in kept] == list(range(20)) and {d.source for d in kept} == {"policy"}
    for decision, told, control in zip(kept, telemetry, made, strict=True):
        np.testing.assert_array_equal(decision.telemetry.groups, told.groups)
        np.testing.assert_array_equal(decision.telemetry.globals, told.globals)
        assert decision.control.groups.tobytes() == control.groups.tobytes()
        assert decision.cost_us > 0
    found = replay(tmp_path / "log.jsonl")
    assert (found["decisions"], found["identical"], found["first_difference"]) == (20, 20, None)


def test_what_the_fallback_decided_is_replayed_by_the_fallback(bundle, tmp_path):
    telemetry = list(credible(8))
    for k in (2, 5):
        telemetry[k].globals[GlobalFeature.VETOES] = 0.9
    record(tmp_path / "log.jsonl", bundle, telemetry, fallback="pressure_proportional/h2o")
    kept = list(read_decisions(tmp_path / "log.jsonl"))
    assert [d.source for d in kept] == ["policy"] * 2 + ["fallback"] * 6
    assert [d.trouble for d in kept] == [None, None, "vetoes", None, None, "vetoes", None, None]
    assert replay(tmp_path / "log.jsonl")["identical"] == 8


def test_a_changed_bit_is_found(tmp_path):
    record(tmp_path / "log.jsonl", "pressure_proportional/h2o", credible(6))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    row = json.loads(lines[4])
    row["control"]["globals"][GlobalControl.WINDOW] += 1
    lines[4] = json.dumps(row)
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    found = replay(tmp_path / "log.jsonl")
    assert (found["identical"], found["first_difference"]) == (5, 3)
    assert [c["control"] for c in found["controls"]] == ["window"]
    assert found["controls"][0]["mean_difference"] == pytest.approx(1 / 6)


def test_what_if_says_where_another_policy_would_have_differed(bundle, tmp_path):
    record(tmp_path / "log.jsonl", "static:ratio=2/lru", credible(10))
    same = what_if(tmp_path / "log.jsonl", "static:ratio=2/lru")
    assert (same["different"], same["controls"], same["first_difference"]) == (0, [], None)
    other = what_if(tmp_path / "log.jsonl", "static:ratio=3/lru")
    (row,) = other["controls"]
    assert row["control"] == "compression_ratio" and row["differs"] == 1.0
    assert (row["first"], row["second"], row["mean_difference"]) == (2, 3, 1)
    assert what_if(tmp_path / "log.jsonl", bundle)["different"] == 10


def test_a_sample_is_kept_by_hash(tmp_path):
    record(tmp_path / "log.jsonl", "lazy/h2o", credible(400, groups=1), share=0.25)
    kept = [d.index for d in read_decisions(tmp_path / "log.jsonl")]
    assert kept == [k for k in range(400) if is_sampled(k, 0.25)] and 60 < len(kept) < 140
    assert read_header(tmp_path / "log.jsonl").share == 0.25
    assert replay(tmp_path / "log.jsonl")["identical"] == len(kept)


def test_another_bundle_under_the_same_name_is_refused(bundle, tmp_path):
    folder = tmp_path / "mine-0.1"
    save(folder)
    record(tmp_path / "log.jsonl", folder, credible(2))
    save(folder, PolicyNetwork.random((8, 8), seed=5), overwrite=True)
    with pytest.raises(DecisionLogError, match="made by manifest"):
        replay(tmp_path / "log.jsonl")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[1:], "no decision log of format"),
        (lambda lines: [lines[0].replace('"contract": "', '"contract": "0')] + lines[1:], "of contract"),
        (lambda lines: lines[:2] + [lines[2][: len(lines[2]) // 2]], "line 3: "),
        (lambda lines: lines[:1] + [lines[1].replace('"telemetry"', '"told"')], "line 2: 'telemetry' is missing"),
        (lambda lines: lines[:1] + ['{"index": 0, "source": "policy", "trouble": null, "cost_us": 1, "telemetry": '
                                    '{"groups": [[1]], "globals": []}, "control": {"groups": [], "globals": []}}'],
         r"line 2: telemetry.groups has shape \(1, 1\)"),
        (lambda lines: [], "no decision log of format"),
    ],
)  # fmt: skip
def test_damaged_logs_are_refused_by_line(tmp_path, damage, message):
    record(tmp_path / "log.jsonl", "lazy/h2o", credible(3))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    (tmp_path / "log.jsonl").write_text("\n".join(damage(lines)))
    with pytest.raises(DecisionLogError, match=message):
        replay(tmp_path / "log.jsonl")


def test_what_is_on_record_is_not_overwritten(tmp_path):
    record(tmp_path / "log.jsonl", "lazy/h2o", credible(2))
    with pytest.raises(FileExistsError):
        record(tmp_path / "log.jsonl", "lazy/h2o", ())
    assert replay(tmp_path / "log.jsonl")["identical"] == 2


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_is_a_share(tmp_path, share):
    with pytest.raises(ValueError, match=f"share={share}: must be more than 0"):
        record(tmp_path / "log.jsonl", "lazy/h2o", (), share=share)


def test_a_shadow_changes_nothing_and_says_what_it_would_have(tmp_path):
    applied = make_policy("static:ratio=2/lru")
    candidate = Guard(make_policy("static:ratio=3,evict=0.1/lru"), make_policy("lazy/h2o"))
    log = DecisionLog(tmp_path / "shadow.jsonl", header_of(candidate, "static:ratio=3,evict=0.1/lru"))
    shadow = Shadow(applied, candidate, log)
    for told in credible(10):
        out = Control.zeros(5)
        assert shadow.decide(told, out) is out
        np.testing.assert_array_equal(out.groups, applied.decide(told).groups)
        np.testing.assert_array_equal(out.globals, applied.decide(told).globals)
    log.close()
    report = shadow.report()
    assert report["decisions"] == report["different"] == 10 and report["guard"]["trips"] == 0
    assert {c["control"]: (c["first"], c["second"]) for c in report["controls"]} == {
        "compression_ratio": (2, 3),
        "evict_fraction": (0, pytest.approx(0.1)),
    }
    assert replay(tmp_path / "shadow.jsonl")["identical"] == 10


def test_a_shadow_that_fails_does_no_harm():
    class Broken:
        def decide(self, telemetry, out=None):
            raise RuntimeError("boom")

    applied = make_policy("static:ratio=2/lru")
    shadow = Shadow(applied, Guard(Broken(), make_policy("lazy/h2o")))
    control = shadow.decide(Telemetry.zeros(3))
    assert (control.groups[:, 1] == 2).all() and shadow.report()["guard"]["error"] == 1


def test_wrappers_are_the_policy_they_wrap_for_whoever_asks(tmp_path):
    policy = make_policy("lazy/h2o+s3fifo")
    log = DecisionLog(tmp_path / "log.jsonl", header_of(policy, policy.name))
    for wrapped in (Logged(policy, log), Shadow(policy, Guard(policy, policy))):
        assert (wrapped.name, wrapped.block_rule, wrapped.ranker) == ("lazy/h2o+s3fifo", "s3fifo", "h2o")
