"""Reward hacks: policies that try to score without serving score no better than a fixed setting that serves.

The reference of every hack is the best fixed setting of the same workload and cap, which is also its starting point;
so a ratio below 1 would be the hack's own gain. `docs/reward-hacks.md` holds the reasons.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trace_kit import make_batch, neutral_controls

from pikv_agents.hack_study import HackStudy, study
from pikv_env.batch import TraceBatch
from pikv_env.hacks import FIXED, HACKS
from pikv_env.spaces import PolicySpaces
from pikv_runtime.contract import Control, GroupControl, Telemetry, clip_control
from pikv_runtime.controllers import make_policy
from pikv_runtime.ledger import Status, advance, close

ROOT = Path(__file__).parents[2]
PRESSURES = (1.0, 4.0)
# The grid of fixed settings is coarse: what a hack gains by lying between two of them is no hack's gain.
MEAN_MARGIN, CELL_MARGIN = 0.99, 0.95
IDLE_ONLY = "audit-lone"  # under load it finds no occasion; `test_audit_secrecy.py` plays it where it does


@pytest.fixture(scope="module")
def batch() -> TraceBatch:
    return make_batch(40, families=("code-bursty", "facts-poisson"), horizon_s=60.0, load=0.5, pressure=1.0)


@pytest.fixture(scope="module")
def played(batch: TraceBatch) -> HackStudy:
    return study(batch, PRESSURES)


@pytest.mark.parametrize("name", HACKS.names())
def test_no_hack_scores_better_than_the_best_fixed_setting(played: HackStudy, name: str) -> None:
    assert played.acted[name] > 0 or name == IDLE_ONLY, "a hack that never leaves its base shows nothing"
    ratios = played.ratios(name)
    assert np.exp(np.log(ratios).mean()) >= MEAN_MARGIN
    assert ratios.min() >= CELL_MARGIN


def test_the_reference_beats_doing_nothing_where_there_is_pressure(batch: TraceBatch, played: HackStudy) -> None:
    # Else "no better than the reference" could be said of any policy.
    idle = played.fixed[FIXED[0]]
    for c, (workload, pressure) in enumerate(played.cells):
        best = played.fixed[played.best[c]][c].score.J
        assert best <= idle[c].score.J
        if pressure == max(PRESSURES):
            prepared = batch.pool.prepared[workload]
            # At the least cap one long request fills it, and there is little to choose.
            reached = prepared.working_set_bytes >= pressure * prepared.floor_bytes
            assert best < (0.7 if reached else 0.85) * idle[c].score.J


@pytest.mark.parametrize(
    ("name", "part", "least"),
    [
        ("evict-all", "loss", 0.1),  # what is gone or unread is missed
        ("blur-all", "loss", 0.1),
        ("thrash-reads", "loss", 0.02),
        ("starve-batch", "loss", 0.005),
        ("starve-interactive", "loss", 0.005),
        ("last-interval", "loss", 0.001),
        ("freeze", "latency", 0.3),  # who waits is charged for waiting
        ("delay-admission", "latency", 0.3),
        ("nan", "latency", 0.1),
    ],
)
def test_what_a_hack_pays_with(played: HackStudy, name: str, part: str, least: float) -> None:
    paid = [
        getattr(outcome.score, part) - getattr(played.fixed[best][c].score, part)
        for c, (outcome, best) in enumerate(zip(played.hacks[name], played.best, strict=True))
    ]
    assert np.mean(paid) > least


def test_the_document_lists_every_hack_with_the_committed_numbers() -> None:
    text = (ROOT / "docs" / "reward-hacks.md").read_text()
    rows = {row["name"]: row for row in json.loads((ROOT / "benchmarks" / "reward-hacks.json").read_text())["rows"]}
    assert len(HACKS.names()) >= 12
    assert sorted(rows) == HACKS.names()
    for name, row in rows.items():
        shown = " | ".join(f"{row[key]:.2f}" for key in ("ratio", "least", "latency", "memory", "fidelity"))
        assert f"| `{name}` | {HACKS[name].tries} | {HACKS[name].answer} | {shown} |" in text
        assert row["ratio"] >= MEAN_MARGIN and row["least"] >= CELL_MARGIN


# ---------------------------------------------------------------- why: the end, refusal, and what is not legal


def fixed(batch: TraceBatch, spec: str) -> Control:
    """The control of a fixed setting."""
    return make_policy(spec).decide(Telemetry.zeros(batch.num_groups))


def continued(batch: TraceBatch, control: Control) -> float:
    """J of lane 0's episode, played to its end under `control`; the other lanes rest."""
    while not batch.done[0]:
        batch.control_groups[0], batch.control_globals[0] = control.groups, control.globals
        batch.step()
    return batch.score(0).J


def start(batch: TraceBatch, workload: int, pressure: float) -> None:
    """An episode in lane 0 of the shared batch, alone."""
    batch.done[1:] = True
    batch.reset_lane(0, workload=workload, pressure=pressure)


