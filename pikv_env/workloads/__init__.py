"""Workloads: reproducible streams of requests over recorded contents."""

from pikv_env.workloads.arrivals import ARRIVALS
from pikv_env.workloads.catalogue import CATALOGUE
from pikv_env.workloads.families import FAMILIES, Family, Phase, Popularity, families_of
from pikv_env.workloads.generator import make_workload
from pikv_env.workloads.mooncake import MooncakeError, load_mooncake, read_mooncake, write_mooncake
from pikv_env.workloads.statistics import describe

__all__ = [
    "ARRIVALS",
    "CATALOGUE",
    "FAMILIES",
    "Family",
    "MooncakeError",
    "Phase",
    "Popularity",
    "describe",
    "families_of",
    "load_mooncake",
    "make_workload",
    "read_mooncake",
    "write_mooncake",
]
