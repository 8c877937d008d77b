"""Reward hacks: policies that try to score without serving, by name in `HACKS`; see `docs/reward-hacks.md`."""

from pikv_env.hacks import heedless, scheming
from pikv_env.hacks.base import FIXED, HACKS, Hack, HackPolicy

__all__ = ["FIXED", "HACKS", "Hack", "HackPolicy", "heedless", "scheming"]
