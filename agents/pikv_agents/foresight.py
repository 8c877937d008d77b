"""What knowing the future is worth to each lever: constant settings whose orders are clairvoyant.

From the best setting in hindsight, *retention* orders cached blocks by their next use in the workload (`belady`) and
tunes how much of the cap they may hold; *compression* orders live pages by the attention that they will still get
(`clairvoyant`) and tunes how far and how many of them are compressed or evicted; *both* does both, and may change what
is read. All of it is played on the ledger, so that it is a schedule that a luckier server could have followed. What
lever is worth what is the difference to the best setting without foresight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pikv_agents.hindsight import ORDERED, Tuned, changed, static, tune
from pikv_agents.rollout import Episode, Suite

RETENTION = ("cached_share", "cached_ratio")
COMPRESSION = ("ratio", "evict", "r_pressure")
BOTH = (*RETENTION, *COMPRESSION, "fan_out", "window")
SHARES = ORDERED["cached_share"][::2]
EVICTS = ORDERED["evict"][::2]


def foresight(suite: Suite, episodes: Sequence[Episode], fixed: Tuned, rounds: int) -> Mapping[str, Tuned]:
    """The best constant settings with foresight, by lever.

    Args:
        suite: Workloads.
        episodes: Where.
        fixed: What the search without foresight came to: it starts from its best.
        rounds: Rounds of search for each lever, see `tune`.
    """
    setting, known = static(fixed.best), fixed.least()
    kept = [changed(replace(setting, block_rule="belady"), "cached_share", share).name for share in SHARES]
    retention = tune(suite, episodes, kept, RETENTION, rounds, known)
    pressed = [changed(replace(setting, ranker="clairvoyant"), "evict", evict).name for evict in EVICTS]
    compression = tune(suite, episodes, pressed, COMPRESSION, rounds, known)
    blocks, pages = static(retention.best), static(compression.best)
    joined = replace(blocks, **{name: getattr(pages, name) for name in ("ranker", "demote", *COMPRESSION)})
    alone = replace(blocks, ranker=pages.ranker)
    both = tune(suite, episodes, [joined.name, alone.name], BOTH, rounds, known)
    return {"retention": retention, "compression": compression, "both": both}
