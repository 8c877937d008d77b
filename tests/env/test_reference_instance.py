"""The instance on which speed is stated holds what it says; speed is measured on work, not on idling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pikv_env import speed
from pikv_env.reference_instance import Instance, loaded_batch
from pikv_runtime.ledger.state import Tally


@pytest.mark.parametrize("instance", [speed.REFERENCE, replace(speed.LONG, cached_blocks=2000)], ids=["4", "32"])
def test_a_loaded_batch_holds_the_pages_blocks_and_looks_that_are_stated(instance: Instance) -> None:
    batch = loaded_batch(instance, lanes=1, intervals=200)
    s, steps = batch.state, 40
    before, seen, live, running = s.tally.copy(), audited_looks(batch), [], []
    for _ in range(steps):
        batch.step()
        live.append(s.page_live.sum())
        running.append(s.running_count[0])
    held = (s.tally - before)[0] / steps
    assert held[Tally.ITERATIONS] == pytest.approx(instance.iterations, rel=0.15)
    assert (audited_looks(batch) - seen) / steps == pytest.approx(instance.audited, rel=0.3)
    assert np.mean(live) == pytest.approx(instance.live_pages, rel=0.05)
    assert np.mean(running) == pytest.approx(instance.running, abs=0.7)
    shared = instance.live_pages // instance.layers  # what live pages share leaves room for more
    assert 0.97 * instance.cached_blocks <= s.cached_count[0] <= instance.cached_blocks + shared
    assert held[Tally.EVICTED_BLOCKS] > 0, "the cap must bind"


def audited_looks(batch) -> int:
    s = batch.state
    return int(s.req_observed[0][s.req_audited[0] == 1].sum())


def test_what_grows_is_one_size_at_a_time() -> None:
    for what, size, instance in speed.grown():
        if what != "groups":
            assert getattr(instance, what) == size
        changed = [k for k, v in vars(instance).items() if v != getattr(speed.REFERENCE, k)]
        assert set(changed) <= {what, "experts", "audited"}
