"""Named suites, and the least cap at which they put families under pressure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from trace_kit import make_batch, neutral_controls

from pikv_env.batch import TraceBatch
from pikv_env.suites import PRESSURES, SUITES, SuiteSpec, reached
from pikv_env.workloads import FAMILIES, families_of
from pikv_runtime.ledger.state import Status
from pikv_runtime.registry import UnknownNameError


@pytest.mark.parametrize("name", SUITES.names())
def test_every_suite_is_an_environment_with_the_whole_axis(name: str) -> None:
    spec, config = SUITES[name], SUITES[name].config()
    assert PRESSURES == (0.5, 1.0, 2.0, 4.0) == spec.pressures
    assert config.pressure == (0.5, 4.0) and config.families == spec.families["train"]
    assert (config.profile, config.geometry, config.ranks, config.host) == (
        spec.profile,
        spec.geometry,
        spec.ranks,
        spec.host,
    )
    assert (config.runtime.slots, config.runtime.max_batch_tokens) == (spec.slots, spec.chunk_tokens)
    assert config.runtime.share_lossy == spec.share_lossy == (name == "serving-lossy")
    assert {s: set(spec.families[s]) for s in spec.families} == {s: set(families_of(s)) for s in spec.families}  # type: ignore[arg-type]
    assert len(spec.all_families()) == len(set(spec.all_families())) == len(FAMILIES.names())


def test_suites_refuse_what_they_cannot_be() -> None:
    with pytest.raises(UnknownNameError, match="unknown suite 'lapto': did you mean 'laptop'"):
        SUITES["lapto"]
    with pytest.raises(ValueError, match=r"suite 'laptop': pressures=\(0.0,\)"):
        replace(SUITES["laptop"], pressures=(0.0,))
    with pytest.raises(ValueError, match="splits"):
        SuiteSpec("x", "y", "cpu-gloo", "embedded", families={"tset": ()})


def test_reached_means_nearly_the_pressure_asked() -> None:
    assert [reached(4.0, got) for got in (4.1, 3.81, 3.79, 1.0)] == [True, True, False, False]


def at_the_floor(ranks: int, less: int) -> TraceBatch:
    """One episode whose cap is `less` bytes below the floor, played to its end under the neutral control."""
    batch = make_batch(1, ranks=ranks, workloads=1, pressure=0.5)
    batch.reset_lane(0, workload=0, pressure=1e9)
    assert batch.state.cap_bytes[0] == batch.prepared(0).floor_bytes
    batch.state.cap_bytes[0] -= less
    batch.limit_s[:] = np.inf  # however long it takes: the question is whether everybody is served
    for _ in range(20_000):
        neutral_controls(batch)
        batch.step()
        if batch.done[0]:
            return batch
    raise AssertionError("the episode does not end")


@pytest.mark.parametrize("ranks", [1, 2])
def test_at_the_floor_everybody_is_served_and_a_byte_below_it_the_longest_is_refused(ranks: int) -> None:
    batch = at_the_floor(ranks, 0)
    requests = batch.prepared(0).workload.requests
    status = batch.state.req_status[0, : len(requests)]
    assert (status == Status.DONE).all()
    assert (batch.state.bytes_rank[0] <= batch.state.cap_bytes[0]).all()
    pages = [-(-(r.prompt_tokens + r.output_tokens) // batch.state.page_tokens) for r in requests]
    status = at_the_floor(ranks, 1).state.req_status[0, : len(requests)]
    refused = [p for p, s in zip(pages, status, strict=True) if s == Status.REFUSED]
    assert refused and set(refused) == {max(pages)}, "only the longest do not fit any more"


def test_the_longest_request_alone_runs_without_preemption_at_the_floor() -> None:
    batch = make_batch(1, ranks=2, workloads=1, pressure=0.5)
    requests = batch.prepared(0).workload.requests
    longest = max(range(len(requests)), key=lambda q: requests[q].prompt_tokens + requests[q].output_tokens)
    batch.reset_lane(0, workload=0, pressure=1e9)
    s = batch.state
    for name in ("arrival_s", "prompt", "output", "class", "content", "audited", "hashes"):
        values = getattr(s, f"req_{name}")
        values[0, 0] = values[0, longest]
    s.req_arrival_s[0, 0] = 0.0
    s.num_requests[0] = s.unfinished[0] = 1
    while not batch.done[0]:
        neutral_controls(batch)
        batch.step()
    assert s.req_status[0, 0] == Status.DONE and s.req_preempted[0, 0] == 0
