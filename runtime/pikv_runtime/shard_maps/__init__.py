"""Shard maps by name: which rank stores a sealed page. One file each.

A map is a table of homes by page index, tag and layer group, which the ledger looks up (`ledger/pages.home_of`), so
that the runtime and the trace environment place pages alike. To add one: write a file with a `ShardMap`, register it
below; the tests of shard maps pick it up.
"""

from __future__ import annotations

from pikv_runtime.parameters import parse_parameters
from pikv_runtime.registry import Registry
from pikv_runtime.shard_maps.base import LEAST_LOADED, STAY, Homes, ShardMap
from pikv_runtime.shard_maps.expert_home import ExpertHome
from pikv_runtime.shard_maps.load_aware import LoadAware
from pikv_runtime.shard_maps.page_stripe import PageStripe
from pikv_runtime.shard_maps.paper_xor import PaperXor
from pikv_runtime.shard_maps.rendezvous import Rendezvous
from pikv_runtime.shard_maps.shard_eplb import ShardEplb

__all__ = ["LEAST_LOADED", "SHARD_MAPS", "STAY", "Homes", "ShardMap", "make_shard_map"]

SHARD_MAPS: Registry[type[ShardMap]] = Registry("shard map")
for _map in (ExpertHome, PageStripe, PaperXor, Rendezvous, LoadAware, ShardEplb):
    SHARD_MAPS.add(_map.kind, _map)


def make_shard_map(spec: str) -> ShardMap:
    """A shard map from `name[:key=value,...]`.

    Raises:
        UnknownNameError: no such map or parameter.
        ValueError: a parameter is ill-typed or out of range.
    """
    kind, _, params = spec.strip().partition(":")
    found = SHARD_MAPS[kind.strip()]
    return found(**parse_parameters(found, found.kind, params))