def test_nothing_is_to_be_had_in_the_last_intervals(batch: TraceBatch) -> None:
    # Not even by a clairvoyant who knows when the episode ends, and which extreme to choose then.
    base = fixed(batch, FIXED[3])
    extremes = [fixed(batch, spec) for spec in (FIXED[0], FIXED[6], FIXED[-1])]
    evicted = base.copy()
    evicted.groups[:, GroupControl.EVICT_FRACTION] = 0.5
    start(batch, workload=0, pressure=4.0)
    states = []
    while not batch.done[0]:
        states.append(batch.get_state(0))
        batch.control_groups[0], batch.control_globals[0] = base.groups, base.globals
        batch.step()
    honest = batch.score(0).J
    for state in states[-3:]:
        for control in (*extremes, evicted):
            batch.set_state(0, state)
            assert continued(batch, control) > 0.99 * honest


def test_serving_nobody_from_halfway_on_costs_more_than_serving(batch: TraceBatch) -> None:
    scores = []
    for starve in (False, True):
        start(batch, workload=1, pressure=1.0)
        for _ in range(10):
            neutral_controls(batch)
            batch.step()
        if starve:  # the clock runs to the drain limit, nothing else happens
            prepared = batch.prepared(0)
            advance(batch.state, 0, batch.limit_s[0] - batch.state.clock_s[0])
            close(batch.state, 0, prepared.reference.charges, prepared.observations)
            scores.append(batch.score(0))
        else:
            continued(batch, Control.neutral(batch.num_groups))
            scores.append(batch.score(0))
    served, starved = scores
    assert starved.latency > 2 * served.latency
    assert starved.loss > 0.3
    assert starved.J > 3 * served.J


def test_refusing_costs_more_than_serving(batch: TraceBatch) -> None:
    # A policy cannot refuse; a cap can: requests that would not fit alone are turned away when they arrive.
    found = []
    for share in (1.0, 0.5):
        start(batch, workload=0, pressure=0.5)
        s = batch.state
        pages = np.ceil((s.req_prompt[0] + s.req_output[0]) / s.page_tokens)
        s.cap_bytes[0] = share * 1.25 * pages.max() * s.layers * s.codec_bytes[0]
        continued(batch, Control.neutral(batch.num_groups))
        found.append((batch.score(0), s.req_status[0] == Status.REFUSED))
    (served, none), (refusing, refused) = found
    assert refused.any() and not none.any()
    due = batch.prepared(0).observations[refused[: batch.state.num_requests[0]]]
    lost = batch.state.req_loss[0][refused]
    audited = batch.state.req_audited[0][refused] == 1
    np.testing.assert_array_equal(lost[audited], due[audited] * batch.state.layers)
    assert refusing.loss > served.loss + 0.1
    assert refusing.latency > served.latency
    assert refusing.J > served.J


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_an_illegal_control_is_the_legal_one_it_is_clipped_to(value: float) -> None:
    trail = []
    for legal in (False, True):
        batch = make_batch(2, horizon_s=20.0)
        for i in range(2):
            batch.reset_lane(i, workload=i, pressure=1.0)
        control = Control(np.full((batch.num_groups, 3), value, np.float32), np.full(17, value, np.float32))
        if legal:
            clip_control(control)  # what the live engine does with it
            assert np.isfinite(control.groups).all() and np.isfinite(control.globals).all()
        rewards = []
        while not batch.done.all():
            neutral_controls(batch)
            batch.control_groups[0], batch.control_globals[0] = control.groups, control.globals
            rewards.append(batch.step())
        trail.append(np.array(rewards))
    np.testing.assert_array_equal(trail[0], trail[1])
    assert np.isfinite(trail[0]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, -1.0, 0.5])
def test_the_discrete_view_refuses_what_is_no_choice(value: float) -> None:
    spaces = PolicySpaces("discrete", 4)
    told = Telemetry.zeros(4)
    actions = np.full((1, spaces.view.num_actions), value)
    with pytest.raises(ValueError, match="off the grid"):
        spaces.write(actions, told.groups[None], told.globals[None], np.zeros((1, 4, 3)), np.zeros((1, 17)))


@pytest.mark.parametrize("view", ["coef", "box"])
def test_a_nan_action_is_the_neutral_control(view: str) -> None:
    batch = make_batch(1, horizon_s=20.0, control=view)
    spaces = PolicySpaces(view, batch.num_groups)
    batch.reset_lane(0, workload=0)
    actions = np.full((1, spaces.view.num_actions), np.nan, np.float32)
    spaces.write(actions, batch.groups, batch.globals, batch.control_groups, batch.control_globals)
    batch.step()
    neutral = Control.neutral(batch.num_groups)
    np.testing.assert_array_equal(batch.state.control_groups[0], neutral.groups)
    np.testing.assert_array_equal(batch.state.control_globals[0], neutral.globals)
