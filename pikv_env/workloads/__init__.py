"""Workloads: reproducible streams of requests over recorded contents."""

from pikv_env.workloads.arrivals import ARRIVALS
from pikv_env.workloads.catalogue import CATALOGUE
from pikv_env.workloads.families import FAMILIES, Family, Growth, Phase, Popularity, Tenants, families_of
from pikv_env.workloads.generator import make_workload
from pikv_env.workloads.mooncake import MooncakeError, read_mooncake, write_mooncake
from pikv_env.workloads.replay import Replay, Trace, builtin_traces
from pikv_env.workloads.sessions import Sessions
from pikv_env.workloads.sharing import SHARING
from pikv_env.workloads.statistics import describe
from pikv_env.workloads.trace_workload import load_mooncake

__all__ = [
    "ARRIVALS",
    "CATALOGUE",
    "FAMILIES",
    "SHARING",
    "Family",
    "Growth",
    "MooncakeError",
    "Phase",
    "Popularity",
    "Replay",
    "Sessions",
    "Tenants",
    "Trace",
    "builtin_traces",
    "describe",
    "families_of",
    "load_mooncake",
    "make_workload",
    "read_mooncake",
    "write_mooncake",
]
