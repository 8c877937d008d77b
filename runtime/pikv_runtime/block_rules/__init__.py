"""Block rules by name: which cached block goes first, and the offline order of pages.

`utility` (the weights that the policy's control gives) is in force unless the runtime's configuration or a heuristic's
spec names another, as in `lazy/h2o+s3fifo`. The rules themselves are in `pikv_runtime.ledger`; this package has their
names, parameters and needs, and imports neither the ledger nor numba.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pikv_runtime.block_rules.base import BlockRule
from pikv_runtime.block_rules.offline import Belady
from pikv_runtime.block_rules.online import ARC, FIFO, LRB, S3FIFO, TLRU, Sieve, TwoQueue, Utility
from pikv_runtime.parameters import parse_parameters
from pikv_runtime.registry import Registry

__all__ = ["BLOCK_RULES", "CLAIRVOYANT", "BlockRule", "Orders", "make_block_rule", "orders_of"]

BLOCK_RULES: Registry[type[BlockRule]] = Registry("block rule")
for _rule in (Utility, FIFO, TwoQueue, S3FIFO, Sieve, ARC, TLRU, LRB, Belady):
    BLOCK_RULES.add(_rule.kind, _rule)

CLAIRVOYANT = "clairvoyant"
"""The offline order of live pages: least attention still to come first, per byte."""


def make_block_rule(spec: str) -> BlockRule:
    """A block rule from `name[:key=value,...]`.

    Raises:
        UnknownNameError: no such rule or parameter.
        ValueError: a parameter is ill-typed or out of range.
    """
    kind, _, params = spec.strip().partition(":")
    rule = BLOCK_RULES[kind.strip()]
    return rule(**parse_parameters(rule, rule.kind, params))


@dataclass(frozen=True)
class Orders:
    """What a lane is ordered by where its control's weights do not say it."""

    block: BlockRule = field(default_factory=Utility)
    page: str = "weights"
    """`weights`, or `CLAIRVOYANT`."""

    @property
    def offline(self) -> str:
        """The first part that needs to know the future, by name; empty: none does."""
        return self.block.kind if self.block.offline else CLAIRVOYANT if self.page == CLAIRVOYANT else ""

    @property
    def needs(self) -> frozenset[str]:
        """Arrays that a ledger must have room for."""
        return self.block.needs | ({"attention"} if self.page == CLAIRVOYANT else frozenset())


def orders_of(policy: object, default: str) -> Orders:
    """Orders of `policy`: the block rule that it names, else `default` (the runtime's); pages by its ranker."""
    rule = getattr(policy, "block_rule", "") or default
    return Orders(make_block_rule(rule), CLAIRVOYANT if getattr(policy, "ranker", "") == CLAIRVOYANT else "weights")
