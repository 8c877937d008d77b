"""`pikv parity`: what it refuses, a log's replay, and (slow) both levels in small."""

from __future__ import annotations

import pytest

from pikv_agents.commands.parity import POLICIES, Parity
from pikv_env.parity_verdict import TARGETS
from pikv_runtime.registry import UnknownNameError
from tests.parity.test_serving_log import LOSSY, changed, served

TWO = ("lazy/lru", "static:ratio=4,evict=0.5,fan_out=0.05,window=1/streaming_llm")


def test_sixteen_policies_by_default() -> None:
    assert len(set(POLICIES)) == 16


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"level": "c"}, "level='c'"),
        ({"repeats": 0}, "repeats=0"),
        ({"model_ranks": (1, 0)}, "ranks=0"),
        ({"policies": ("lasy/lru",)}, "lazy"),
        ({"family": "tool-nothing"}, "tool-nothing"),
    ],
)
def test_bad_input_is_named_before_anything_runs(fields, told: str) -> None:
    with pytest.raises((ValueError, UnknownNameError), match=told):
        Parity(**fields).run()


def test_a_log_is_replayed(tmp_path, capsys) -> None:
    path = served(LOSSY, "wall").save(tmp_path / "run.npz")
    found = Parity(log=path).run()
    assert found["identical"] and found["decided_by"] == "policy" and found["logged"] == found["replayed"]
    assert "identical" in capsys.readouterr().out
    bad = changed(served(LOSSY, "wall"), "seconds", lambda a: a.__setitem__(3, 1.0)).save(tmp_path / "bad.npz")
    assert Parity(log=bad).run()["first_difference"] == "iteration 3: clock_s"
    assert "DIFFERENT at iteration 3" in capsys.readouterr().out


@pytest.mark.slow
def test_both_levels(tmp_path) -> None:
    found = Parity(
        policies=TWO, ranks=(1, 2), model_ranks=(1, 4), repeats=2, horizon_s=6.0, horizon_a_s=1.5, logs=tmp_path
    ).run()
    assert found["level_a"]["identical"] and len(found["level_a"]["rows"]) == 4
    for ranks in ("1", "2"):
        b = found["level_b"]["by_ranks"][ranks]
        assert set(b["verdicts"]) == {*TARGETS, "replays_identical"} and b["verdicts"]["replays_identical"]
        assert len(b["prices"]) == 2 and b["workload"]["requests"] > 3
    assert [(r["ranks"], r["policy"]) for r in found["rows"]] == [(n, p) for n in (1, 2) for p in TWO]
    assert len(list(tmp_path.glob("*.npz"))) == 2 * 2 * (len(TWO) + 3)
