"""Playing episode records again: the same controls on the same workload must give the same numbers, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pikv_env.batch import TraceBatch
from pikv_env.builtin import make_config
from pikv_env.config import EnvConfig
from pikv_env.episode import episode_info
from pikv_env.episode_record import EpisodeRecord, RecordError
from pikv_env.fingerprints import digest, library_fingerprint, workload_fingerprint
from pikv_env.pool import WorkloadPool
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.block_rules import Orders, make_block_rule


@dataclass(frozen=True)
class Replay:
    """What came of playing a record again."""

    recorded: dict[str, Any]
    """Final numbers of the record."""
    replayed: dict[str, Any]
    intervals: int
    difference: str
    """The first difference, interval by interval and then in the final numbers; empty: none."""

    @property
    def identical(self) -> bool:
        """Whether every charge and every final number is the same."""
        return not self.difference


class Replayer:
    """Plays records over one library; pools are prepared once for all records that share them."""

    def __init__(self, library: TraceLibrary) -> None:
        self.library = library
        self._pools: dict[tuple[EnvConfig, int], WorkloadPool] = {}

    def replay(self, record: EpisodeRecord) -> Replay:
        """Play `record`.

        Raises:
            RecordError: it was recorded over another library, another workload or other prices, or its header lacks
                something.
        """
        try:
            batch = self._start(record)
        except RecordError:
            raise
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise RecordError(f"its header is not whole or sound: {error!r}") from None
        difference = _play(record, batch)
        final = episode_info(batch, 0)["episode_cost"]
        difference = difference or _first_difference(record.final, final)
        return Replay(record.final, final, int(batch.elapsed[0]), difference)

    def _start(self, record: EpisodeRecord) -> TraceBatch:
        """A batch of one lane at the start of the record's episode."""
        found = library_fingerprint(self.library)
        if record.header["library"] != found:
            raise RecordError(f"recorded over trace library {record.header['library']}, this one is {found}")
        try:
            config, pool_config = (make_config(record.header[name]) for name in ("env", "pool_env"))
            pool = self._pool(pool_config, int(record.header["pool_seed"]))
        except (ValueError, OSError) as error:
            raise RecordError(f"its environment cannot be made here: {error}") from None
        batch = TraceBatch(self.library, config, 1, 0, pool)
        _check_pool(record, batch, pool)
        episode = record.header["episode"]
        # Records of before there were block rules name none.
        orders = Orders(make_block_rule(episode.get("block_rule", "utility")), episode.get("page_order", "weights"))
        batch.reset_lane(0, episode["workload"], episode["pressure"], tuple(episode["lambdas"]), orders)
        return batch

    def _pool(self, config: EnvConfig, seed: int) -> WorkloadPool:
        """A pool depends on neither constraints nor the view: records that differ in these share one."""
        key = (replace(config, fidelity_floor=None, slo=None, control="coef"), seed)
        if key not in self._pools:
            self._pools[key] = WorkloadPool(self.library, *key)
        return self._pools[key]


def _check_pool(record: EpisodeRecord, batch: TraceBatch, pool: WorkloadPool) -> None:
    """Refuse a record whose workload or prices are not what this version and machine make of its configuration."""
    number = record.header["episode"]["workload"]
    if not 0 <= number < len(pool.prepared):
        raise RecordError(f"workload {number}: its configuration prepares {len(pool.prepared)}")
    if record.header["prices"] != digest([np.asarray(pool.prices)]):
        raise RecordError(f"profile {batch.config.profile!r} has other prices than when it was recorded")
    found = workload_fingerprint(pool.prepared[number].workload)
    if record.header["workload_fingerprint"] != found:
        raise RecordError(
            f"the workload of family {record.header['episode']['family']!r} is not the one that was recorded (by "
            f"version {record.header['version']}): its generator has changed"
        )
    if record.control_groups.shape[1] != batch.num_groups:
        raise RecordError(f"it has {record.control_groups.shape[1]} control groups, its environment {batch.num_groups}")


def _play(record: EpisodeRecord, batch: TraceBatch) -> str:
    """Play all intervals; the first difference in charges, costs or length, or nothing."""
    names = ("latency", "memory", "loss")
    difference = ""
    for k in range(len(record.parts)):
        if batch.done[0]:
            return difference or f"interval {k}: the replay is over, the record has {len(record.parts)} intervals"
        batch.control_groups[0], batch.control_globals[0] = record.control_groups[k], record.control_globals[k]
        batch.step()
        for kind, had, has in (("", record.parts[k], batch.parts[0]), ("cost ", record.costs[k], batch.costs[0])):
            if not difference and not np.array_equal(had, has):
                column = int(np.flatnonzero(had != has)[0])
                name = names[column] if not kind else f"{kind}{('fidelity', 'slo')[column]}"
                difference = f"interval {k}: {name} was {had[column]!r}, is {has[column]!r}"
    return difference


def _first_difference(recorded: dict[str, Any], replayed: dict[str, Any]) -> str:
    for name in dict.fromkeys([*recorded, *replayed]):
        if recorded.get(name) != replayed.get(name):
            return f"{name} was {recorded.get(name)!r}, is {replayed.get(name)!r}"
    return ""
